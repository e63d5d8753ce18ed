// Package observe makes the functions of an Observer safe: a panic in one of them changes nothing
// for the broker that calls it.
package observe

import (
	"reflect"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// Panics is where the panics of an Observer go. Each function gets the client that the event was
// about, nil for none, and the value of the panic. It is called by the goroutine that panicked,
// while that still has its stack.
type Panics struct {
	// Usual is for the functions that are called while no lock is held.
	Usual func(c *hooks.Client, v any)
	// Locked is for those that may be called with the lock of a Session held.
	Locked func(c *hooks.Client, v any)
	// Panicked is for the function Panicked itself.
	Panicked func(c *hooks.Client, v any)
}

// Safely returns o with functions that do not panic. A nil function stays nil. Published and
// Delivered, which each message calls, stay as they are: a function around them would cost as much
// as they do. The caller recovers.
func Safely(o hooks.Observer, to Panics) *hooks.Observer {
	o.Connected = unlocked(o.Connected, to)
	o.Refused = unlocked(o.Refused, to)
	o.Disconnected = unlocked(o.Disconnected, to)
	o.SessionEnded = safely(o.SessionEnded, to.Locked)
	o.Subscribed = unlocked(o.Subscribed, to)
	o.Unsubscribed = unlocked(o.Unsubscribed, to)
	o.Denied = unlocked(o.Denied, to)
	o.Revoked = unlocked(o.Revoked, to)
	o.Banned = unlocked(o.Banned, to)
	o.Acknowledged = safely(o.Acknowledged, to.Locked)
	o.Dropped = safely(o.Dropped, to.Locked)
	o.Settled = safely(o.Settled, to.Locked)
	o.StoreFailed = unlocked(o.StoreFailed, to)
	o.StoreRecovered = unlocked(o.StoreRecovered, to)
	o.Panicked = safely(o.Panicked, to.Panicked)
	return &o
}

// unlocked returns f made safe, and checked.
func unlocked[Event any](f func(Event), to Panics) func(Event) {
	return checked(safely(f, to.Usual))
}

// checked returns f. Where locks are checked, it must be called without one.
func checked[Event any](f func(Event)) func(Event) {
	if f == nil || !lock.Checked {
		return f
	}
	return func(e Event) {
		lock.NoneHeld("a call of the Observer")
		f(e)
	}
}

// safely returns f made safe: a panic goes to end, and no further.
func safely[Event any](f func(Event), end func(c *hooks.Client, v any)) func(Event) {
	if f == nil {
		return nil
	}
	return func(e Event) {
		defer func() {
			if v := recover(); v != nil {
				end(clientOf(e), v)
			}
		}()
		f(e)
	}
}

// clientOf returns the Client of an event, nil if it has none.
func clientOf(event any) *hooks.Client {
	f := reflect.ValueOf(event).FieldByName("Client")
	if !f.IsValid() {
		return nil
	}
	return f.Interface().(*hooks.Client)
}
