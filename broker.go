// Package dunlin is an MQTT broker (a Server, in the standard's word) that other programs import.
// It speaks MQTT 3.1, 3.1.1 and 5.0.
//
// # Usage
//
//	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
//	...
//	l, err := net.Listen("tcp", "127.0.0.1:1883")
//	...
//	err = b.Serve(l)
//
// Any net.Listener will do: TCP, TLS, a unix socket, one of package listeners. ServeConn serves one
// connection that the caller has accepted. The program itself takes part with Publish and
// Subscribe.
//
// # Delivery guarantees
//
// A PUBACK or PUBREC is sent when the message is in the queue of every Session that it matches. QoS
// 1 messages arrive at least once and QoS 2 messages exactly once, in the order of each publisher
// and topic, as long as the Session lasts and its queue is not full. QoS 0 messages are dropped
// where a client does not keep up, and counted.
//
// With a Store (Config.Store) this holds across a crash for Sessions with a Session Expiry
// Interval. Then PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK and the CONNACK of such a Session leave,
// and Publish returns, when what they stand for is durable; a message that was published at QoS 2
// goes to subscribers only then. Retained messages, but for those of $SYS, are durable before the
// PUBACK. Many commits that fall due together are one. What only concerns Sessions that end with
// their connection, and QoS 0, does not wait for the Store. Not kept are: queued QoS 0 messages
// (Config.QueueQoS0), how far the retained messages for a new subscription have been sent, the
// roles and attributes of an identity, and in-process Subscriptions without a Name.
//
// While the Store fails nothing is acknowledged that needs it: publishes get Quota exceeded (0x97)
// if there is no room, and Implementation specific error (0x83) otherwise, clients older than 5.0
// are disconnected, and Healthy and the Observer tell. All else goes on. A message that was refused
// may have reached some subscribers at QoS 1. Where there was no room, service resumes when there
// is.
//
// # Limits
//
// Everything is bounded; each bound is a field of Config with its default.
//
// # Shutdown
//
// Shutdown tells the clients and flushes what is on its way; Close does not wait. After either no
// goroutine of the Broker is left, unless the error is ErrStillClosing: a hook or another function
// that the Broker calls cannot wait for its end.
//
// # Concurrency
//
// All methods of Broker and Subscription may be called by several goroutines. An idle connection
// costs one goroutine.
package dunlin

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"net"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/given"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/logins"
	"github.com/dunlin-mqtt/dunlin/internal/loop"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/safelog"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Names of package packets that callers of Publish and Subscribe need.
type (
	// Message is an Application Message.
	Message = packets.Message
	// QoS is a Quality of Service.
	QoS = packets.QoS
	// ReasonCode is a Reason Code of the standard.
	ReasonCode = packets.ReasonCode
)

// Version is the version of this package, as $SYS/broker/version has it.
const Version = "0.1.0"

// ErrBrokerClosed is returned by Serve, ServeConn, Publish and Subscribe after Shutdown or Close.
var ErrBrokerClosed = errors.New("dunlin: broker closed")

// A Broker is an MQTT Server. Its methods may be called concurrently.
//
// The locks of the root package are listed below Broker, in the order in which they are taken.
type Broker struct {
	// Immutable after New.
	log        *slog.Logger
	obs        *hooks.Observer
	authorizer hooks.Authorizer // nil where everything is allowed
	ctx        context.Context  // ends with the Broker
	cancel     context.CancelFunc
	seed       maphash.Seed
	started    time.Time

	rules   rules
	due     *timers.Timers
	journal *records // nil: there is no Store
	stats   counters
	closing closing

	// Each of these parts is defined beside the code that works with it, and says what guards it.
	configuration
	registry
	receivers
	retention
	defences
	goroutines
}

// goroutines counts the goroutines of a Broker, and holds what they share.
type goroutines struct {
	turns      sync.Pool
	yielding   atomic.Int32   // turns in yield
	serving    sync.WaitGroup // readers, and Serve
	writers    sync.WaitGroup // writer goroutines and other short ones
	responders sync.WaitGroup // the goroutines of Respond
	startLoops sync.Once
	loops      *loop.Loops // nil: none were started. Written by startLoops
	// Hooks, an Observer or a Store take part when clients come, subscribe and go. Immutable
	callsOut bool
	// Hooks or a Store take part when clients publish. Immutable
	publishWaits bool
}

