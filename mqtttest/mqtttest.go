// Package mqtttest is a broker for the tests of programs that speak MQTT, as net/http/httptest is a server for those that speak HTTP.
//
//	func TestSensor(t *testing.T) {
//		b := mqtttest.NewBroker(t)
//		s := sensor.Start(b.URL()) // the code under test, with whatever client library it uses
//		defer s.Stop()
//		b.WaitFor(t, "sensors/+/temperature", mqtttest.Payload("21.5"))
//	}
//
// NewBroker returns a broker that runs and that ends with the test. It records what passes: a wait that fails prints the packets of the
// connections concerned. When the test ends the broker is closed, and the test fails if a goroutine of it is left, or if something went
// wrong that the test did not look at: a panic in a hook, a client that broke the protocol. See [Broker.Failures].
//
// # Virtual time
//
// In a testing/synctest bubble everything runs in the bubble's time: Keep Alive, expiry of sessions and messages, Will delays, $SYS
// intervals, write timeouts and the faults below. An hour passes in no time. The connections must be those of [Broker.Dial], or
// [Broker.Listener], which are in memory; sockets, and so [Broker.URL], do not go together with a bubble.
//
// # Faults
//
// [Broker.Inject] makes things go wrong, for all connections or for those of one client or listener: see [Fault]. [Broker.Restart],
// [Broker.RestartEmpty] and [Broker.Stop] are the larger accidents.
package mqtttest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// An Option changes how NewBroker sets the broker up.
type Option func(*options)

type options struct {
	cfg     dunlin.Config
	open    func() (store.Store, error)
	timeout time.Duration
	verbose bool
}

// Config changes the configuration of the broker: f gets one with Authenticator hooks.AllowAll and a Logger that writes warnings and errors
// to the test's output.
func Config(f func(c *dunlin.Config)) Option {
	return func(o *options) { f(&o.cfg) }
}

// Store says where the broker keeps what has to outlive it: open is called at each start, also those of Start and Restart, and the broker
// closes what it returns when it ends. Without this option, and without a Store in the configuration, that is a store in memory which
// belongs to the test's broker.
func Store(open func() (store.Store, error)) Option {
	return func(o *options) { o.open = open }
}

// Timeout is how long the Wait methods, and Want of a Client, wait before they fail. Default 10 s. In a bubble that is 10 s of the bubble's
// time, which pass at once when nothing else happens: for what comes later, such as a Will after 30 s, sleep so long first, or give a longer
// Timeout, which costs nothing there.
func Timeout(d time.Duration) Option {
	return func(o *options) { o.timeout = d }
}

// Verbose writes each packet to the test's output as it passes.
func Verbose() Option {
	return func(o *options) { o.verbose = true }
}

// A Broker is a dunlin.Broker under test conditions. Its methods may be called concurrently, but those that can fail the test only by the
// goroutine that runs it.
type Broker struct {
	// Immutable.
	t         testing.TB
	o         options
	label     string
	bubble    bool // made inside a synctest bubble
	started   time.Time
	memory    *listeners.Memory
	forgetful bool // the store is our own: RestartEmpty may replace it

	running sync.WaitGroup // accept loops and connections

	// Guarded by mu. It is held neither across calls of the broker nor across I/O.
	mu        sync.Mutex
	core      *dunlin.Broker // nil: stopped
	tcp       net.Listener   // nil until URL is called
	listeners []net.Listener
	links     []*link
	dialed    int // links so far
	changed   chan struct{}
	clients   map[string]*presence       // by Client Identifier
	programs  map[string]map[string]bool // filters of the Subscriptions of the program that is tested, by their identifiers
	messages  record
	system    record // those on topics that begin with "$", so that they do not push out the others
	faults    []*Injection
	failures  []string
	closed    bool
}

// presence is what is known of a client.
type presence struct{ connections, connects int }

var brokers atomic.Uint64 // for labels

