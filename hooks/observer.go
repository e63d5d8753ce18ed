package hooks

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// DropReason is the reason why a message did not reach a Session.
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
	// DropNotAuthorized: the client may no longer receive it.
	DropNotAuthorized
	// DropMemory: the broker was at its memory limit.
	DropMemory
)

var dropNames = [...]string{"", "queue full", "slow client", "too large", "expired",
	"session ended", "refused", "not authorized", "out of memory"}

// String returns the reason in words.
func (r DropReason) String() string {
	if int(r) < len(dropNames) {
		return dropNames[r]
	}
	return "unknown"
}

// An Observer receives events. Any field may be nil; a nil field costs one comparison.
//
// The broker calls Published, Subscribed, Unsubscribed, SessionEnded and Dropped for its own
// program as well as for clients. The Client then has no addresses and is the same for all calls.
// Its ID is the ID of the Subscription: "$local/" and its Name or a number. The ID is empty for
// Broker.Publish, PublishWait, Request and Respond, and for the $SYS topics. No client has such an
// ID. A missing address is not a sign of the program: the Will of a client from before a restart
// has none either. Connected, Refused, Disconnected, Delivered and Acknowledged are only about
// Network Connections.
//
// The broker calls these functions at the place of the event, some of them for every message. They
// must return at once and must not call into the broker. They must not keep or modify their
// arguments unless the type allows it. Minor releases may add fields.
//
// Delivered, Acknowledged and Dropped may be called with the lock of the receiver's Session held. If
// one of them blocks, everything that concerns this Session waits: its own connection, every client
// that publishes to it, and with a Store all acknowledgements that wait for a commit. To call into
// the broker about this Session there is a deadlock. The other functions are called with no lock
// held. If one of them blocks, the goroutine that called it waits: for StoreFailed and
// StoreRecovered this is the goroutine that commits, and for the others mostly the reader of the
// client.
//
// Close and Shutdown of the broker are the exception and may be called: they return an error with
// dunlin.ErrStillClosing at once, and the broker ends when the function has returned.
//
// A panic in a function is counted, logged with its stack, and reported to Panicked. The connection
// and the reported event go on. A panic in Panicked itself is counted and logged.
type Observer struct {
	// Connected: a CONNECT was accepted.
	Connected func(c *Client, sessionPresent bool)
	// Refused: a CONNECT was refused, or a connection ended before it was accepted. The Client may
	// be incomplete. The call comes when the connection is closed, up to a second after the
	// CONNACK: the broker gives the client time to read it.
	Refused func(c *Client, code packets.ReasonCode, err error)
	// Disconnected: an accepted connection ended. err is nil after a DISCONNECT from the client.
	Disconnected func(c *Client, code packets.ReasonCode, err error)
	// SessionEnded: a Session expired, was replaced or deleted.
	SessionEnded func(clientID string)
	// Subscribed and Unsubscribed: the client made (or replaced) a subscription, or removed its
	// own. filter is as the client wrote it, without the mount point. When a Session ends, its
	// subscriptions end without a call for each.
	Subscribed   func(c *Client, filter string, qos packets.QoS)
	Unsubscribed func(c *Client, filter string)
	// Denied: the Authorizer refused, with its error.
	Denied func(c *Client, action Action, topic string, err error)
	// Revoked: the broker removed a subscription that is no longer allowed: the rules have changed,
	// or the client came back with an identity that may not have it. filter is as the client wrote
	// it.
	Revoked func(c *Client, filter string, err error)
	// Banned: the broker or the program banned somebody. kind is "address", "client", "user", or
	// "session". The value of a "session" is a Client Identifier, U+0000 and a Principal. until is
	// zero for a ban without an end.
	Banned func(kind, value, reason string, until time.Time)
	// Published: the broker accepted a message and handed it to as many Sessions as matched; 0
	// means that the topic has no subscribers. The topic includes the mount point. Wills are
	// reported when they are published. Messages that the program publishes because of a call are
	// reported too.
	Published func(c *Client, m *packets.Message, matched int)
	// Delivered: a message was written to the buffer of a connection. Messages to a Subscription of
	// the program are not reported.
	Delivered func(clientID string, m *packets.Message)
	// Acknowledged: a client completed a QoS 1 or 2 delivery.
	Acknowledged func(clientID string, id uint16)
	// Dropped: a message did not reach a Session. m is nil if the broker no longer has the message.
	Dropped func(clientID string, m *packets.Message, why DropReason)
	// StoreFailed: a commit failed; requests that need the store are refused from now on.
	// StoreRecovered: it works again.
	StoreFailed    func(err error)
	StoreRecovered func()
	// Panicked: a hook, a function of the Observer, or the broker itself panicked. c is the client
	// concerned, as far as it is known, and never nil. See the package for the consequences. If the
	// connection has to end, Disconnected reports that as well.
	Panicked func(c *Client, value any)
}