// The locks, in the order in which a goroutine takes them. It holds at most one of each kind, and
// only one of the leaves. It holds none during I/O (also Close and the deadlines of a net.Conn),
// during a decision of a hook, a line of the log or a call of the Store, and while it waits for
// another goroutine. The build with the tag lockcheck ends the program where this is violated.
type (
	reconfigureLock struct{} // Broker.reconfiguring

	topicLock   struct{} // Broker.topics, see topicLocks
	sessionLock struct{} // session.mu

	// Of these one at a time, and only a leaf after it, such as that of the timers. The locks of
	// retained.Store and given.Table belong here as well.
	routesLock  struct{} // routeCaches.mu
	numbersLock struct{} // Broker.numbers

	// The leaves. journal.Journal, subs.Tree, timers.Timers, logins.Table and owners.Table have
	// some of their own.
	brokerLock  struct{} // Broker.mu
	recordsLock struct{} // records.mu
	receiptLock struct{} // receipt.mu
	walkersLock struct{} // walkers.mu
)

func (reconfigureLock) Rank() lock.Rank {
	return lock.Rank{Order: 0, Name: "Broker.reconfiguring"}
}
func (topicLock) Rank() lock.Rank   { return lock.Rank{Order: 1, Name: "a lock of topics"} }
func (sessionLock) Rank() lock.Rank { return lock.Rank{Order: 2, Name: "session.mu"} }
func (routesLock) Rank() lock.Rank {
	return lock.Rank{Order: lock.BeforeLeaf, Name: "routeCaches.mu"}
}
func (numbersLock) Rank() lock.Rank {
	return lock.Rank{Order: lock.BeforeLeaf, Name: "Broker.numbers"}
}
func (brokerLock) Rank() lock.Rank  { return lock.Rank{Order: lock.Leaf, Name: "Broker.mu"} }
func (recordsLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "records.mu"} }
func (receiptLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "receipt.mu"} }
func (walkersLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "walkers.mu"} }

// New checks cfg, fills in its defaults, and returns a Broker that serves nothing yet. It must be
// ended with Shutdown or Close.
func New(cfg Config) (*Broker, error) {
	strict := cfg.strictness()
	cfg.detach()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	b := &Broker{
		log:        safelog.Logger(slog.New(lock.Handler(cfg.Logger.Handler()))),
		authorizer: cfg.Authorizer,
		seed:       maphash.MakeSeed(), started: time.Now(),
		due:      timers.New(),
		registry: newRegistry(),
		closing:  closing{quiet: make(chan struct{}), ended: make(chan struct{})},
	}
	b.stats.times = newTimes()
	b.due.Late = func(d time.Duration) { b.stats.late.Add(int64(d)) }
	b.byNumber = make([]*session, 1) // 0 is nobody
	b.sysChanged = make(chan struct{}, 1)
	b.stats.endings = recent.NewEndings(recent.LimitsFor(cfg.MaxEnded))
	b.stats.drops = recent.NewDrops(recent.LimitsFor(cfg.MaxDrops))
	b.config.Store(&settings{cfg, strict})
	b.observe(*cfg.Observer)
	if cfg.Authorizer == hooks.Authorizer(hooks.AllowAll) {
		b.authorizer = nil
	}
	b.callsOut = !b.cfg().open() || b.authorizer != nil || cfg.Interceptor != nil ||
		cfg.SubscribeInterceptor != nil || cfg.Store != nil || !reflect.ValueOf(*cfg.Observer).IsZero()
	b.publishWaits = b.authorizer != nil || cfg.Interceptor != nil || cfg.Store != nil
	b.logins, b.guard = logins.New(b.cfg().loginLimits()), guard.New(b.cfg().addressLimits())
	b.memory = budget.New(int64(cfg.MaxMemory))
	b.reading.Most = b.memory.Limit() / 100 * partialPercent
	b.tree = subs.New(subs.Limits{
		Overlapping: cfg.MaxOverlapping,
		Fits:        func(n int64) bool { return b.memory.Fits(budget.Subscriptions, n) },
		Count:       func(n int64) { b.memory.Add(budget.Subscriptions, n) },
	})
	b.owners = b.cfg().newOwners()
	b.retained = b.newRetained()
	b.walkers.most = 1 + runtime.GOMAXPROCS(0)/4
	b.given = given.New(giver{b})
	b.learnRules()
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if cfg.Store != nil {
		b.journal = newRecords(b, cfg.Store)
		if err := b.load(); err != nil {
			b.cancel()
			return nil, err
		}
	}
	b.followRules() // when nothing can fail any more
	b.watchRetained()
	b.writers.Go(b.publishSys) // ended by ctx
	return b, nil
}

