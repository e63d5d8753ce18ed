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
	"path/filepath"
	"regexp"
	"slices"
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

// dataEnv names the directory of the store in the environment of the process that is to be the
// broker.
const dataEnv = "DUNLIN_CRASH_DATA"

// roles are what else this program is run as: by the environment variable that says so and is given
// to it.
var roles = map[string]func(string) error{dataEnv: serve}

func TestMain(m *testing.M) {
	for name, role := range roles {
		if what := os.Getenv(name); what != "" {
			if err := role(what); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(m.Run())
}

// serve is the broker: it says its address on standard output and serves until it is killed, or
// standard input ends.
func serve(dir string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	st, err := openStore(dir, segment.Options{SegmentSize: 4 << 20, Logger: log})
	if err != nil {
		return err
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Logger: log, Store: st,
		MaxQueuedMessages: -1, MaxQueuedBytes: -1})
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

var address = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// start runs this program as the broker, or the command in DUNLIN_BROKER, with -data added.
func start(t *testing.T, dir string, addr *atomic.Value) *process {
	t.Helper()
	if other := strings.Fields(os.Getenv("DUNLIN_BROKER")); len(other) > 0 {
		return startServer(t, append(other, "-data", dir), addr)
	}
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), dataEnv+"="+dir)
	p.cmd.Stderr = os.Stderr
	p.start(t, p.cmd.StdoutPipe, addr)
	return p
}

// startServer runs a program that logs its address on standard error.
func startServer(t *testing.T, command []string, addr *atomic.Value) *process {
	t.Helper()
	p := &process{cmd: exec.Command(command[0], command[1:]...)}
	p.start(t, p.cmd.StderrPipe, addr)
	return p
}

