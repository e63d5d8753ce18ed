// Package mqtttest is a broker for the tests of programs that speak MQTT. It is what
// net/http/httptest is for HTTP.
//
//	func TestSensor(t *testing.T) {
//		b := mqtttest.NewBroker(t)
//		s := sensor.Start(b.URL()) // the code under test, with whatever client library it uses
//		defer s.Stop()
//		b.WaitFor(t, "sensors/+/temperature", mqtttest.Payload("21.5"))
//	}
//
// NewBroker returns a running broker, which ends with the test. It records every packet: a wait
// that fails prints the packets of the connections concerned. When the test ends, the broker is
// closed. The test then fails if a goroutine of the broker still runs, or if something went wrong
// that the test did not check: a panic in a hook, or a client that broke the protocol. See
// [Broker.Failures].
//
// # Virtual time
//
// In a testing/synctest bubble everything runs in the bubble's time: Keep Alive, expiry of sessions
// and messages, Will delays, $SYS intervals, write timeouts and the faults below. An hour passes at
// once. Connections must come from [Broker.Dial] or [Broker.Listener], which work in memory.
// Sockets, and so [Broker.URL], do not work in a bubble.
//
// # Faults
//
// [Broker.Inject] makes things go wrong, for all connections or for those of one client or
// listener: see [Fault]. [Broker.Restart], [Broker.RestartEmpty] and [Broker.Stop] stop the whole
// broker.
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
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// An Option changes how NewBroker configures the broker. The zero Option changes nothing.
type Option struct{ apply func(*options) }

type options struct {
	cfg     dunlin.Config
	open    func() (store.Store, error)
	timeout time.Duration
	verbose bool
}

// Config changes the configuration of the broker. f gets a configuration with Authenticator
// hooks.AllowAll and a Logger that writes warnings and errors to the test's output.
func Config(f func(c *dunlin.Config)) Option {
	return Option{func(o *options) { f(&o.cfg) }}
}

// Store sets the Store of the broker. open is called at each start, also by Start and Restart. The
// broker closes the Store when it ends. Without this option, and without a Store in the
// configuration, the broker has a store in memory.
func Store(open func() (store.Store, error)) Option {
	return Option{func(o *options) { o.open = open }}
}

// Timeout is how long the Wait methods, and Want of a Client, wait before they fail. The default is
// 15 s. It is longer than 10 s, the usual pause of a client library between two attempts to
// connect. In a bubble it is time of the bubble, which passes at once when nothing else happens. To
// wait for something later, such as a Will after 30 s, sleep that long first, or give a longer
// Timeout. In a bubble neither takes real time.
func Timeout(d time.Duration) Option {
	return Option{func(o *options) { o.timeout = d }}
}

// Verbose writes each packet to the test's output as it passes.
func Verbose() Option {
	return Option{func(o *options) { o.verbose = true }}
}

// A Broker is a dunlin.Broker under test conditions. Its methods may be called concurrently.
// Methods that can fail the test may be called only by the goroutine that runs the test.
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
	clients   map[string]*presence // by Client Identifier
	// Filters of the Subscriptions of the program under test, by the identifiers of their Sessions.
	programs map[string]map[string]bool
	messages record
	system   record // those on topics that begin with "$", so that they do not push out the others
	faults   []*Injection
	failures []string
	closed   bool
}

// presence is what the Broker knows about a client.
type presence struct{ connections, connects int }

var brokers atomic.Uint64 // for labels