// Serve accepts connections on l and serves each until it ends. It may be called for several
// listeners. Serve closes l, and always returns a non-nil error: after Shutdown or Close, also one
// before the call, that is ErrBrokerClosed. RemoteAddr of the connections must not wait: a listener
// that learns the address from the first bytes has to read those before Accept returns.
//
// See ServeListener for listeners with rules of their own.
func (b *Broker) Serve(l net.Listener) error { return b.serve(l, nil, plain(l)) }

// ServeListener is Serve for a listener that hooks are to recognize: the Client that they get has
// as for its Listener. So a program can have several listeners with rules of their own:
//
//	public := &hooks.Listener{Name: "public", MaxConnections: 1000}
//	inside := &hooks.Listener{Name: "inside"}
//	go b.ServeListener(l1, public)
//	go b.ServeListener(l2, inside)
//
// The Authenticator then decides by r.Client.Listener, and can lower the limits of the connection
// with its Grant. Several net.Listeners may share one description; its MaxConnections holds for all
// of them together. With nil for as it is Serve.
func (b *Broker) ServeListener(l net.Listener, as *hooks.Listener) error {
	return b.serve(l, b.openDoor(as), plain(l))
}

// serve is Serve. as, nil if l has no description, is closed in the end. plain is about l, see
// there.
func (b *Broker) serve(l net.Listener, as *door, plain bool) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		b.closeDoor(as)
		lock.NoneHeld("Close of a net.Listener")
		l.Close()
		return ErrBrokerClosed
	}
	b.listeners[l] = struct{}{}
	b.serving.Add(1)
	b.mu.Unlock()
	defer b.serving.Done()
	defer b.closeDoor(as) // before Close returns
	defer func() {
		b.mu.Lock()
		delete(b.listeners, l)
		b.mu.Unlock()
		lock.NoneHeld("Close of a net.Listener")
		l.Close()
	}()
	accept, loops := l.Accept, b.loopsFor(plain)
	if loops != nil {
		accept = link.NewAcceptor(l).Accept
	}
	var pause time.Duration
	for {
		lock.NoneHeld("Accept")
		nc, err := accept()
		if err == nil {
			pause = 0
			b.take(nc, as, loops)
			continue
		}
		if b.isClosed() {
			return ErrBrokerClosed
		}
		var temporary interface{ Temporary() bool }
		if !errors.As(err, &temporary) || !temporary.Temporary() {
			return err
		}
		// Out of descriptors, most likely: others will end.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		b.log.Warn("accept failed, trying again", "err", err, "in", pause)
		t := time.NewTimer(pause)
		lock.NoneHeld("a wait")
		select {
		case <-t.C:
		case <-b.ctx.Done():
			t.Stop()
		}
	}
}

// take serves a connection that a listener has accepted, or turns it away. With nil for loops
// it gets a goroutine.
func (b *Broker) take(nc net.Conn, as *door, loops *loop.Loops) {
	c, err := b.adoptFrom(b.ctx, nc, as, loops)
	if err == nil && loops != nil {
		c.sit(loops)
		return
	}
	if err == nil {
		go c.serve() // Shutdown and Close wait for it
		return
	}
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn, interface{ Probe() error }: // the last is a link.TCPConn
		b.turnAway(nc, as, err)
	default:
		// its Close may take time, as that of a WebSocket does: others are to be accepted meanwhile
		b.serving.Go(func() { b.turnAway(nc, as, err) })
	}
}

// sit has loops serve c, which was just taken up.
func (c *conn) sit(loops *loop.Loops) {
	err := loops.Add(&c.seat.Seat, c.nc.Raw, c.seat, c.dueAt())
	if err == nil {
		return
	}
	if !errors.Is(err, net.ErrClosed) {
		c.b.log.Warn("no place on an event loop", "remote", c.nc.RemoteAddr(), "err", err)
	}
	go c.finish(err) // Shutdown and Close wait for it
}

