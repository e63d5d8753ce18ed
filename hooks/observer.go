package hooks

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
	// DropOverRate: its publisher exceeded PublishRate or PublishBytes. The broker refused it.
	DropOverRate
	// DropIntercepted: a DeliveryInterceptor dropped it for this client.
	DropIntercepted
)

var dropNames = [...]string{"", "queue full", "slow client", "too large", "expired",
	"session ended", "refused", "not authorized", "out of memory", "over the rate",
	"dropped by a hook"}

// DropReasons returns all reasons, in ascending order.
func DropReasons() (all []DropReason) {
	for r := range len(dropNames) - 1 {
		all = append(all, DropReason(r+1))
	}
	return all
}

// String returns the reason in words.
func (r DropReason) String() string {
	if int(r) < len(dropNames) {
		return dropNames[r]
	}
	return "unknown"
}

// An Observer receives events. Any field may be nil; a nil field costs one comparison. Each
// function gets one event. Minor releases may add fields to events and functions to Observer.
//
// All events name what they are about with the same words. Client is never nil. Topic and Filter
// are as the client writes them: without its mount point. MountedTopic and MountedFilter have the
// mount point in front; they are equal to Topic and Filter if the client has none. In an event of a
// message Topic is a method, and Message.Topic has the mount point.
//
// An event is passed by value. A function may keep its strings, its error and its Client, but must
// not modify the Client. The Message is only lent: it, its Payload and its Properties are valid
// until the function returns, and must not be modified. To keep the Message, keep the result of its
// method Clone. So a call for each message costs no allocation, except for the topic if the
// connection has not published to it lately.
//
// The broker calls Published, Subscribed, Unsubscribed, SessionEnded and Dropped for its own
// program as well as for clients. The Client then has no addresses. Its ID is the ID of the
// Subscription: "$local/" and its Name or a number. The ID is empty for Broker.Publish,
// PublishWait, Request and Respond, and for the $SYS topics. No client has such an ID. A missing
// address is not a sign of the program: the Will of a client from before a restart has none either.
// Connected, Refused, Disconnected, Delivered and Acknowledged are only about Network Connections.
//
// The broker calls these functions at the place of the event, some of them for every message. They
// must return at once and must not call into the broker.
//
// Delivered, Acknowledged, Settled and Dropped may be called with the lock of the receiver's
// Session held. If one of them blocks, everything that concerns this Session waits: its own
// connection, every client that publishes to it, and with a Store all acknowledgements that wait
// for a commit. A call into the broker about this Session is a deadlock there. The other functions
// are called with no lock held. If one of them blocks, the goroutine that called it waits: for
// StoreFailed and StoreRecovered this is the goroutine that commits, and for the others mostly the
// reader of the client.
//
// Close and Shutdown of the broker are the exception and may be called: they return an error with
// dunlin.ErrStillClosing at once, and the broker ends when the function has returned.
//
// A panic in a function is counted, logged with its stack, and reported to Panicked. The connection
// and the reported event go on. A panic in Panicked itself is counted and logged.
type Observer struct {
	Connected      func(Connected)
	Refused        func(Refused)
	Disconnected   func(Disconnected)
	SessionEnded   func(SessionEnded)
	Subscribed     func(Subscribed)
	Unsubscribed   func(Unsubscribed)
	Denied         func(Denied)
	Revoked        func(Revoked)
	Banned         func(Banned)
	Published      func(Published)
	Delivered      func(Delivered)
	Acknowledged   func(Acknowledged)
	Dropped        func(Dropped)
	Settled        func(Settled)
	StoreFailed    func(StoreFailed)
	StoreRecovered func(StoreRecovered)
	Panicked       func(Panicked)
}

// Join returns an Observer that calls each of obs in order. It leaves out nil Observers. If one
// panics, those after it miss that event.
func Join(obs ...*Observer) *Observer {
	var j Observer
	for _, o := range obs {
		if o == nil {
			continue
		}
		join(&j.Connected, o.Connected)
		join(&j.Refused, o.Refused)
		join(&j.Disconnected, o.Disconnected)
		join(&j.SessionEnded, o.SessionEnded)
		join(&j.Subscribed, o.Subscribed)
		join(&j.Unsubscribed, o.Unsubscribed)
		join(&j.Denied, o.Denied)
		join(&j.Revoked, o.Revoked)
		join(&j.Banned, o.Banned)
		join(&j.Published, o.Published)
		join(&j.Delivered, o.Delivered)
		join(&j.Acknowledged, o.Acknowledged)
		join(&j.Dropped, o.Dropped)
		join(&j.Settled, o.Settled)
		join(&j.StoreFailed, o.StoreFailed)
		join(&j.StoreRecovered, o.StoreRecovered)
		join(&j.Panicked, o.Panicked)
	}
	return &j
}

// join makes *dst call next after its current function.
func join[Event any](dst *func(Event), next func(Event)) {
	switch first := *dst; {
	case next == nil:
	case first == nil:
		*dst = next
	default:
		*dst = func(e Event) { first(e); next(e) }
	}
}
