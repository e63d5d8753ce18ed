package hooks

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// DropReason says why a message did not reach a Session.
type DropReason byte

const (
	// DropQueueFull: the Session's queue was at its limit of messages or bytes.
	DropQueueFull DropReason = iota + 1
	// DropSlowClient: a QoS 0 message for a client whose output buffer was full.
	DropSlowClient
	// DropTooLarge: larger than the Maximum Packet Size of the client (3.1.2.11.4).
	DropTooLarge
	// DropExpired: the Message Expiry Interval passed while it waited (3.3.2.3.3).
	DropExpired
	// DropSessionEnded: still queued when the Session ended.
	DropSessionEnded
	// DropRefused: the client refused it with a PUBACK or PUBREC of 0x80 or more.
	DropRefused
	// DropNotAuthorized: what would have brought it to the client is no longer allowed.
	DropNotAuthorized
	// DropMemory: the broker was at its limit of memory.
	DropMemory
)

var dropNames = [...]string{"", "queue full", "slow client", "too large", "expired", "session ended", "refused", "not authorized", "out of memory"}

// String returns the reason in words.
func (r DropReason) String() string {
	if int(r) < len(dropNames) {
		return dropNames[r]
	}
	return "unknown"
}

// An Observer is told what happens. Any field may be nil; a nil one costs one compare.
//
// Published, Subscribed, Unsubscribed, SessionEnded and Dropped are called for the program that runs the broker as for clients. The Client is
// then one without addresses, the same for all calls: its ID is that of the Subscription, "$local/" and its Name or a number, and empty for
// what Broker.Publish, PublishWait, Request and Respond publish, and for the $SYS topics. No client has such an ID; that there is no
// address is true of the Will of a client from before a restart as well. Connected, Refused, Disconnected, Delivered and
// Acknowledged are about Network Connections alone.
//
// Calls are made where the thing happens, some of them for every message and with a lock held: they must return at once, must not call
// into the broker, and must not keep or modify what they are given unless its type allows it. Fields are added in minor releases.
//
// Close and Shutdown of the broker may be called all the same: they return an error with dunlin.ErrStillClosing at once, and the broker
// ends when the function has returned.
//
// A panic of a function is counted, logged with its stack, and told to Panicked, and nothing else happens: the connection, and what it was
// told about, go on. One of Panicked itself is counted and logged.
type Observer struct {
	// Connected: a CONNECT was accepted.
	Connected func(c *Client, sessionPresent bool)
	// Refused: a CONNECT was refused, or a connection ended before it was accepted. The Client may be incomplete. It is called when the
	// connection is closed, which is up to a second after the CONNACK: the broker lets the client read that first.
	Refused func(c *Client, code packets.ReasonCode, err error)
	// Disconnected: an accepted connection ended. err is nil after a DISCONNECT from the client.
	Disconnected func(c *Client, code packets.ReasonCode, err error)
	// SessionEnded: a Session expired, was replaced or deleted.
	SessionEnded func(clientID string)
	// Subscribed and Unsubscribed: a subscription was made (or replaced), or removed by who made it. filter is as it was written, without the
	// mount point. When a Session ends its subscriptions end without a call for each.
	Subscribed   func(c *Client, filter string, qos packets.QoS)
	Unsubscribed func(c *Client, filter string)
	// Denied: the Authorizer refused, with its error.
	Denied func(c *Client, action Action, topic string, err error)
	// Revoked: a subscription was taken away because it is no longer allowed: the rules have changed, or the client came back as one
	// that may not have it. filter is as the client wrote it.
	Revoked func(c *Client, filter string, err error)
	// Banned: somebody was banned, by the broker itself or by the program. kind is "address", "client", "user", or
	// "session" with a Client Identifier, U+0000 and a Principal for its value. until is zero for one that does not end by itself.
	Banned func(kind, value, reason string, until time.Time)
	// Published: a message was accepted and handed to as many sessions as matched; 0 means nobody subscribes to it. The topic is with the mount
	// point. Wills are told of when they are published. A program that publishes because of a call is told of that message too.
	Published func(c *Client, m *packets.Message, matched int)
	// Delivered: a message was written to the buffer of a connection. What a Subscription of the program reads is not told.
	Delivered func(clientID string, m *packets.Message)
	// Acknowledged: a client completed a QoS 1 or 2 delivery.
	Acknowledged func(clientID string, id uint16)
	// Dropped: a message did not reach a Session. m is nil where the broker no longer has it.
	Dropped func(clientID string, m *packets.Message, why DropReason)
	// StoreFailed: a commit failed; what needs the store is refused from now on. StoreRecovered: it works again.
	StoreFailed    func(err error)
	StoreRecovered func()
	// Panicked: a hook, a function of the Observer, or the broker itself panicked. c is whom it was about, as far as that is known, and never
	// nil. See the package for what follows: where the connection has to end, Disconnected tells that as well.
	Panicked func(c *Client, value any)
}

