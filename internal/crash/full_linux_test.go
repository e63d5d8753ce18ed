package crash

import (
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A shortage is a trial whose disk is full now and then.
type shortage struct {
	*trial
	disk    *smallDisk
	command []string // the broker
	process *process
	zeros   int // QoS 0 messages so far
}

// A disk that becomes full, again and again: what was acknowledged is there, what cannot be is
// refused with 0x97, and there is service again as soon as there is room.
func TestDiskFull(t *testing.T) {
	program := buildServer(t)
	tests := []struct {
		name, store string
		version     packets.Version
		drains      bool // it is tried, too, that messages make room when they are fetched
	}{
		{"segments, and publishers that can be told", "segment", packets.V5, true},
		{"segments, and publishers that can only be disconnected", "segment", packets.V311, false},
		{"bbolt, and publishers that can be told", "bbolt", packets.V5, true},
		{"bbolt, and publishers that can only be disconnected", "bbolt", packets.V311, false},
	}
	if testing.Short() {
		tests = tests[:1]
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			disk := newSmallDisk(t, "12m")
			s := &shortage{trial: newTrial(filepath.Join(disk.dir, "data")), disk: disk}
			s.command = []string{program, "-listen", "127.0.0.1:0", "-data", s.dir, "-store",
				tt.store, "-durability", "synced",
				"-max-queued-messages", "-1", "-max-queued-bytes", "-1"}
			s.run(t, tt.version, tt.drains)
		})
	}
}

func TestPlantedFaultIsFoundOnAFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it fills a disk again, for a broker that has lost something")
	}
	newSmallDisk(t, "1m") // where that cannot be done, this is skipped as well
	findsPlanted(t, unrefused, "TestDiskFull$/segments.*told")
}

// buildServer builds examples/server as this test was built.
func buildServer(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "server")
	args := []string{"build", "-o", program}
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" || s.Key == "-tags" {
			args = append(args, s.Key+"="+s.Value)
		}
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Dir = filepath.Join("..", "..", "examples", "server")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the server: %v\n%s", err, out)
	}
	return program
}

func (s *shortage) run(t *testing.T, version packets.Version, drains bool) {
	began := time.Now()
	must(t, s.disk.fill(6<<20))
	s.start(t)
	defer func() { s.process.kill() }()
	online := s.add("online", packets.V5, "t/#")
	s.offline = s.add("offline", packets.V5, "t/#")
	for i := range 4 {
		p := s.add(fmt.Sprint("p", i), version, "")
		p.size, p.mayRefuse = 4<<10, true
		p.away = func() time.Duration { return 20 * time.Millisecond }
	}
	s.begin(t)
	s.served(t)
	before := s.connections(packets.V5)

	s.becomesFull(t)
	s.servesZero(t, online)
	must(t, s.disk.free())
	s.served(t)
	if n := s.connections(packets.V5); n != before {
		t.Errorf("5.0 clients made %d connections, want them to keep theirs", n-before)
	}

	s.becomesFull(t)
	s.restart(t) // with a disk that is full
	s.isFull(t)
	s.servesZero(t, online)
	must(t, s.disk.free())
	s.served(t)

	leave := func() {}
	if drains {
		s.hurry()
		s.isFull(t) // of messages
		leave = s.visit()
		s.served(t)
	}

	close(s.stop)
	s.restart(t)
	s.restart(t)
	if !drains {
		leave = s.visit()
	}
	f := s.finish(t, leave)
	var refused int64
	for _, p := range s.publishers {
		refused += p.refused.Load()
	}
	t.Logf("%d messages acknowledged, %d refused, %d connections: %d lost, %d QoS 2 twice, %d "+
		"out of order, %d QoS 1 again, %d QoS 1 refused and delivered; %v, seed %d",
		s.acked(), refused, s.connections(packets.V5)+s.connections(packets.V311), f.lost, f.twice,
		f.disorder, f.repeated, f.anyway, time.Since(began).Round(100*time.Millisecond), s.seed)
}

// connections is how many connections clients of the version have tried to make, the one to
// subscribe included.
func (s *shortage) connections(version packets.Version) (n int64) {
	for _, c := range slices.Concat(s.publishers, s.subscribers) {
		if c.version == version {
			n += c.opened.Load() + c.turned.Load()
		}
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// restart kills the broker and starts it again.
func (s *shortage) restart(t *testing.T) {
	t.Helper()
	s.process.kill()
	s.start(t)
}

// start starts the broker: examples/server, or this program if a fault is planted.
func (s *shortage) start(t *testing.T) {
	t.Helper()
	if os.Getenv(faultEnv) != "" {
		s.process = start(t, s.dir, &s.addr)
		return
	}
	s.process = startServer(t, s.command, &s.addr)
}

// becomesFull leaves no room and waits until the broker has found out.
func (s *shortage) becomesFull(t *testing.T) {
	t.Helper()
	must(t, s.disk.fill(math.MaxInt))
	s.hurry()
	s.isFull(t)
}

// hurry makes publishers as fast as they can be.
func (s *shortage) hurry() {
	for _, p := range s.publishers {
		p.slow.Store(false)
	}
}

// isFull waits until each publisher was told several times that there is no room: in an
// acknowledgement, or with the end of its connection.
func (s *shortage) isFull(t *testing.T) {
	t.Helper()
	s.each(t, "refused", 3, func(p *client) int64 {
		if p.version < packets.V5 {
			return p.opened.Load() + p.turned.Load()
		}
		return p.refused.Load() + p.turned.Load()
	})
}

// served waits until each publisher has got acknowledgements again.
func (s *shortage) served(t *testing.T) {
	t.Helper()
	for _, p := range s.publishers {
		p.slow.Store(true)
	}
	s.each(t, "served", 20, func(p *client) int64 { return p.acked.Load() })
}

// each waits until count has grown by so much for each publisher.
func (s *shortage) each(t *testing.T, what string, by int64, count func(*client) int64) {
	t.Helper()
	defer func(began time.Time) { t.Logf("each %s after %v", what, time.Since(began)) }(time.Now())
	before := make([]int64, len(s.publishers))
	for i, p := range s.publishers {
		before[i] = count(p)
	}
	deadline := time.Now().Add(2 * time.Minute)
	for i, p := range s.publishers {
		for count(p) < before[i]+by {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not %s; found so far: %s", p.id, what,
					strings.Join(s.errs.all(), "; "))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// servesZero checks that a new client can connect, and that what it publishes at QoS 0 arrives.
func (s *shortage) servesZero(t *testing.T, online *client) {
	t.Helper()
	nc, err := net.Dial("tcp", s.addr.Load().(string))
	must(t, err)
	defer nc.Close()
	must(t, nc.SetDeadline(time.Now().Add(time.Minute)))
	r := packets.NewReader(nc, packets.Limits{})
	r.SetVersion(packets.V5)
	c := &client{id: "zero", version: packets.V5, errs: &s.errs}
	c.send(nc, &packets.Connect{Version: packets.V5, ClientID: c.id, CleanStart: true})
	if q, err := r.ReadPacket(); err != nil || q.(*packets.Connack).Code != packets.Success {
		t.Fatalf("a new client gets %v, %v", q, err)
	}
	for range 10 {
		s.zeros++
		c.send(nc, &packets.Publish{Topic: []byte("t/zero/q0"),
			Payload: fmt.Appendf(nil, "t/zero/q0 %d|", s.zeros)})
	}
	for deadline := time.Now().Add(time.Minute); online.ledger.newest("t/zero/q0") < s.zeros; {
		if time.Now().After(deadline) {
			t.Fatal("QoS 0 does not get through")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