// NewBroker returns a running broker. It is closed when the test ends, after the functions that the
// test has registered with Cleanup since this call. NewBroker fails the test at once if the
// configuration is invalid.
func NewBroker(t testing.TB, opts ...Option) *Broker {
	t.Helper()
	b := &Broker{
		t: t, label: strconv.FormatUint(brokers.Add(1), 10), bubble: inBubble(),
		started: time.Now(),
		memory:  listeners.NewMemory(), changed: make(chan struct{}),
		clients: make(map[string]*presence),
	}
	b.o.timeout = 15 * time.Second
	b.o.cfg = dunlin.Config{
		Authenticator: hooks.AllowAll,
		Logger: slog.New(slog.NewTextHandler(t.Output(),
			&slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, o := range opts {
		if o.apply != nil {
			o.apply(&b.o)
		}
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

// inBubble says whether the calling goroutine is in a synctest bubble. The state of a goroutine is
// the only thing that shows it without side effects. A test of this package checks that it does.
func inBubble() bool {
	var head [128]byte
	line, _, _ := bytes.Cut(head[:runtime.Stack(head[:], false)], []byte("\n"))
	return bytes.Contains(line, []byte("synctest bubble"))
}

// Broker returns the dunlin.Broker. After Restart it is a different one. It is nil while the broker
// is stopped.
func (b *Broker) Broker() *dunlin.Broker {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.core
}

// Dial connects in memory. It fails only after the end of the test.
func (b *Broker) Dial() (net.Conn, error) { return b.memory.Dial() }

// Listener returns the listener behind Dial. Its DialContext is a dialer function. Restart does not
// replace it.
func (b *Broker) Listener() *listeners.Memory { return b.memory }

// URL returns "mqtt://" and an address on the loopback interface. The broker listens there from the
// first call on, also after a restart.
func (b *Broker) URL() string {
	b.t.Helper()
	if b.bubble {
		b.t.Fatal("mqtttest: URL is a TCP socket, for which a synctest bubble cannot wait; use " +
			"Dial or Listener().DialContext")
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

// Serve serves the connections of another listener, such as one for TLS or WebSocket. It closes the
// listener when the test ends. It does not block.
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

// goLabelled starts a goroutine with the label of this broker. The goroutines that it starts carry
// the label too. end waits for the goroutine.
func (b *Broker) goLabelled(f func()) {
	b.running.Add(1)
	labels := pprof.Labels("mqtttest", b.label)
	go pprof.Do(context.Background(), labels, func(context.Context) { // end waits for it
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
				b.failures = append(b.failures,
					fmt.Sprintf("the listener %v has ended: %v", l.Addr(), err))
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

// Stop ends the broker as a crash would: connections break off without a DISCONNECT, and new ones
// are closed at once.
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

// reopen returns a function that opens the store again and again. The store is open at first. It
// can be opened again only if it has a method for it, as store/memory has.
func reopen(s store.Store) func() (store.Store, error) {
	first := true
	return func() (store.Store, error) {
		if first {
			first = false
			return s, nil
		}
		x, ok := s.(interface{ Open() error })
		if !ok {
			return nil, fmt.Errorf(
				"a %T cannot be opened again: give NewBroker the option Store rather than a "+
					"Store in its configuration", s)
		}
		return s, x.Open()
	}
}

// Start starts a stopped broker again, with the same configuration and the content of its store. It
// does nothing if the broker is running.
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
		pprof.Do(context.Background(), pprof.Labels("mqtttest", b.label), func(context.Context) {
			core, err = dunlin.New(cfg)
		})
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

// Restart is Stop and Start. The new broker has the content of the store: Sessions that outlive
// their connection, with their subscriptions and their queued messages of QoS 1 and 2, and retained
// messages. Without the option Store this works too, because the broker then has a store in memory.
// Connections, Sessions that end with them, and queued messages of QoS 0 are lost. RestartEmpty
// loses everything.
func (b *Broker) Restart() {
	b.t.Helper()
	b.Stop()
	b.Start()
}

// RestartEmpty is Restart with an empty store: sessions, subscriptions and retained messages are
// lost. It fails the test if the test gave the store with the option Store. Empty your own store
// yourself, between Stop and Start.
func (b *Broker) RestartEmpty() {
	b.t.Helper()
	if !b.forgetful {
		b.t.Fatal("mqtttest: RestartEmpty with a store that the test has given: empty it between " +
			"Stop and Start")
	}
	b.Stop()
	b.o.open = reopen(new(memory.Store))
	b.Start()
}

// end closes everything, and fails the test for goroutines and failures that are left.
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
		b.t.Errorf("mqtttest: the test did not look at these failures (see Broker.Failures):\n%s",
			strings.Join(f, "\n"))
	}
}

// leaked returns the stacks of the goroutines of this broker that still run after they had time to
// end. They carry its label. A hook passes the label to the goroutines that it starts, for instance
// to those of an HTTP client's idle connections. These are not leaks.
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

// ofTheBroker says whether a goroutine, in the form of a goroutine profile, runs a function of the
// broker or of the program under test. A goroutine that runs only the standard library and our
// hooks belongs to a client that keeps it for its next call.
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
		if (mine || strings.Contains(first, ".")) &&
			!strings.HasPrefix(pkg, "github.com/dunlin-mqtt/dunlin/hooks") {
			return true
		}
	}
	return false
}

// Failures returns the failures so far that no earlier call has returned, one text each. Failures
// are panics in hooks, listeners that broke, and connections that the broker ended because the
// client broke the protocol, with their packets. A connection with an injected fault does not
// count. Neither does a connection whose end a Client has seen by WantClosed or by a Want for
// DISCONNECT. Failures that nobody has fetched at the end of the test fail it.
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

// observer returns the Observer that records messages, clients and subscriptions.
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
		Connected:    func(e hooks.Connected) { present(e.Client.ID, 1) },
		Disconnected: func(e hooks.Disconnected) { present(e.Client.ID, -1) },
		Subscribed: func(e hooks.Subscribed) {
			b.program(func() {
				if of := b.programs[e.Client.ID]; of != nil {
					of[e.Filter] = true
				} else if strings.HasPrefix(e.Client.ID, ownSession) {
					b.programs[e.Client.ID] = map[string]bool{e.Filter: true}
				}
			})
		},
		Unsubscribed: func(e hooks.Unsubscribed) {
			b.program(func() { delete(b.programs[e.Client.ID], e.Filter) })
		},
		SessionEnded: func(e hooks.SessionEnded) {
			b.program(func() { delete(b.programs, e.Client.ID) })
		},
		Published: func(e hooks.Published) { b.record(e.Message.Clone()) },
		Panicked: func(e hooks.Panicked) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.failures = append(b.failures,
				fmt.Sprintf("panic while serving client %q: %v", e.Client.ID, e.Value))
		},
	}
}

// ownSession is the beginning of the identifier of each Subscription of the program.
const ownSession = "$local/"

// program updates the known subscriptions and Sessions of the program, and wakes all waits.
func (b *Broker) program(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	b.notify()
}

// notify wakes all waits. mu is held.
func (b *Broker) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// wrapAuth applies the fault Refuse before the Authenticators of the configuration.
func (b *Broker) wrapAuth() {
	if next := b.o.cfg.Authenticator; next != nil {
		b.o.cfg.Authenticator = hooks.AuthenticatorFunc(func(ctx context.Context,
			r *hooks.ConnectRequest) error {
			if err := refusal(ctx); err != nil {
				return err
			}
			return next.Authenticate(ctx, r)
		})
	}
	methods := make(map[string]hooks.EnhancedAuthenticator, len(b.o.cfg.EnhancedAuth))
	for name, next := range b.o.cfg.EnhancedAuth {
		methods[name] = hooks.EnhancedAuthenticatorFunc(func(ctx context.Context,
			r *hooks.ConnectRequest) (hooks.Exchange, error) {
			if err := refusal(ctx); err != nil {
				return nil, err
			}
			return next.Start(ctx, r)
		})
	}
	b.o.cfg.EnhancedAuth = methods
}