// start starts the process and waits until it has said its address.
func (p *process) start(t *testing.T, output func() (io.ReadCloser, error), addr *atomic.Value) {
	t.Helper()
	out, err := output()
	if err == nil {
		p.stdin, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	var said strings.Builder
	for at := ""; at == ""; {
		line, err := r.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			p.kill()
			t.Fatalf("the broker did not start: %v\n%s", err, &said)
		}
		if at = address.FindString(line); at != "" {
			addr.Store(at)
		}
	}
	go io.Copy(os.Stderr, r) // ends with the process
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

// awayFor is how many kills the offline client misses before it comes and fetches what is queued
// for it.
const awayFor = 25

// A trial is a broker that is killed, and its clients.
type trial struct {
	dir        string
	addr       atomic.Value
	seed       uint64
	stop, quit chan struct{}
	errs       problems
	haste      int // the flapping client comes and goes so many times as often; 0: once
	running    sync.WaitGroup

	publishers, subscribers []*client
	offline                 *client

	restarts, slowest time.Duration // in all, and the longest
	largest           int64         // bytes of the store
	drained           int           // how often the offline client fetched all
}

func TestKill(t *testing.T) {
	tr := newTrial(t.TempDir())
	rnd := rand.New(rand.NewPCG(tr.seed, 0))
	p := start(t, tr.dir, &tr.addr)
	defer func() { p.kill() }()
	tr.attend(t)
	began, n := time.Now(), kills(t)
	leave := func() {}
	for i := range n {
		if i%awayFor == awayFor-1 && tr.offline.quit == nil {
			leave = tr.visit()
		}
		time.Sleep(time.Duration(20+rnd.IntN(600)) * time.Millisecond)
		p.kill()
		tr.measure()
		before := time.Now()
		p = start(t, tr.dir, &tr.addr)
		took := time.Since(before)
		tr.restarts, tr.slowest = tr.restarts+took, max(tr.slowest, took)
		if tr.offline.quit != nil && tr.behind(tr.offline) < 256 {
			leave()
			tr.drained++
		}
		if (i+1)%50 == 0 {
			t.Logf("%d kills in %v, %d acknowledged, %d times all fetched, restarts %v on "+
				"average, %v at most, store up to %d bytes; behind: %s", i+1,
				time.Since(began).Round(time.Second), tr.acked(), tr.drained,
				tr.restarts/time.Duration(i+1), tr.slowest, tr.largest, tr.lags())
		}
	}
	close(tr.stop)
	if tr.offline.quit == nil {
		leave = tr.visit()
	}
	f := tr.finish(t, leave)
	t.Logf("%d kills, %d messages acknowledged, each for %d subscribers: %d lost, %d QoS 2 "+
		"twice, %d out of order, %d QoS 1 again; %v, seed %d", n,
		tr.acked(), len(tr.subscribers), f.lost, f.twice, f.disorder, f.repeated,
		time.Since(began).Round(time.Second), tr.seed)
}

func (tr *trial) scale(d time.Duration) time.Duration { return d / time.Duration(max(tr.haste, 1)) }

// newTrial returns a trial with a seed of its own. Its store is in dir.
func newTrial(dir string) *trial {
	return &trial{dir: dir, seed: rand.Uint64(), stop: make(chan struct{}),
		quit: make(chan struct{})}
}

// add makes a client, a publisher if filter is empty.
func (tr *trial) add(id string, v packets.Version, filter string) *client {
	c := &client{id: id, version: v, filter: filter, addr: &tr.addr,
		rnd:  rand.New(rand.NewPCG(tr.seed, uint64(len(id)+int(id[len(id)-1])))),
		stop: tr.stop, quit: tr.quit, errs: &tr.errs, size: 300, last: make(map[string]*sending),
		ids: make(map[uint16]bool)}
	if filter == "" {
		tr.publishers = append(tr.publishers, c)
	} else {
		tr.subscribers = append(tr.subscribers, c)
	}
	return c
}

// attend makes the clients and starts them.
func (tr *trial) attend(t *testing.T) {
	tr.add("online", packets.V5, "t/#")
	tr.add("online311", packets.V311, "t/#")
	c := tr.add("flapping", packets.V5, "t/#")
	c.stay = func() time.Duration {
		select {
		case <-tr.stop:
			return time.Hour // nothing new comes: fetch the rest
		default:
			d := time.Duration(c.rnd.Int64N(int64(tr.scale(100 * time.Millisecond))))
			if c.rnd.IntN(3) == 0 {
				d *= 8 // else it would fall behind more and more
			}
			return d
		}
	}
	c.away = func() time.Duration { return time.Duration(c.rnd.Int64N(int64(tr.scale(300 * time.Millisecond)))) }
	tr.offline = tr.add("offline", packets.V5, "t/#")
	for i := range 4 {
		tr.add(fmt.Sprint("p", i), []packets.Version{packets.V5, packets.V311}[i%2], "")
	}
	tr.begin(t)
}

// begin starts all clients but the offline one.
func (tr *trial) begin(t *testing.T) {
	t.Helper()
	tr.offline.quit = nil
	for _, c := range tr.subscribers { // each subscribes before the first message
		if err := c.subscribe(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range slices.Concat(tr.publishers, tr.subscribers) {
		if c != tr.offline {
			tr.running.Go(c.run)
		}
	}
}

// finish waits until all that was published is acknowledged and nothing more arrives, sends the
// clients away, the offline one with leave, and says what was found.
func (tr *trial) finish(t *testing.T, leave func()) (f figures) {
	t.Helper()
	tr.settle()
	leave()
	close(tr.quit)
	tr.running.Wait()
	for _, s := range tr.subscribers {
		f.check(&tr.errs, s, tr.publishers)
	}
	checkRetained(t, &tr.errs, tr.addr.Load().(string), tr.publishers)
	for _, e := range tr.errs.list {
		t.Error(e)
	}
	return f
}

// visit lets the offline client in. What it returns sends it away again, and waits until it has
// gone.
func (tr *trial) visit() (leave func()) {
	c, quit, gone := tr.offline, make(chan struct{}), make(chan struct{})
	c.quit = quit
	go func() { // waited for by leave
		defer close(gone)
		c.run()
	}()
	return func() {
		close(quit)
		<-gone
		c.quit = nil
	}
}

// acked is how many messages are acknowledged.
func (tr *trial) acked() (n int) {
	for _, p := range tr.publishers {
		n += int(p.acked.Load())
	}
	return n
}

// behind is how many messages c has not got yet.
func (tr *trial) behind(c *client) int { return max(tr.acked()-c.ledger.count(), 0) }

func (tr *trial) lags() string {
	var b strings.Builder
	for _, s := range tr.subscribers {
		fmt.Fprintf(&b, "%s %d ", s.id, tr.behind(s))
	}
	return b.String()
}

// measure notes the size of the store.
func (tr *trial) measure() {
	var n int64
	filepath.Walk(tr.dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			n += info.Size()
		}
		return nil
	})
	tr.largest = max(tr.largest, n)
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

// settle waits until all that was published is acknowledged and nothing more arrives. While
// something is missing it waits longer for it: the machine may be at a standstill.
func (tr *trial) settle() {
	deadline := time.Now().Add(2 * time.Minute)
	before := 0
	for quiet, enough := 0, 20; quiet < enough && time.Now().Before(deadline); quiet++ {
		time.Sleep(100 * time.Millisecond)
		for _, p := range tr.publishers {
			if !p.idle.Load() {
				quiet = 0
			}
		}
		now := 0
		enough = 20
		for _, s := range tr.subscribers {
			now += s.ledger.count()
			if tr.behind(s) > 0 {
				enough = 150
			}
		}
		if now != before {
			before, quiet = now, 0
		}
	}
}

// checkRetained asks for what is retained.
func checkRetained(t *testing.T, errs *problems, addr string, publishers []*client) {
	var at atomic.Value
	at.Store(addr)
	quit := make(chan struct{})
	c := &client{id: "last", version: packets.V5, filter: "t/+/r", addr: &at, errs: errs,
		quit: quit, ids: make(map[uint16]bool)}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	want := 0
	for _, p := range publishers {
		want += len(p.last)
	}
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		c.run()
	}()
	for c.ledger.topics() < want && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	close(quit)
	<-done
	for _, p := range publishers {
		for topic, s := range p.last {
			if got := c.ledger.last[topic]; got != s.order {
				errs.add("retained on %s is number %d, the last acknowledged was %d", topic, got,
					s.order)
			}
		}
	}
}
