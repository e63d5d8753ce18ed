package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	loadUsers   = flag.Int("push.users", 60, "users of the load test, ten to a group")
	loadRate    = flag.Int("push.rate", 200, "pushes to groups in a second")
	loadSeconds = flag.Int("push.seconds", 2, "how long the load lasts before the kill, and after")
	loadQoS     = flag.Int("push.qos", 2, "QoS of the pushes")
)

// TestMain is the program itself if the load test has started it.
func TestMain(m *testing.M) {
	if os.Getenv("PUSH_PROGRAM") == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A child is the service as a process of its own.
type child struct {
	cmd          *exec.Cmd
	devices, url string
}

// spawn starts the service. What it prints ends up in the addresses of b.
func spawn(b *bench, listen, http, dir string) *child {
	b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	c := &child{cmd: exec.Command(self, "-listen", listen, "-http", http, "-key", testKey, "-dir",
		dir)}
	c.cmd.Env = append(os.Environ(), "PUSH_PROGRAM=1")
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.kill)
	for lines := bufio.NewScanner(out); (c.url == "" || c.devices == "") && lines.Scan(); {
		if a, ok := strings.CutPrefix(lines.Text(), "devices at "); ok {
			c.devices = a
		} else if a, ok := strings.CutPrefix(lines.Text(), "backend at "); ok {
			c.url = a
		}
	}
	if c.url == "" {
		b.t.Fatal("the service does not start")
	}
	if b.url != c.url { // the second time it is the same, and others read it
		b.devices, b.url = c.devices, c.url
	}
	return c
}

// kill ends the process as a crash would.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
	}
}

// cpu is the time that a process has used, in user and system mode.
func cpu(pid string) time.Duration {
	text, _ := os.ReadFile("/proc/" + pid + "/stat")
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func (c *child) cpu() time.Duration { return cpu(strconv.Itoa(c.cmd.Process.Pid)) }

// resident is the memory of the process in bytes, 0 where it is not known.
func (c *child) resident() int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n << 10
		}
	}
	return 0
}

// A load is the pushes of a test and what became of them.
type load struct {
	*bench
	phones []*loadPhone // ten to a group

	// By number of the push: whether it was acknowledged, when it was made, and how long that took.
	// Guarded by mu.
	mu    sync.Mutex
	acked []bool
	made  []time.Time
	took  []time.Duration
}

func (l *load) groupOf(i int) string { return "g" + strconv.Itoa(i/10) }

// Users in groups of ten get pushes at a steady rate. Some leave and join meanwhile. The service is
// killed in the middle. What was acknowledged to the backend comes, at QoS 2 once.
func TestLoadAndCrash(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no kill -9")
	}
	dir := t.TempDir()
	l := &load{bench: &bench{t: t}}
	c := spawn(l.bench, "127.0.0.1:0", "127.0.0.1:0", dir)
	tokens := l.populate()
	before := c.resident()
	l.connect(tokens)
	t.Logf("%d users are connected: %d bytes of the process each", len(tokens),
		(c.resident()-before)/len(tokens))

	served, drove, began := c.cpu(), cpu("self"), time.Now()
	leaves := l.run(time.Duration(*loadSeconds) * time.Second)
	t.Logf("the pushes took %v", time.Since(began))
	l.settle()
	t.Logf("in %v the service used %v of CPU, the test %v", time.Since(began), c.cpu()-served,
		cpu("self")-drove)
	t.Logf("%d pushes, %d deliveries, %s", len(l.acked), l.received(), l.latencies())
	t.Logf("%d leaves: median %v, slowest %v", len(leaves), leaves[len(leaves)/2],
		leaves[len(leaves)-1])
	t.Logf("%d bytes of the process for each user after the load", (c.resident()-before)/len(tokens))
	l.check()

	// Once more, with a crash in the middle.
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.run(time.Duration(*loadSeconds) * time.Second)
	}()
	n := l.received()
	l.wait(func() bool { return l.received() > n+len(l.phones) })
	c.kill()
	began = time.Now()
	spawn(l.bench, c.devices, strings.TrimPrefix(c.url, "http://"), dir)
	t.Logf("after the kill the service was up again in %v", time.Since(began))
	<-done
	for _, p := range l.phones {
		p.broken()
	}
	l.settle()
	l.check()
}

// populate makes the users and their groups, and returns a token of each.
func (l *load) populate() []string {
	tokens := make([]string, *loadUsers)
	var g errgroup.Group
	g.SetLimit(16)
	for i := range tokens {
		g.Go(func() error {
			tokens[i] = l.account("users/u" + strconv.Itoa(i))
			l.must("PUT", "/v1/groups/"+l.groupOf(i)+"/members/u"+strconv.Itoa(i), nil)
			return nil
		})
	}
	g.Wait()
	return tokens
}

