package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
	c.cmd.Process.Kill() // fails if it has ended
	c.cmd.Wait()
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
	epoll  int          // for read

	mu         sync.Mutex // guards what follows, and the phones
	made       []loadPush // by number
	deliveries int
	latencies  []time.Duration // of all deliveries
}

// A loadPush is a push: when it was made, how long the answer took, and whether it was
// acknowledged or refused because there were too many.
type loadPush struct {
	at             time.Time
	took           time.Duration
	acked, refused bool
}

func (l *load) groups() int { return len(l.phones) / 10 }

func (p *loadPhone) path() string {
	return fmt.Sprintf("/v1/groups/g%d/members/u%d", p.id/10, p.id)
}

// Users in groups of ten get pushes at a steady rate. Some leave and join meanwhile. The service is
// killed in the middle. What was acknowledged to the backend comes, at QoS 2 once.
func TestLoadAndCrash(t *testing.T) {
	dir := t.TempDir()
	l := &load{bench: &bench{t: t}}
	c := spawn(l.bench, "127.0.0.1:0", "127.0.0.1:0", dir)
	l.begin()
	before := c.resident()
	l.connect()
	users := len(l.phones)
	t.Logf("%d users are connected: %d bytes of the process each", users,
		(c.resident()-before)/users)

	served, drove, began := c.cpu(), cpu("self"), time.Now()
	leaves := l.run(time.Duration(*loadSeconds) * time.Second)
	l.settle()
	t.Logf("in %v the service used %v of CPU, the test %v", time.Since(began), c.cpu()-served,
		cpu("self")-drove)
	l.report(c.cpu()-served, cpu("self")-drove)
	t.Logf("%d leaves: median %v, slowest %v", len(leaves), leaves[len(leaves)/2],
		leaves[len(leaves)-1])
	t.Logf("%d bytes of the process for each user after the load", (c.resident()-before)/users)
	l.check()

	// Once more, with a crash in the middle.
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.run(time.Duration(*loadSeconds) * time.Second)
	}()
	n := l.received()
	l.wait(func() bool { return l.received() > n+users })
	c.kill()
	began = time.Now()
	spawn(l.bench, c.devices, strings.TrimPrefix(c.url, "http://"), dir)
	t.Logf("after the kill the service was up again in %v", time.Since(began))
	l.wait(func() bool { return !slices.ContainsFunc(l.phones, l.isUp) })
	l.connect()
	<-done
	l.settle()
	l.check()
}

func (l *load) isUp(p *loadPhone) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return p.up
}

// report logs what happened until now.
func (l *load) report(served, drove time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	acked, refused, took := 0, 0, time.Duration(0)
	for _, x := range l.made {
		if x.acked {
			acked++
			took = max(took, x.at.Add(x.took).Sub(l.made[0].at))
		}
		if x.refused {
			refused++
		}
	}
	n := len(l.latencies)
	if n == 0 {
		l.t.Error("nothing came")
		return
	}
	slices.Sort(l.latencies)
	l.t.Logf("%d pushes in %v were accepted, %.0f in a second, and %d refused; %d deliveries: "+
		"median %v, p99 %v, slowest %v", acked, took, float64(acked)/took.Seconds(), refused, n,
		l.latencies[n/2], l.latencies[n*99/100], l.latencies[n-1])
	l.t.Logf("for each delivery the service used %v, the test %v", served/time.Duration(n),
		drove/time.Duration(n))
}

// begin makes the users and their groups, and the phones, which are not connected yet.
func (l *load) begin() {
	l.t.Helper()
	debug.SetGCPercent(400) // it is not the test that is measured
	var g errgroup.Group
	g.SetLimit(16)
	for i := range *loadUsers {
		p := &loadPhone{id: i}
		l.phones = append(l.phones, p)
		g.Go(func() error {
			p.token = l.account("users/u" + strconv.Itoa(i))
			l.must("PUT", p.path(), nil)
			return nil
		})
	}
	g.Wait()
	var err error
	if l.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		l.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.read()
	}()
	l.t.Cleanup(func() { <-ended })
}

