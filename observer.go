package dunlin

import (
	"runtime/debug"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/observe"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what becomes of a panic, and how the Observer is told of messages. Functions of the
// Observer are called anywhere: on goroutines of the Broker, with a lock held, from a method that
// the program has called. So New makes them safe. A panic of a hook that decides is recovered where
// the hook is asked.

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
		f(hooks.Panicked{Client: c, Value: v})
	}
}

const inObserver = "in an Observer"

// programShare is the share, in Broker.due, of what the program is told. No owner has that name.
const programShare = "program"

// observe makes o the Observer of b, before anybody else knows b. Panics of its functions change
// nothing. Those of Published and Delivered are recovered where these are called.
func (b *Broker) observe(o hooks.Observer) {
	b.obs = observe.Safely(o, observe.Panics{
		Usual:  func(c *hooks.Client, v any) { b.panicked(inObserver, c, v) },
		Locked: b.panickedLocked,
		Panicked: func(c *hooks.Client, v any) { // not told to itself
			b.stats.panics.Add(1)
			b.log.Error("panic in Observer.Panicked", "client", c.ID, "panic", v,
				"stack", string(debug.Stack()))
		},
	})
}

// panickedLocked is panicked for a function of the Observer, with the lock of a Session held. A
// goroutine that holds no lock tells of it.
func (b *Broker) panickedLocked(c *hooks.Client, v any) {
	stack := string(debug.Stack())
	b.stats.panics.Add(1)
	b.due.SetSlow(new(timers.Timer), programShare, time.Now(), func(time.Time) {
		b.tellPanic(inObserver, c, v, stack)
	})
}

// program is what the Observer knows of the program that runs a Broker, and of the Broker itself.
var program = new(hooks.Client)

// observesMessages says whether the Observer is told of messages while they are routed.
func (b *Broker) observesMessages() bool {
	return b.obs.Published != nil || b.obs.Delivered != nil || b.obs.Dropped != nil
}

// tellsOfMessages says whether a turn may call a function of the Observer for a message.
func (b *Broker) tellsOfMessages() bool {
	return b.observesMessages() || b.obs.Acknowledged != nil || b.obs.Settled != nil
}

// published tells the Observer of a message that came from c. No lock is held.
func (b *Broker) published(c *hooks.Client, m *packets.Message, matched int) {
	f := b.obs.Published
	if f == nil {
		return
	}
	lock.NoneHeld("a call of the Observer")
	returned := false // recover is a call, which only a panic needs
	defer func() {
		if !returned {
			if v := recover(); v != nil {
				b.panicked(inObserver, c, v)
			}
		}
	}()
	f(hooks.Published{Client: c, Message: m, Matched: matched})
	returned = true
}

// deliveredLocked tells the Observer, which has a function for that, of a message in the output of
// c. The lock of the Session is held.
func (b *Broker) deliveredLocked(c *hooks.Client, m *packets.Message, q packets.QoS, id uint16) {
	returned := false
	defer func() {
		if !returned {
			if v := recover(); v != nil {
				b.panickedLocked(c, v)
			}
		}
	}()
	b.obs.Delivered(hooks.Delivered{Client: c, Message: m, QoS: q, PacketID: id})
	returned = true
}
