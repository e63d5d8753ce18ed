package crash

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/segment"
)

// dataEnv names the directory of the store in the environment of the process that is to be the broker.
const dataEnv = "DUNLIN_CRASH_DATA"

func TestMain(m *testing.M) {
	if dir := os.Getenv(dataEnv); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serve is the broker: it says its address on standard output and serves until it is killed, or standard input ends.
func serve(dir string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	st, err := segment.Open(dir, segment.Options{SegmentSize: 4 << 20, Logger: log})
	if err != nil {
		return err
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Logger: log, Store: st, MaxQueuedMessages: -1, MaxQueuedBytes: -1})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	go func() { // ends the process with the test that started it
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return b.Serve(l)
}

// A process is a running broker.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func start(t *testing.T, dir string, addr *atomic.Value) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), dataEnv+"="+dir)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		p.stdin, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.kill()
		t.Fatalf("the broker did not start: %v", err)
	}
	addr.Store(strings.TrimSpace(line))
	return p
}

// kill ends the process with SIGKILL, wherever it is.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.stdin.Close()
	p.cmd.Wait()
}

// kills is how often the broker is to be killed.
func kills(t *testing.T) int {
	if s := os.Getenv("DUNLIN_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("DUNLIN_KILLS: %v", err)
		}
		return n
	}
	if testing.Short() {
		return 5
	}
	return 50
}

func TestKill(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	var addr atomic.Value
	dir := t.TempDir()
	p := start(t, dir, &addr)
	defer func() { p.kill() }()

	stop, quit := make(chan struct{}), make(chan struct{})
	errs := new(problems)
	var running sync.WaitGroup
	var publishers, subscribers []*client
	add := func(id string, v packets.Version, filter string) *client {
		c := &client{id: id, version: v, filter: filter, addr: &addr, rnd: rand.New(rand.NewPCG(seed, uint64(len(id)+int(id[len(id)-1])))), stop: stop, quit: quit, errs: errs,
			last: make(map[string]*sending), ids: make(map[uint16]bool)}
		if filter == "" {
			publishers = append(publishers, c)
		} else {
			subscribers = append(subscribers, c)
		}
		return c
	}
	upTo := func(c *client, d time.Duration) func() time.Duration {
		return func() time.Duration {
			select {
			case <-stop:
				return time.Hour // nothing new comes: fetch the rest
			default:
				return time.Duration(c.rnd.Int64N(int64(d)))
			}
		}
	}
	add("online", packets.V5, "t/#")
	add("online311", packets.V311, "t/#")
	flapping := add("flapping", packets.V5, "t/#")
	flapping.stay = upTo(flapping, 100*time.Millisecond)
	flapping.away = func() time.Duration { return time.Duration(flapping.rnd.Int64N(int64(300 * time.Millisecond))) }
	offline := add("offline", packets.V5, "t/#")
	for _, c := range subscribers { // each subscribes before the first message
		if err := c.subscribe(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		add(fmt.Sprint("p", i), []packets.Version{packets.V5, packets.V311}[i%2], "")
	}
	for _, c := range append(append([]*client(nil), publishers...), subscribers...) {
		if c != offline {
			running.Go(c.run)
		}
	}
	n := kills(t)
	for range n {
		time.Sleep(time.Duration(20+rnd.IntN(600)) * time.Millisecond)
		p.kill()
		p = start(t, dir, &addr)
	}
	close(stop)
	running.Go(offline.run)
	total := settle(publishers, subscribers)
	close(quit)
	running.Wait()
	for _, s := range subscribers {
		checkReceived(errs, s, publishers)
	}
	checkRetained(t, errs, addr.Load().(string), publishers)
	for _, e := range errs.list {
		t.Error(e)
	}
	t.Logf("%d kills, %d messages acknowledged, seed %d", n, total, seed)
}

// subscribe connects once, subscribes, and leaves.
func (c *client) subscribe() error {
	nc, err := net.Dial("tcp", c.addr.Load().(string))
	if err != nil {
		return err
	}
	defer nc.Close()
	r := packets.NewReader(nc, packets.Limits{})
	r.SetVersion(c.version)
	p := &packets.Connect{Version: c.version, ClientID: c.id}
	if c.version == packets.V5 {
		p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 86400)
	}
	c.send(nc, p)
	for !c.known {
		q, err := r.ReadPacket()
		if err != nil {
			return err
		}
		if !c.handle(nc, q) {
			return fmt.Errorf("%s: no subscription", c.id)
		}
	}
	return nil
}

// settle waits until all that was published is acknowledged and nothing more arrives, and returns how many messages there were.
func settle(publishers, subscribers []*client) (total int64) {
	deadline := time.Now().Add(2 * time.Minute)
	var before int
	for quiet := 0; quiet < 20 && time.Now().Before(deadline); quiet++ {
		time.Sleep(100 * time.Millisecond)
		total = 0
		for _, p := range publishers {
			total += p.acked.Load()
			if !p.idle.Load() {
				quiet = 0
			}
		}
		now := 0
		for _, s := range subscribers {
			s.mu.Lock()
			now += len(s.got)
			s.mu.Unlock()
		}
		if now != before {
			before, quiet = now, 0
		}
	}
	return total
}

func checkReceived(errs *problems, s *client, publishers []*client) {
	times, last := make(map[string]int), make(map[string]int)
	for _, m := range s.got {
		if times[m]++; times[m] > 1 {
			if !strings.Contains(m, "/q1 ") {
				errs.add("%s got %q %d times", s.id, m, times[m])
			}
			continue
		}
		topic, number, _ := strings.Cut(m, " ")
		n, _ := strconv.Atoi(number)
		if n < last[topic] {
			errs.add("%s got %q after number %d", s.id, m, last[topic])
		}
		last[topic] = n
	}
	for _, p := range publishers {
		for _, m := range p.log {
			if times[m] == 0 {
				errs.add("%s never got %q", s.id, m)
			}
		}
	}
}

// checkRetained asks for what is retained.
func checkRetained(t *testing.T, errs *problems, addr string, publishers []*client) {
	var at atomic.Value
	at.Store(addr)
	quit := make(chan struct{})
	c := &client{id: "last", version: packets.V5, filter: "t/+/r", addr: &at, errs: errs, quit: quit, ids: make(map[uint16]bool)}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		c.run()
	}()
	for n := 0; n < len(publishers) && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		n = len(c.got)
		c.mu.Unlock()
	}
	close(quit)
	<-done
	have := make(map[string]string)
	for _, m := range c.got {
		topic, _, _ := strings.Cut(m, " ")
		have[topic] = m
	}
	for _, p := range publishers {
		for topic, s := range p.last {
			if want := fmt.Sprintf("%s %d", topic, s.order); have[topic] != want {
				errs.add("retained on %s is %q, the last acknowledged was %q", topic, have[topic], want)
			}
		}
	}
}
