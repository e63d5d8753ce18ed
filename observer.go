package dunlin

import (
	"runtime/debug"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what becomes of a panic. The functions of the Observer are called anywhere: on goroutines of the Broker, with a lock held, from a
// method that the program has called. So each of them is made safe once, by New, and a panic of it changes nothing. A panic of a hook
// that decides is recovered where it is asked.

// panicked counts and logs a panic, and tells the Observer. c may be nil. It is called while the
// goroutine that panicked still has its stack, and holds no lock.
func (b *Broker) panicked(what string, c *hooks.Client, v any) {
	b.stats.panics.Add(1)
	b.tellPanic(what, c, v, string(debug.Stack()))
}

// tellPanic logs a panic and tells the Observer. No lock is held.
func (b *Broker) tellPanic(what string, c *hooks.Client, v any, stack string) {
	if c == nil {
		c = new(hooks.Client)
	}
	b.log.Error("panic "+what, "client", c.ID, "remote", c.RemoteAddr, "panic", v, "stack", stack)
	if f := b.obs.Panicked; f != nil {
		f(c, v)
	}
}

const inObserver = "in an Observer"

// caught, deferred by a function of the Observer, ends a panic. c is whom the function was about,
// nil for nobody. No lock is held.
func (b *Broker) caught(c *hooks.Client) {
	v := recover()
	lock.NoneHeld("a call of the Observer")
	if v != nil {
		b.panicked(inObserver, c, v)
	}
}

// caughtAt is caught where only the Client Identifier is known, and the lock of a Session may be
// held: the panic is logged and told by somebody who holds none.
func (b *Broker) caughtAt(id string) {
	if v := recover(); v != nil {
		stack := string(debug.Stack())
		b.stats.panics.Add(1)
		b.due.SetSlow(new(timers.Timer), time.Now(), func(time.Time) {
			b.tellPanic(inObserver, &hooks.Client{ID: id}, v, stack)
		})
	}
}

// safe returns o with every function made safe: a panic goes to panicked, and no further. A nil function stays nil.
func (b *Broker) safe(o hooks.Observer) *hooks.Observer {
	b.safeSessions(&o)
	b.safeMessages(&o)
	if f := o.Banned; f != nil {
		o.Banned = func(kind, value, reason string, until time.Time) { defer b.caught(nil); f(kind, value, reason, until) }
	}
	if f := o.StoreFailed; f != nil {
		o.StoreFailed = func(err error) { defer b.caught(nil); f(err) }
	}
	if f := o.StoreRecovered; f != nil {
		o.StoreRecovered = func() { defer b.caught(nil); f() }
	}
	if f := o.Panicked; f != nil {
		o.Panicked = func(c *hooks.Client, v any) {
			defer func() {
				if v := recover(); v != nil { // not told to itself
					b.stats.panics.Add(1)
					b.log.Error("panic in Observer.Panicked", "client", c.ID, "panic", v, "stack", string(debug.Stack()))
				}
			}()
			f(c, v)
		}
	}
	return &o
}

// safeSessions is safe for what happens to connections and Sessions.
func (b *Broker) safeSessions(o *hooks.Observer) {
	if f := o.Connected; f != nil {
		o.Connected = func(c *hooks.Client, present bool) { defer b.caught(c); f(c, present) }
	}
	if f := o.Refused; f != nil {
		o.Refused = func(c *hooks.Client, code packets.ReasonCode, err error) { defer b.caught(c); f(c, code, err) }
	}
	if f := o.Disconnected; f != nil {
		o.Disconnected = func(c *hooks.Client, code packets.ReasonCode, err error) { defer b.caught(c); f(c, code, err) }
	}
	if f := o.SessionEnded; f != nil {
		o.SessionEnded = func(id string) { defer b.caughtAt(id); f(id) }
	}
	if f := o.Subscribed; f != nil {
		o.Subscribed = func(c *hooks.Client, filter string, qos packets.QoS) { defer b.caught(c); f(c, filter, qos) }
	}
	if f := o.Unsubscribed; f != nil {
		o.Unsubscribed = func(c *hooks.Client, filter string) { defer b.caught(c); f(c, filter) }
	}
	if f := o.Denied; f != nil {
		o.Denied = func(c *hooks.Client, a hooks.Action, topic string, err error) { defer b.caught(c); f(c, a, topic, err) }
	}
	if f := o.Revoked; f != nil {
		o.Revoked = func(c *hooks.Client, filter string, err error) { defer b.caught(c); f(c, filter, err) }
	}
}

// safeMessages is safe for what happens to messages, some of it with a lock held that a panic must not leave locked.
func (b *Broker) safeMessages(o *hooks.Observer) {
	if f := o.Published; f != nil {
		o.Published = func(c *hooks.Client, m *packets.Message, matched int) { defer b.caught(c); f(c, m, matched) }
	}
	if f := o.Delivered; f != nil {
		o.Delivered = func(id string, m *packets.Message) { defer b.caughtAt(id); f(id, m) }
	}
	if f := o.Acknowledged; f != nil {
		o.Acknowledged = func(id string, pid uint16) { defer b.caughtAt(id); f(id, pid) }
	}
	if f := o.Dropped; f != nil {
		o.Dropped = func(id string, m *packets.Message, why hooks.DropReason) { defer b.caughtAt(id); f(id, m, why) }
	}
}