// serve runs the connection, and continues on a fresh goroutine each time that it is about to wait
// after its stack has grown.
func (c *conn) serve() {
	if !c.accepted {
		growStack()
	}
	if c.run(brokersReader) == errAgain {
		c.deep = false
		go c.serve() // the same connection, still waited for
	}
}

var errTurnedAway = errors.New(
	"dunlin: the connection was not taken up: its address is banned or at a limit")

// growStack makes room for what a CONNECT needs while there is next to nothing on the stack to
// move: later, twenty calls deep, that costs a twentieth of the whole connection.
//
//go:noinline
func growStack() {
	var room [2 << 10]byte
	runtime.KeepAlive(&room)
}

// ServeConn serves one connection that the caller accepted, and returns when it has ended. It
// closes nc. The error is nil if the client sent DISCONNECT with Reason Code 0x00, and says
// otherwise why the connection ended. Cancelling ctx ends the connection with Administrative action
// (0x98), and the error then wraps its cause. A connection beyond the limits of Config for
// addresses is closed at once.
func (b *Broker) ServeConn(ctx context.Context, nc net.Conn) error {
	c, err := b.adopt(ctx, nc)
	if err != nil {
		b.turnAway(nc, nil, err)
		if err != ErrBrokerClosed {
			err = errTurnedAway
		}
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		b.endConn(c,
			packets.Errorf(packets.AdministrativeAction, "ended by the server"))
	})
	err = c.run(callersReader)
	if ended := !stop(); ended && err != nil {
		return &packets.Error{Code: packets.AdministrativeAction, Reason: "ended by the server",
			Err: context.Cause(ctx)}
	}
	return err
}

// adopt makes a conn of nc. The error says why nc is not taken up; the caller then turns it away.
func (b *Broker) adopt(ctx context.Context, nc net.Conn) (*conn, error) {
	return b.adoptFrom(ctx, nc, nil, nil)
}

// adoptFrom is adopt for a connection that the listener as has accepted, and that has a place on an
// event loop unless loops is nil.
func (b *Broker) adoptFrom(
	ctx context.Context, nc net.Conn, as *door, loops *loop.Loops,
) (*conn, error) {
	now := time.Now()
	if err := as.enter(); err != nil {
		return nil, err
	}
	from, err := b.admit(nc.RemoteAddr(), now)
	if err != nil {
		as.leave()
		return nil, err
	}
	c := newConn(b, ctx, nc)
	c.from, c.via, c.lastPacket = from, as, now.Sub(b.started)
	if loops != nil {
		c.seat = newSeat(c)
	} else if d := b.cfg().ConnectTimeout; d > 0 {
		nc.SetReadDeadline(now.Add(d))
	}
	class := as.class(b, 0)
	b.mu.Lock()
	switch {
	case b.closed:
		err = ErrBrokerClosed
	default:
		if err = b.enterEarlyLocked(c); err == nil {
			b.serving.Add(1)
			c.serial = b.stats.taken.Add(1)
			c.opened(class)
			c.count(0)
		}
	}
	b.mu.Unlock()
	if err != nil {
		b.guard.Addresses.Dismiss(from, now)
		as.leave()
		return nil, err
	}
	return c, nil
}

// turnAway closes a connection that is not taken up.
func (b *Broker) turnAway(nc net.Conn, as *door, err error) {
	lock.NoneHeld("Close of a net.Conn")
	nc.Close()
	if err == ErrBrokerClosed {
		return
	}
	code := packets.CodeOf(err)
	b.stats.refused[code].Add(1)
	if f := b.obs.Refused; f != nil {
		f(hooks.Refused{Client: as.stranger(nc), Code: code, Err: err})
	}
	b.noteEnding(endedConn{client: as.stranger(nc), code: code, err: err, at: time.Now()})
	b.log.Debug("connection not taken up", "remote", nc.RemoteAddr(), "err", err)
}

