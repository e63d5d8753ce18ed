package dunlin

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file moves clients to another server, before the Broker ends.

// DrainOptions say how Drain moves the clients. The zero value is valid.
type DrainOptions struct {
	// PerSecond is how many clients are moved in a second. Zero: 1,000. Negative: as many as can
	// be.
	PerSecond int
	// ServerReference names the server, or the servers, that the clients should use instead, as
	// packets.Error has it. Only clients of 5.0 are told. Empty: they find it out themselves.
	ServerReference string
	// Moved says that the clients should never come back: they are told Server moved (0x9D) instead
	// of Use another server (0x9C).
	Moved bool
	// Patience is how long a client stays that has something under way when its turn has come.
	// Zero: 5 seconds. Negative: it does not stay.
	Patience time.Duration
}

// ErrDraining is why a Broker is not Ready after Drain.
var ErrDraining = errors.New("dunlin: the broker is draining")

var errUndrained = errors.New("dunlin: Undrain has ended the drain")

const (
	defaultDrainRate = 1000
	defaultPatience  = 5 * time.Second
	drainPause       = 50 * time.Millisecond // between two looks at the clients that stay
)

// A draining is one call of Drain. It is immutable.
type draining struct {
	why  *packets.Error // what clients are told
	over chan struct{}  // closed when Drain returns
	quit chan struct{}  // closed by Undrain
}

// Drain moves the clients to another server. From the moment of the call the Broker accepts no
// client: it refuses each CONNECT with Use another server (0x9C), or Server moved (0x9D), and
// before 5.0 with Server unavailable (3). It then disconnects those that are there, o.PerSecond of
// them in a second, and returns how many that were when none is left. The listeners stay open, and
// the program and its Subscriptions go on.
//
// Sessions are kept as after any other end of a connection, for as long as their Session Expiry
// Interval says. A client is disconnected at a moment when nothing is under way for it: its queue
// is empty, and no message of QoS 1 or 2 waits for an acknowledgement in either direction. A client
// for which no such moment comes within o.Patience is disconnected all the same. What it has not
// acknowledged stays in its Session, and it sends again what was not acknowledged to it. The Wills
// of clients are published, as the standard wants it.
//
// If ctx ends first, Drain returns its cause. The clients that are left stay connected. The Broker
// accepts clients again after Undrain. The error is ErrBrokerClosed after Shutdown or Close, and
// ErrDraining if another call of Drain is under way.
func (b *Broker) Drain(ctx context.Context, o DrainOptions) (moved int, err error) {
	d := &draining{
		why:  &packets.Error{Code: packets.UseAnotherServer, ServerReference: o.ServerReference},
		over: make(chan struct{}), quit: make(chan struct{}),
	}
	if o.Moved {
		d.why.Code = packets.ServerMoved
	}
	if err := b.startDrain(d); err != nil {
		return 0, err
	}
	defer close(d.over)
	x := &mover{b: b, ctx: ctx, d: d, next: time.Now()}
	x.perSecond = cmp.Or(o.PerSecond, defaultDrainRate)
	x.patience = cmp.Or(o.Patience, defaultPatience)
	err = x.run()
	b.log.Info("the broker was drained", "moved", x.moved, "err", err)
	return x.moved, err
}

// startDrain makes d the drain of b.
func (b *Broker) startDrain(d *draining) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrBrokerClosed
	}
	if was := b.closing.drain.Load(); was != nil {
		select {
		case <-was.over:
		default:
			return ErrDraining
		}
	}
	b.closing.drain.Store(d)
	return nil
}

// Undrain makes the Broker accept clients again after Drain. A call of Drain that is under way
// returns an error.
func (b *Broker) Undrain() {
	if d := b.closing.drain.Swap(nil); d != nil {
		close(d.quit)
	}
}

// Ready returns nil if the Broker accepts clients and its Store works. Otherwise the error is
// ErrDraining, ErrBrokerClosed, or that of Healthy. A load balancer should ask Ready, and whatever
// restarts the process should ask Healthy: a Broker that is draining is healthy.
func (b *Broker) Ready() error {
	switch {
	case b.isClosed():
		return ErrBrokerClosed
	case b.closing.drain.Load() != nil:
		return ErrDraining
	}
	return b.Healthy()
}

// A mover moves the clients of a Broker.
type mover struct {
	b         *Broker
	ctx       context.Context
	d         *draining
	perSecond int
	patience  time.Duration
	next      time.Time // when one more may be moved
	moved     int
	waiting   []stayer
}

// A stayer is a connection that has something under way.
type stayer struct {
	s     *session
	c     *conn
	until time.Time
}

// run moves all clients. It looks at all Sessions again as long as there are connections: some may
// have been accepted while it began.
func (x *mover) run() error {
	for x.b.connections() > 0 {
		for s := range x.b.allSessions() {
			if err := x.move(s); err != nil {
				return err
			}
		}
		for {
			if err := x.pause(drainPause); err != nil {
				return err
			}
			if len(x.waiting) == 0 {
				break
			}
			waiting := x.waiting
			x.waiting = nil
			for _, w := range waiting {
				if err := x.moveLater(w); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// move moves the client of s, if it has one, or lets it stay for a while.
func (x *mover) move(s *session) error {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	return x.moveLater(stayer{s, c, time.Now().Add(x.patience)})
}

// pace waits until one more client may be moved. Those of a short while may be moved together.
func (x *mover) pace() error {
	if x.perSecond <= 0 {
		return x.stopped()
	}
	if d := time.Until(x.next); d > drainPause || d > 0 &&
		x.perSecond <= int(time.Second/drainPause) {
		return x.pause(d)
	}
	return x.stopped()
}

// count notes that a client was moved. Time in which none was is not made up for: those that come
// to another server at once may be too many for it.
func (x *mover) count() {
	x.moved++
	if x.perSecond > 0 {
		if least := time.Now().Add(-drainPause); x.next.Before(least) {
			x.next = least
		}
		x.next = x.next.Add(time.Second / time.Duration(x.perSecond))
	}
}

// moveLater moves the client of w now, or keeps w for another time.
func (x *mover) moveLater(w stayer) error {
	if err := x.pace(); err != nil {
		return err
	}
	late := !time.Now().Before(w.until)
	w.s.mu.Lock()
	gone := w.s.conn != w.c || w.c.stopping != nil
	stays := !gone && !late && !w.s.quiet(w.c)
	if !gone && !stays {
		w.c.stop(x.d.why)
	}
	w.s.mu.Unlock()
	switch {
	case gone:
	case stays:
		x.waiting = append(x.waiting, w)
	default:
		x.count()
		w.c.flush(time.Now())
	}
	return nil
}

// quiet, with s.mu held, says whether nothing is under way for c, which has s.
func (s *session) quiet(c *conn) bool {
	return !s.pending() && s.out.live == 0 && len(s.in.ids) == 0 && c.open.Load() == 0 &&
		c.out.Size() == 0 && !c.out.opening
}

// stopped says why Drain has to return, nil if it need not.
func (x *mover) stopped() error {
	select {
	case <-x.ctx.Done():
		return context.Cause(x.ctx)
	case <-x.b.ctx.Done():
		return ErrBrokerClosed
	case <-x.d.quit:
		return errUndrained
	default:
		return nil
	}
}

// pause waits, unless Drain has to return.
func (x *mover) pause(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	lock.NoneHeld("a wait")
	select {
	case <-t.C:
	case <-x.ctx.Done():
	case <-x.b.ctx.Done():
	case <-x.d.quit:
	}
	return x.stopped()
}