// NewBroker returns a broker that is running. It is closed when the test ends, after what the test has registered with Cleanup since.
// It fails the test at once if the configuration makes no sense.
func NewBroker(t testing.TB, opts ...Option) *Broker {
	t.Helper()
	b := &Broker{
		t: t, label: strconv.FormatUint(brokers.Add(1), 10), bubble: inBubble(), started: time.Now(),
		memory: listeners.NewMemory(), changed: make(chan struct{}), clients: make(map[string]*presence),
	}
	b.o.timeout = 10 * time.Second
	b.o.cfg = dunlin.Config{
		Authenticator: hooks.AllowAll,
		Logger:        slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, o := range opts {
		o(&b.o)
	}
	switch given := b.o.cfg.Store; {
	case b.o.open != nil && given != nil:
		t.Fatal("mqtttest: there is a Store in the configuration, and an option Store")
	case b.o.open == nil && given != nil:
		b.o.open = reopen(given)
	case b.o.open == nil:
		b.forgetful = true
		b.o.open = reopen(new(memory.Store))
	}
	b.o.cfg.Observer = hooks.Join(b.o.cfg.Observer, b.observer())
	b.wrapAuth()
	b.Start()
	b.Serve(b.memory)
	t.Cleanup(b.end)
	return b
}

// inBubble says whether the calling goroutine is in a synctest bubble. A goroutine's state is the only place that tells without
// side effects; a test of ours holds that.
func inBubble() bool {
	var head [128]byte
	line, _, _ := bytes.Cut(head[:runtime.Stack(head[:], false)], []byte("\n"))
	return bytes.Contains(line, []byte("synctest bubble"))
}

// Broker returns the broker itself; after Restart it is another one. Nil while it is stopped.
func (b *Broker) Broker() *dunlin.Broker {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.core
}

// Dial connects in memory. It fails only after the test.
func (b *Broker) Dial() (net.Conn, error) { return b.memory.Dial() }

// Listener returns the listener behind Dial, whose DialContext fits where a dialer function is wanted. It stays the same when the broker is
// restarted.
func (b *Broker) Listener() *listeners.Memory { return b.memory }

// URL returns "mqtt://" and an address on the loopback interface, where the broker listens from the first call on; also after a restart.
func (b *Broker) URL() string {
	b.t.Helper()
	if b.bubble {
		b.t.Fatal("mqtttest: URL is a TCP socket, for which a synctest bubble cannot wait; use Dial or Listener().DialContext")
	}
	b.mu.Lock()
	l := b.tcp
	b.mu.Unlock()
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			b.t.Fatalf("mqtttest: %v", err)
		}
		b.mu.Lock()
		if b.tcp == nil {
			b.tcp = l
			b.mu.Unlock()
			b.Serve(l)
		} else { // somebody was faster
			l.Close()
			l = b.tcp
			b.mu.Unlock()
		}
	}
	return "mqtt://" + l.Addr().String()
}

// Serve takes the connections of another listener, such as one for TLS or WebSocket, until the test ends, and closes it then. It does not
// block.
func (b *Broker) Serve(l net.Listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		l.Close()
		return
	}
	b.listeners = append(b.listeners, l)
	b.goLabelled(func() { b.accept(l) })
}

// goLabelled starts a goroutine that end waits for, and that can be told from others, with all that it starts.
func (b *Broker) goLabelled(f func()) {
	b.running.Add(1)
	go pprof.Do(context.Background(), pprof.Labels("mqtttest", b.label), func(context.Context) { // end waits for it
		defer b.running.Done()
		f()
	})
}

func (b *Broker) accept(l net.Listener) {
	for {
		nc, err := l.Accept()
		b.mu.Lock()
		if err != nil {
			if !b.closed {
				b.failures = append(b.failures, fmt.Sprintf("the listener %v has ended: %v", l.Addr(), err))
			}
			b.mu.Unlock()
			return
		}
		core := b.core
		if b.closed || core == nil {
			b.mu.Unlock()
			nc.Close()
			continue
		}
		b.dialed++
		k := newLink(b, nc, l, b.dialed)
		b.links = append(b.links, k)
		if len(b.links) > maxLinks {
			b.links = append(b.links[:0], b.links[1:]...)
		}
		b.goLabelled(func() { k.serve(core) })
		b.mu.Unlock()
	}
}