// Join returns an Observer that calls each of obs in order. Nil ones are left out. If one panics, those after it are not told that once.
func Join(obs ...*Observer) *Observer {
	var j Observer
	for _, o := range obs {
		if o == nil {
			continue
		}
		join2(&j.Connected, o.Connected, func(a, b func(*Client, bool)) func(*Client, bool) {
			return func(c *Client, p bool) { a(c, p); b(c, p) }
		})
		join2(&j.Refused, o.Refused, joinCode)
		join2(&j.Disconnected, o.Disconnected, joinCode)
		join2(&j.SessionEnded, o.SessionEnded, func(a, b func(string)) func(string) {
			return func(id string) { a(id); b(id) }
		})
		join2(&j.Subscribed, o.Subscribed, func(a, b func(*Client, string, packets.QoS)) func(*Client, string, packets.QoS) {
			return func(c *Client, f string, q packets.QoS) { a(c, f, q); b(c, f, q) }
		})
		join2(&j.Unsubscribed, o.Unsubscribed, func(a, b func(*Client, string)) func(*Client, string) {
			return func(c *Client, f string) { a(c, f); b(c, f) }
		})
		join2(&j.Denied, o.Denied, func(a, b func(*Client, Action, string, error)) func(*Client, Action, string, error) {
			return func(c *Client, act Action, t string, err error) { a(c, act, t, err); b(c, act, t, err) }
		})
		join2(&j.Revoked, o.Revoked, func(a, b func(*Client, string, error)) func(*Client, string, error) {
			return func(c *Client, f string, err error) { a(c, f, err); b(c, f, err) }
		})
		join2(&j.Banned, o.Banned, func(a, b func(string, string, string, time.Time)) func(string, string, string, time.Time) {
			return func(k, v, r string, u time.Time) { a(k, v, r, u); b(k, v, r, u) }
		})
		join2(&j.Published, o.Published, func(a, b func(*Client, *packets.Message, int)) func(*Client, *packets.Message, int) {
			return func(c *Client, m *packets.Message, n int) { a(c, m, n); b(c, m, n) }
		})
		join2(&j.Delivered, o.Delivered, func(a, b func(string, *packets.Message)) func(string, *packets.Message) {
			return func(id string, m *packets.Message) { a(id, m); b(id, m) }
		})
		join2(&j.Acknowledged, o.Acknowledged, func(a, b func(string, uint16)) func(string, uint16) {
			return func(id string, pid uint16) { a(id, pid); b(id, pid) }
		})
		join2(&j.Dropped, o.Dropped, func(a, b func(string, *packets.Message, DropReason)) func(string, *packets.Message, DropReason) {
			return func(id string, m *packets.Message, w DropReason) { a(id, m, w); b(id, m, w) }
		})
		join2(&j.StoreFailed, o.StoreFailed, func(a, b func(error)) func(error) {
			return func(err error) { a(err); b(err) }
		})
		join2(&j.StoreRecovered, o.StoreRecovered, func(a, b func()) func() {
			return func() { a(); b() }
		})
		join2(&j.Panicked, o.Panicked, func(a, b func(*Client, any)) func(*Client, any) {
			return func(c *Client, v any) { a(c, v); b(c, v) }
		})
	}
	return &j
}

func joinCode(a, b func(*Client, packets.ReasonCode, error)) func(*Client, packets.ReasonCode, error) {
	return func(c *Client, code packets.ReasonCode, err error) { a(c, code, err); b(c, code, err) }
}

// join2 makes *dst call b after what it calls already. The constraint lists the types of Observer's fields, so that F can be
// compared with nil.
func join2[F func() | func(error) | func(*Client, bool) | func(*Client, packets.ReasonCode, error) | func(string) |
	func(*Client, string, packets.QoS) | func(*Client, string) | func(*Client, string, error) | func(string, string, string, time.Time) | func(*Client, Action, string, error) |
	func(*Client, *packets.Message, int) | func(string, *packets.Message) | func(string, uint16) |
	func(string, *packets.Message, DropReason) | func(*Client, any)](dst *F, b F, both func(a, b F) F) {
	switch {
	case b == nil:
	case *dst == nil:
		*dst = b
	default:
		*dst = both(*dst, b)
	}
}