// run pushes at the rate for a time, whatever the service makes of it, while users leave and join
// again. It returns how long the leaves took, in ascending order.
func (l *load) run(d time.Duration) []time.Duration {
	ctx, cancel := context.WithTimeout(l.t.Context(), d)
	defer cancel()
	var g errgroup.Group
	batch := max(1, *loadRate/100) // a request takes the pushes of 10 ms
	began := time.Now()
	g.Go(func() error {
		for i := 0; ; i++ {
			due := time.Duration(i*batch) * time.Second / time.Duration(*loadRate)
			pause(ctx, time.Until(began.Add(due)))
			if ctx.Err() != nil {
				return nil
			}
			l.mu.Lock()
			first := len(l.made)
			l.made = append(l.made, make([]loadPush, batch)...)
			l.mu.Unlock()
			g.Go(func() error {
				l.pushBatch(first, batch)
				return nil
			})
		}
	})
	var leaves []time.Duration // guarded by l.mu
	for _, i := range rand.Perm(len(l.phones)) {
		g.Go(func() error {
			if d, ok := l.leaveAndJoin(l.phones[i]); ok {
				l.mu.Lock()
				leaves = append(leaves, d)
				l.mu.Unlock()
			}
			return nil
		})
		if pause(ctx, 100*time.Millisecond); ctx.Err() != nil {
			break
		}
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
func (l *load) pushBatch(first, n int) {
	list := make([]push, n)
	for i := range list {
		list[i] = push{To: "groups/g" + strconv.Itoa((first+i)%l.groups()), QoS: loadQoS,
			Body: fmt.Sprintf("%d/%d", first+i, time.Now().UnixNano())}
	}
	began := time.Now()
	results, status := l.tryPush(list)
	took := time.Since(began)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range n {
		l.made[first+i] = loadPush{began, took, i < len(results) && results[i].Error == "",
			status == http.StatusServiceUnavailable}
	}
}

// leaveAndJoin takes somebody out of the group for a second, and says how long it took until the
// answer. From then on nothing new may come. ok is false if the service was killed meanwhile.
func (l *load) leaveAndJoin(p *loadPhone) (took time.Duration, ok bool) {
	began := time.Now()
	status, _ := l.try("DELETE", p.path(), nil)
	now := time.Now()
	s := span{begin: began}
	if status != 0 {
		s.certain = now
		if status != http.StatusNoContent {
			l.t.Errorf("a leave was answered with %d", status)
		}
	}
	l.mu.Lock()
	p.spans = append(p.spans, s)
	l.mu.Unlock()
	for range 100 {
		pause(l.t.Context(), time.Second)
		back := time.Now()
		if again, _ := l.try("PUT", p.path(), nil); again != 0 {
			l.mu.Lock()
			last := &p.spans[len(p.spans)-1]
			last.back, last.end = back, time.Now()
			l.mu.Unlock()
			break
		}
	}
	return now.Sub(began), status != 0
}

// settle waits until each phone has got what it has to get.
func (l *load) settle() {
	l.t.Helper()
	l.wait(func() bool {
		missing, _, _ := l.compare()
		return missing == 0
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
		pause(late, 50*time.Millisecond)
	}
}

func (l *load) received() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deliveries
}

func (l *load) compare() (missing, doubled, late int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.phones {
		m, d, x := p.compare(l)
		missing, doubled, late = missing+m, doubled+d, late+x
	}
	return missing, doubled, late
}

// check compares what came with what was acknowledged.
func (l *load) check() {
	l.t.Helper()
	missing, doubled, late := l.compare()
	if missing > 0 || late > 0 || *loadQoS == 2 && doubled > 0 {
		l.t.Errorf("%d deliveries are missing, %d came twice, %d came after a leave", missing,
			doubled, late)
	}
	l.t.Logf("%d missing, %d doubled, %d after a leave", missing, doubled, late)
}