// Join returns an Observer that calls each of obs in order. It leaves out nil Observers. If one
// panics, those after it miss that event.
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
		join2(&j.Subscribed, o.Subscribed,
			func(a, b func(*Client, string, packets.QoS)) func(*Client, string, packets.QoS) {
				return func(c *Client, f string, q packets.QoS) { a(c, f, q); b(c, f, q) }
			})
		join2(&j.Unsubscribed, o.Unsubscribed, func(a, b func(*Client, string)) func(*Client, string) {
			return func(c *Client, f string) { a(c, f); b(c, f) }
		})
		join2(&j.Denied, o.Denied,
			func(a, b func(*Client, Action, string, error)) func(*Client, Action, string, error) {
				return func(c *Client, act Action, t string, err error) { a(c, act, t, err); b(c, act, t, err) }
			})
		join2(&j.Revoked, o.Revoked,
			func(a, b func(*Client, string, error)) func(*Client, string, error) {
				return func(c *Client, f string, err error) { a(c, f, err); b(c, f, err) }
			})
		join2(&j.Banned, o.Banned, func(a, b func(string, string, string, time.Time)) func(string,
			string, string, time.Time) {
			return func(k, v, r string, u time.Time) { a(k, v, r, u); b(k, v, r, u) }
		})
		join2(&j.Published, o.Published,
			func(a, b func(*Client, *packets.Message, int)) func(*Client, *packets.Message, int) {
				return func(c *Client, m *packets.Message, n int) { a(c, m, n); b(c, m, n) }
			})
		join2(&j.Delivered, o.Delivered,
			func(a, b func(string, *packets.Message)) func(string, *packets.Message) {
				return func(id string, m *packets.Message) { a(id, m); b(id, m) }
			})
		join2(&j.Acknowledged, o.Acknowledged, func(a, b func(string, uint16)) func(string, uint16) {
			return func(id string, pid uint16) { a(id, pid); b(id, pid) }
		})
		join2(&j.Dropped, o.Dropped, func(a, b func(string, *packets.Message,
			DropReason)) func(string, *packets.Message, DropReason) {
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

func joinCode(a, b func(*Client, packets.ReasonCode, error)) func(*Client, packets.ReasonCode,
	error) {
	return func(c *Client, code packets.ReasonCode, err error) { a(c, code, err); b(c, code, err) }
}

// join2 makes *dst call b after its current function. The constraint lists the types of Observer's
// fields, so that F can be compared with nil.
func join2[F func() | func(error) | func(*Client, bool) | func(*Client, packets.ReasonCode,
	error) | func(string) |
	func(*Client, string, packets.QoS) | func(*Client, string) | func(*Client, string,
	error) | func(string, string, string, time.Time) | func(*Client, Action, string, error) |
	func(*Client, *packets.Message, int) | func(string, *packets.Message) | func(string, uint16) |
	func(string, *packets.Message, DropReason) | func(*Client, any)](dst *F, b F,
	both func(a, b F) F) {
	switch {
	case b == nil:
	case *dst == nil:
		*dst = b
	default:
		*dst = both(*dst, b)
	}
}