// Stop ends the broker as a crash would: connections break off without a word, and new ones are closed as soon as they are made.
func (b *Broker) Stop() {
	b.mu.Lock()
	core := b.core
	b.core = nil
	b.mu.Unlock()
	if core == nil {
		return
	}
	if err := core.Close(); err != nil {
		b.mu.Lock()
		b.failures = append(b.failures, fmt.Sprintf("closing the store: %v", err))
		b.mu.Unlock()
	}
}

// reopen returns a function that opens a store that is open the first time, and can be opened again if it has such a method, as
// store/memory has.
func reopen(s store.Store) func() (store.Store, error) {
	first := true
	return func() (store.Store, error) {
		if first {
			first = false
			return s, nil
		}
		x, ok := s.(interface{ Open() error })
		if !ok {
			return nil, fmt.Errorf("a %T cannot be opened again: give NewBroker the option Store rather than a Store in its configuration", s)
		}
		return s, x.Open()
	}
}

// Start starts a stopped broker again, with the same configuration and what its store holds. It does nothing if it is running.
func (b *Broker) Start() {
	b.t.Helper()
	if b.Broker() != nil {
		return
	}
	cfg := b.o.cfg
	var core *dunlin.Broker
	st, err := b.o.open()
	if err == nil {
		cfg.Store = st
		pprof.Do(context.Background(), pprof.Labels("mqtttest", b.label), func(context.Context) { core, err = dunlin.New(cfg) })
		if err != nil {
			st.Close()
		}
	}
	if err != nil {
		b.t.Fatalf("mqtttest: %v", err)
	}
	b.mu.Lock()
	b.core, b.programs = core, make(map[string]map[string]bool)
	b.notify()
	b.mu.Unlock()
}

// Restart is Stop and Start. Without a store in its configuration the broker has forgotten everything then: sessions, subscriptions,
// retained messages.
func (b *Broker) Restart() {
	b.t.Helper()
	b.Stop()
	b.Start()
}

// RestartEmpty is Restart with an empty store: sessions, subscriptions and retained messages are forgotten. It fails the test if the
// store is not the broker's own; empty yours by yourself, between Stop and Start.
func (b *Broker) RestartEmpty() {
	b.t.Helper()
	if !b.forgetful {
		b.t.Fatal("mqtttest: RestartEmpty with a store that the test has given: empty it between Stop and Start")
	}
	b.Stop()
	b.o.open = reopen(new(memory.Store))
	b.Start()
}

// end closes everything and makes the test fail for what is left.
func (b *Broker) end() {
	b.t.Helper()
	b.mu.Lock()
	b.closed = true
	ls := b.listeners
	for _, in := range b.faults {
		in.lift()
	}
	b.faults = nil
	b.mu.Unlock()
	for _, l := range ls {
		l.Close()
	}
	b.Stop()
	b.running.Wait()
	if left := b.leaked(); left != "" {
		b.t.Errorf("mqtttest: goroutines of the broker are left after the test:\n%s", left)
	}
	if f := b.Failures(); len(f) > 0 {
		b.t.Errorf("mqtttest: the test did not look at these failures (see Broker.Failures):\n%s", strings.Join(f, "\n"))
	}
}

// leaked returns the stacks of the goroutines of this broker, once they have had time to end. They carry its label. A hook that the broker
// calls hands the label on to the goroutines that it starts: those of an HTTP client's idle connections, too, which nobody has forgotten.
func (b *Broker) leaked() (stacks string) {
	label := fmt.Sprintf("%q:%q", "mqtttest", b.label)
	for wait := time.Millisecond; ; wait *= 2 {
		var all bytes.Buffer
		pprof.Lookup("goroutine").WriteTo(&all, 1) // a Buffer takes everything
		stacks = ""
		for part := range strings.SplitSeq(all.String(), "\n\n") {
			if strings.Contains(part, label) && ofTheBroker(part) {
				stacks += part + "\n"
			}
		}
		if stacks == "" || wait > time.Second {
			return stacks
		}
		time.Sleep(wait)
	}
}

