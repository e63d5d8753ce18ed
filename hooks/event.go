package hooks

import (
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file holds the events of an Observer.

// Connected: the broker accepted a CONNECT.
type Connected struct {
	Client *Client
	// SessionPresent is true if the client resumed a Session.
	SessionPresent bool
	// At is when the broker accepted the CONNECT. No two connections of a broker have the same
	// time, and the one that takes over a Session has a later time than the one that had it.
	At time.Time
}

// Refused: the broker refused a CONNECT, or a connection ended before its CONNECT was accepted. The
// Client may be incomplete. The event comes when the broker closes the connection, up to a second
// after the CONNACK: it gives the client time to read the CONNACK.
type Refused struct {
	Client *Client
	Code   packets.ReasonCode
	Err    error
}

// Disconnected: an accepted connection ended.
type Disconnected struct {
	Client *Client
	Code   packets.ReasonCode
	// Err is why the connection ended. Nil: the client sent a DISCONNECT.
	Err error
	// ConnectedAt is the At of the Connected event of this connection.
	ConnectedAt time.Time
}

// SessionEnded: a Session expired, or was replaced or deleted.
type SessionEnded struct {
	// Client is the client that used the Session last. If it has not connected since the broker
	// started, only the ID and the principal are known.
	Client *Client
}

// Subscribed: a client made or replaced a subscription, or the server did so for it.
type Subscribed struct {
	Client *Client
	// Filter is the Topic Filter as the client wrote it, with "$share/" and ShareName.
	// MountedFilter is the filter that the Session has: the one that a SubscribeInterceptor
	// returned, or else Filter, with the mount point of the client in front of the part behind the
	// ShareName.
	Filter, MountedFilter string
	// QoS is the QoS that was granted.
	QoS packets.QoS
	// ByServer is true for a subscription that the server made. See [Subscription].
	ByServer bool
}

// Unsubscribed: a client removed a subscription, or the server removed one of its own. The end of a
// Session is one SessionEnded; it is not an Unsubscribed for each of its subscriptions.
type Unsubscribed struct {
	Client *Client
	// Filter, MountedFilter and ByServer are as in Subscribed.
	Filter, MountedFilter string
	ByServer              bool
}

// Denied: the Authorizer refused a request of a client.
type Denied struct {
	Client *Client
	Action Action
	// Topic is the Topic of the AccessRequest, without the mount point. MountedTopic has it.
	Topic, MountedTopic string
	// Group is the ShareName of a shared subscription, otherwise empty.
	Group string
	Err   error
}

// Revoked: the broker removed a subscription that is no longer allowed. The rules have changed, or
// the client came back with an identity that may not have the subscription.
type Revoked struct {
	Client *Client
	// Filter and MountedFilter are as in Subscribed.
	Filter, MountedFilter string
	Err                   error
}

// Banned: the broker or the program banned an address, a client or a user.
type Banned struct {
	Ban
	// Automatic is true if the broker made the Ban, for one of the limits in its Config.
	Automatic bool
}

// Published: the broker accepted a message and routed it. A Will or a delayed message is reported
// when the broker publishes it.
type Published struct {
	Client  *Client
	Message *packets.Message // its Topic has the mount point of the publisher in front
	// Matched is the number of Sessions that the message went to. Zero: the topic has no
	// subscribers.
	Matched int
}

// Topic returns the Topic Name without the mount point of the publisher.
func (e Published) Topic() string { return unmounted(e.Client, e.Message) }

// Delivered: the broker wrote a message to the output buffer of a connection. Messages to a
// Subscription of the program are not reported.
type Delivered struct {
	Client  *Client
	Message *packets.Message // its Topic has the mount point of the client in front
	// QoS is the QoS of the delivery. PacketID is its Packet Identifier, 0 for QoS 0.
	QoS      packets.QoS
	PacketID uint16
}

// Topic returns the Topic Name that the client gets.
func (e Delivered) Topic() string { return unmounted(e.Client, e.Message) }

// Acknowledged: a client completed a delivery of QoS 1 or 2.
type Acknowledged struct {
	Client *Client
	// PacketID is the Packet Identifier of the delivery.
	PacketID uint16
}

// Settled: the broker knows what became of a message with a receipt at one Session. A message has a
// receipt if it has the User Property that ReceiptProperty of the Config names.
//
// Each delivery is settled once: when the client has acknowledged it (PUBACK, or PUBREC at QoS 2),
// when the program has read or acknowledged it, when it was sent at QoS 0, or when it is lost. A
// Session has two deliveries of a message that it gets by a shared subscription and by another one.
// A Session whose client is away has no delivery of a message at QoS 0, unless QueueQoS0 of the
// Config is set: nothing is settled there.
//
// The queue of a Session that outlives the process keeps its receipts. A message that was settled
// just before a crash may be settled again after it.
type Settled struct {
	// Client is the client of the Session.
	Client *Client
	// Receipt is the value of the User Property.
	Receipt string
	// QoS is the QoS of the delivery: the lower one of the message and of the subscription.
	QoS packets.QoS
	// Reason is 0 if the client has the message. Otherwise it is why the client does not get it.
	Reason DropReason
}

// Dropped: a message did not reach a Session, or a retained message expired.
type Dropped struct {
	// Client is the client of the Session. Its ID is empty for a retained message.
	Client *Client
	// Message is nil if the broker no longer has the message. Its Topic has the mount point of the
	// client in front.
	Message *packets.Message
	Reason  DropReason
}

// Topic returns the Topic Name without the mount point of the client. It is empty if Message is
// nil.
func (e Dropped) Topic() string { return unmounted(e.Client, e.Message) }

// unmounted returns the topic of m as c writes it.
func unmounted(c *Client, m *packets.Message) string {
	if m == nil {
		return ""
	}
	return strings.TrimPrefix(m.Topic, c.MountPoint)
}

// StoreFailed: a commit failed. The broker refuses requests that need the store until
// StoreRecovered.
type StoreFailed struct {
	Err error
}

// StoreRecovered: the store works again.
type StoreRecovered struct{}

// Panicked: a hook, a function of the Observer, or the broker itself panicked. See the package for
// the consequences. If the connection has to end, Disconnected reports that as well.
type Panicked struct {
	// Client is the client concerned, as far as it is known.
	Client *Client
	// Value is the value of the panic.
	Value any
}