// leave is the last thing that a reader does.
func (b *Broker) leave(c *conn, code packets.ReasonCode, err error) {
	if err == errNormal {
		err, code = nil, packets.NormalDisconnection
	}
	b.noteEnd(c, code, err)
	if c.accepted {
		b.stats.ended[code].Add(1)
		if f := b.obs.Disconnected; f != nil {
			at := b.started.Add(c.at)
			f(hooks.Disconnected{Client: c.client, Code: code, Err: err, ConnectedAt: at})
		}
		b.log.Debug("disconnected", "client", c.id(), "code", code, "err", err)
	} else {
		if f := b.obs.Refused; f != nil {
			client := c.clientOrStranger()
			f(hooks.Refused{Client: client, Code: code, Err: err})
		}
		b.stats.refused[code].Add(1)
		b.log.Debug("connection refused", "client", c.id(), "remote", c.nc.RemoteAddr(), "code",
			code, "err", err)
	}
	b.mu.Lock()
	b.leaveEarlyLocked(c)
	delete(b.conns, c)
	b.mu.Unlock()
	b.memory.Recount(budget.Connections, &c.footprint, 0)
	b.guard.Addresses.Dismiss(c.from, time.Now())
	c.class.Open.Add(-1)
	c.via.leave()
	b.closing.left.Add(1)
	b.serving.Done()
}

func (b *Broker) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

func (b *Broker) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// endConn makes a connection end with err. No lock is held.
func (b *Broker) endConn(c *conn, err *packets.Error) {
	b.mu.Lock()
	_, accepted := b.conns[c]
	early := b.dismissLocked(c)
	b.mu.Unlock()
	if early {
		closeAll([]*conn{c})
	}
	if accepted {
		c.sess.mu.Lock()
		c.stop(err)
		c.sess.mu.Unlock()
		c.flush(time.Now())
	}
}

// dismissLocked ends c if it is not accepted yet, and says whether that is so. From now on c gets
// no answer and no Session: what a hook says because its context has ended is no decision. The
// caller holds b.mu, and closes c after it has unlocked that.
func (b *Broker) dismissLocked(c *conn) bool {
	_, early := b.early[c]
	if early {
		b.early[c] = true
		if cancel := c.readExtra().cancel; cancel != nil {
			cancel() // a hook may be waiting
		}
	}
	return early
}

// dismissed says whether c was ended before it was accepted.
func (b *Broker) dismissed(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.early[c]
}

// maxClosing is how many connections are closed at a time.
const maxClosing = 4096

// closeAll closes connections, many at a time: a WebSocket or TLS connection may take seconds to
// say goodbye. No lock is held.
func closeAll(conns []*conn) {
	lock.NoneHeld("Close of a net.Conn")
	var g errgroup.Group
	g.SetLimit(maxClosing)
	for _, c := range conns {
		g.Go(func() error {
			err := c.nc.Close()
			if c.seat != nil { // nothing else tells an event loop
				c.seat.Rouse()
			}
			return err
		})
	}
	g.Wait() // the errors do not matter: all connections are over
}

// getTurn takes a turn from the pool. A reader calls it before it waits, on a stack of 2 KiB that
// must not grow. So newTurn is a function of its own, and is not inlined.
func (b *Broker) getTurn() *turn {
	if t, ok := b.turns.Get().(*turn); ok {
		return t
	}
	return b.newTurn()
}

//go:noinline
func (b *Broker) newTurn() *turn {
	t := &turn{b: b, traffic: b.stats.traffic.Tally()}
	if b.journal != nil {
		t.write.Write = journal.NewWrite(b.journal.Journal)
	}
	return t
}

func (b *Broker) putTurn(t *turn) { b.turns.Put(t) }

// maxYielding bounds how many turns, each with its read buffer, wait in yield.
const maxYielding = 64

// yield lets goroutines run that are ready to.
func (b *Broker) yield() {
	if b.yielding.Add(1) <= maxYielding {
		runtime.Gosched()
	}
	b.yielding.Add(-1)
}

// work runs f in a turn of its own. It returns the Subscriptions that ask their publishers to wait;
// only those who may wait do.
func (b *Broker) work(f func(t *turn)) (blocked []*Subscription) {
	t := b.getTurn()
	t.now = time.Now()
	f(t)
	t.clear()
	t.end()
	for i := range t.congested {
		t.congested[i] = nil
	}
	t.congested = t.congested[:0]
	if len(t.blocked) > 0 {
		blocked, t.blocked = t.blocked, nil
	}
	b.putTurn(t)
	return blocked
}

// workMany is work for several messages: f handles one, and says whether there is another one.
func (b *Broker) workMany(f func(t *turn) (more bool)) (blocked []*Subscription) {
	return b.work(func(t *turn) {
		for f(t) {
			t.clear()
		}
	})
}