// ofTheBroker says whether a goroutine runs a function of the broker, or of the program that is tested, in the form of a goroutine
// profile. One that runs nothing but the standard library and our hooks is kept by a client of theirs for the next call.
func ofTheBroker(stack string) bool {
	for line := range strings.Lines(stack) {
		fields := strings.Split(line, "\t") // "#", address, function, empty, file
		if len(fields) < 3 {
			continue
		}
		slash := strings.LastIndexByte(fields[2], '/') + 1
		name, _, _ := strings.Cut(fields[2][slash:], ".")
		pkg := fields[2][:slash] + name
		first, _, _ := strings.Cut(pkg, "/")
		program, _ := debug.ReadBuildInfo()
		mine := program != nil && strings.HasPrefix(pkg+"/", program.Main.Path+"/")
		if (mine || strings.Contains(first, ".")) && !strings.HasPrefix(pkg, "github.com/dunlin-mqtt/dunlin/hooks") {
			return true
		}
	}
	return false
}

// Failures returns what went wrong so far and no earlier call has returned, one text each: panics in hooks, listeners that broke, and
// connections that the broker ended because of what the client sent, with their packets. A connection with a fault injected does not
// count, nor one whose end a Client has seen by WantClosed or a Want for DISCONNECT. What is left at the end of the test fails it.
func (b *Broker) Failures() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.failures
	b.failures = nil
	for _, k := range b.links {
		if f := k.failure(); f != "" {
			all = append(all, f)
		}
	}
	return all
}

// observer returns the Observer that keeps the records.
func (b *Broker) observer() *hooks.Observer {
	present := func(id string, by int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		p := b.clients[id]
		if p == nil {
			p = new(presence)
			b.clients[id] = p
		}
		p.connections += by
		p.connects += max(by, 0)
		b.notify()
	}
	return &hooks.Observer{
		Connected:    func(c *hooks.Client, _ bool) { present(c.ID, 1) },
		Disconnected: func(c *hooks.Client, _ packets.ReasonCode, _ error) { present(c.ID, -1) },
		Subscribed: func(c *hooks.Client, filter string, _ packets.QoS) {
			b.program(func() {
				if of := b.programs[c.ID]; of != nil {
					of[filter] = true
				} else if strings.HasPrefix(c.ID, ownSession) {
					b.programs[c.ID] = map[string]bool{filter: true}
				}
			})
		},
		Unsubscribed: func(c *hooks.Client, filter string) { b.program(func() { delete(b.programs[c.ID], filter) }) },
		SessionEnded: func(id string) { b.program(func() { delete(b.programs, id) }) },
		Published:    func(_ *hooks.Client, m *packets.Message, _ int) { b.record(m) },
		Panicked: func(c *hooks.Client, v any) {
			b.mu.Lock()
			defer b.mu.Unlock()
			id := ""
			if c != nil {
				id = c.ID
			}
			b.failures = append(b.failures, fmt.Sprintf("panic while serving client %q: %v", id, v))
		},
	}
}

// ownSession is how the identifier of a Subscription of the program begins.
const ownSession = "$local/"

// program changes what is known of subscriptions and sessions, and wakes who waits.
func (b *Broker) program(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	b.notify()
}

// notify wakes who waits. mu is held.
func (b *Broker) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// wrapAuth puts the fault Refuse in front of the authentication.
func (b *Broker) wrapAuth() {
	if next := b.o.cfg.Authenticator; next != nil {
		b.o.cfg.Authenticator = hooks.AuthenticatorFunc(func(ctx context.Context, r *hooks.ConnectRequest) error {
			if err := refusal(ctx); err != nil {
				return err
			}
			return next.Authenticate(ctx, r)
		})
	}
	methods := make(map[string]hooks.EnhancedAuthenticator, len(b.o.cfg.EnhancedAuth))
	for name, next := range b.o.cfg.EnhancedAuth {
		methods[name] = hooks.EnhancedAuthenticatorFunc(func(ctx context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
			if err := refusal(ctx); err != nil {
				return nil, err
			}
			return next.Start(ctx, r)
		})
	}
	b.o.cfg.EnhancedAuth = methods
}