// run pushes at the rate for a time, while users leave and join again, and returns how long the
// leaves took, in ascending order.
func (l *load) run(d time.Duration) []time.Duration {
	ctx, cancel := context.WithTimeout(l.t.Context(), d)
	defer cancel()
	var g errgroup.Group
	var next atomic.Int64
	next.Store(int64(len(l.acked)))
	batch := int64(max(1, *loadRate/100)) // a request of each pusher takes the pushes of 10 ms
	began, first := time.Now(), next.Load()
	for range 16 {
		g.Go(func() error {
			for ctx.Err() == nil {
				n := next.Add(batch) - batch
				due := began.Add(time.Duration(n-first) * time.Second / time.Duration(*loadRate))
				pause(ctx, time.Until(due))
				l.pushBatch(n, int(batch))
			}
			return nil
		})
	}
	var leaves []time.Duration
	for ctx.Err() == nil {
		if d, ok := l.leaveAndJoin(rand.N(len(l.phones))); ok {
			leaves = append(leaves, d)
		}
		pause(ctx, 200*time.Millisecond)
	}
	g.Wait()
	slices.Sort(leaves)
	return leaves
}

// pause waits for a time, which is how a load has a rate.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

// pushBatch pushes to the groups in turn, with the number and the time as the payload.
func (l *load) pushBatch(first int64, n int) {
	list := make([]push, n)
	qos := *loadQoS
	groups := len(l.phones) / 10
	for i := range list {
		number := int(first) + i
		list[i] = push{To: "groups/g" + strconv.Itoa(number%groups), QoS: &qos,
			Body: fmt.Sprintf("%d/%d", number, time.Now().UnixNano())}
	}
	began := time.Now()
	results, err := l.tryPush(list)
	took := time.Since(began)
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.acked) < int(first)+n {
		l.acked, l.made, l.took = append(l.acked, false), append(l.made, began), append(l.took, 0)
	}
	for i := range n {
		l.made[int(first)+i], l.took[int(first)+i] = began, took
	}
	if err != nil {
		return // the service is being killed
	}
	for i, r := range results {
		l.acked[int(first)+i] = r.Error == ""
	}
}

// leaveAndJoin takes somebody out of the group, and says how long it took until the answer. From
// then on nothing new may come. ok is false if the service was killed meanwhile.
func (l *load) leaveAndJoin(i int) (took time.Duration, ok bool) {
	p := l.phones[i]
	path := "/v1/groups/" + l.groupOf(i) + "/members/u" + strconv.Itoa(i)
	began := time.Now()
	p.away(began)
	status, err := l.try("DELETE", path)
	took = time.Since(began)
	if err == nil {
		p.gone(time.Now())
		if status != 204 {
			l.t.Errorf("a leave was answered with %d", status)
		}
	}
	for l.t.Context().Err() == nil {
		p.back(time.Now())
		if _, again := l.try("PUT", path); again == nil {
			p.returned(time.Now())
			return took, err == nil
		}
		pause(l.t.Context(), 50*time.Millisecond)
	}
	return 0, false
}

// settle waits until each phone has got what it has to get.
func (l *load) settle() {
	l.t.Helper()
	l.wait(func() bool {
		for i, p := range l.phones {
			if !p.hasAll(l, i) {
				return false
			}
		}
		return true
	})
}

func (l *load) wait(done func() bool) {
	l.t.Helper()
	late, cancel := context.WithTimeout(l.t.Context(), 60*time.Second)
	defer cancel()
	for !done() {
		if late.Err() != nil {
			l.t.Error("it takes too long")
			return
		}
		pause(late, 20*time.Millisecond)
	}
}

func (l *load) received() (n int) {
	for _, p := range l.phones {
		p.mu.Lock()
		n += len(p.got)
		p.mu.Unlock()
	}
	return n
}

func (l *load) latencies() string {
	var all []time.Duration
	for _, p := range l.phones {
		p.mu.Lock()
		all = append(all, p.latencies...)
		p.mu.Unlock()
	}
	if len(all) == 0 {
		return "nothing came"
	}
	slices.Sort(all)
	return fmt.Sprintf("median %v, p99 %v, slowest %v", all[len(all)/2], all[len(all)*99/100],
		all[len(all)-1])
}

// check compares what came with what was acknowledged.
func (l *load) check() {
	l.t.Helper()
	missing, doubled, late := 0, 0, 0
	for i, p := range l.phones {
		m, d, x := p.compare(l, i)
		missing, doubled, late = missing+m, doubled+d, late+x
	}
	if missing > 0 || late > 0 || *loadQoS == 2 && doubled > 0 {
		l.t.Errorf("%d deliveries are missing, %d came twice, %d came after a leave", missing,
			doubled, late)
	}
	l.t.Logf("%d missing, %d doubled, %d after a leave", missing, doubled, late)
}
