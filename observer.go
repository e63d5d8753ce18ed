package dunlin

import (
	"runtime/debug"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
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

// safe returns o with functions whose panics change nothing.
func (b *Broker) safe(o hooks.Observer) *hooks.Observer {
	return observe.Safely(o, observe.Panics{
		Usual: func(c *hooks.Client, v any) { b.panicked(inObserver, c, v) },
		Locked: func(c *hooks.Client, v any) { // told by a goroutine that holds no lock
			stack := string(debug.Stack())
			b.stats.panics.Add(1)
			b.due.SetSlow(new(timers.Timer), programShare, time.Now(), func(time.Time) {
				b.tellPanic(inObserver, c, v, stack)
			})
		},
		Panicked: func(c *hooks.Client, v any) { // not told to itself
			b.stats.panics.Add(1)
			b.log.Error("panic in Observer.Panicked", "client", c.ID, "panic", v,
				"stack", string(debug.Stack()))
		},
	})
}

// program is what the Observer knows of the program that runs a Broker, and of the Broker itself.
var program = new(hooks.Client)

// observesMessages says whether the Observer is told of messages while they are routed.
func (b *Broker) observesMessages() bool {
	return b.obs.Published != nil || b.obs.Delivered != nil || b.obs.Dropped != nil
}

// published tells the Observer of a message, whose topic begins with the mount point of c.
func (b *Broker) published(c *hooks.Client, mount string, m *packets.Message, matched int) {
	if f := b.obs.Published; f != nil {
		f(hooks.Published{
			Client: c, Topic: m.Topic[len(mount):], MountedTopic: m.Topic,
			Message: m, Matched: matched,
		})
	}
}
