package hooks

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file holds the answers to "who gets this topic, and why does this client not get it?".

// Cause is what keeps messages of a topic from a client.
type Cause byte

// The causes of an Explanation. The comment of each one says what is known when it is named.
const (
	// CauseNone: nothing is in the way. The client gets the next message of the topic.
	CauseNone Cause = iota

	// Causes of the topic, whoever subscribes.

	// CauseTopicInvalid: the topic is not a Topic Name (4.7).
	CauseTopicInvalid
	// CauseTopicTooLong: the topic has more bytes or levels than the broker accepts.
	CauseTopicTooLong
	// CauseTopicReserved: the topic begins with "$", so that clients cannot publish to it. Only the
	// program and the broker can.
	CauseTopicReserved

	// Causes of a client without a Session.

	// CauseUnknownClient: the client has no Session, and no connection of it is remembered.
	CauseUnknownClient
	// CauseSessionEnded: the client has no Session any more. It ended with its last connection.
	CauseSessionEnded
	// CauseSessionExpired: the client has no Session any more. Its Session Expiry Interval passed.
	CauseSessionExpired
	// CauseSessionDeleted: the client has no Session any more. The program deleted it.
	CauseSessionDeleted
	// CauseRefused: the client has no Session, and its last CONNECT was refused.
	CauseRefused
	// CauseBanned: the client, its user or its address is banned.
	CauseBanned
	// CauseOtherPrincipal: the Session belongs to another principal than the client that connected
	// last with this Client Identifier, which was refused for that.
	CauseOtherPrincipal

	// Causes of subscriptions.

	// CauseNoSubscription: the Session has no subscription.
	CauseNoSubscription
	// CauseNoMatch: no Topic Filter of the Session matches. Nearest is the one that comes closest.
	CauseNoMatch
	// CauseFilterReplaced: a Topic Filter that the client wrote matches, but the
	// SubscribeInterceptor has replaced it by one that does not, which is Nearest.
	CauseFilterReplaced
	// CauseDollarTopic: a filter would match if it did not begin with a wildcard. Such filters do
	// not match topics that begin with "$" (4.7.2).
	CauseDollarTopic
	// CauseMountPoint: the topic is outside of the client's mount point.
	CauseMountPoint
	// CauseNotAuthorized: the Authorizer refuses the topic, and Rule is its reason.
	CauseNotAuthorized
	// CauseNoLocal: all subscriptions that match have No Local. The client gets no messages that it
	// published itself.
	CauseNoLocal
	// CauseSharedOther: the client has the topic by a shared subscription only, and another member
	// got the last message.
	CauseSharedOther
	// CauseRetainedNotSent: only a retained message is there, and the subscription does not ask for
	// it: by its Retain Handling, or because it is shared.
	CauseRetainedNotSent
	// CauseRetainedWaiting: the retained messages for a new subscription are still being sent.
	CauseRetainedWaiting

	// Causes of the connection and the queue.

	// CauseOfflineQoS0: the client is away, and messages of QoS 0 are not kept for it.
	CauseOfflineQoS0
	// CauseOffline: the client is away. Its messages wait in the queue.
	CauseOffline
	// CauseConnecting: the client has connected, and its CONNACK waits for the Store.
	CauseConnecting
	// CauseDisconnecting: the connection is being ended.
	CauseDisconnecting
	// CauseQueueFull: the queue of the Session is at its limit.
	CauseQueueFull
	// CausePrincipalFull: all queues of the principal together are at their limit.
	CausePrincipalFull
	// CauseWindowFull: the client has not acknowledged as many messages as may be in flight. Others
	// wait behind them.
	CauseWindowFull
	// CauseUnacknowledged: the message was sent. The client has not acknowledged it.
	CauseUnacknowledged
	// CauseSlowClient: the client does not read: its socket takes no more bytes.
	CauseSlowClient
	// CauseMemory: the broker is at its memory limit.
	CauseMemory
	// CauseNotCommitted: the message waits until the Store has it.
	CauseNotCommitted
	// CauseStoreFails: the Store fails, and the broker refuses what needs it.
	CauseStoreFails
	// CauseBlocked: a Subscription of the program is full and makes publishers wait.
	CauseBlocked
	// CauseClosed: the broker is closed.
	CauseClosed

	// Causes of the last message of the topic that did not arrive. Drop says when.

	// CauseTooLarge: it was larger than the Maximum Packet Size of the client.
	CauseTooLarge
	// CauseExpired: its Message Expiry Interval passed while it waited.
	CauseExpired
	// CauseDroppedQueueFull: the queue was full.
	CauseDroppedQueueFull
	// CauseDroppedSlow: it was of QoS 0, and the output buffer of the client was full.
	CauseDroppedSlow
	// CauseDroppedMemory: the broker was at its memory limit.
	CauseDroppedMemory
	// CauseDroppedNotAuthorized: the Authorizer refused the delivery, a DeliveryInterceptor dropped
	// it, or the subscription was taken away.
	CauseDroppedNotAuthorized
	// CauseDroppedRefused: the client refused it with its PUBACK or PUBREC.
	CauseDroppedRefused
	// CauseDroppedSessionEnded: it waited in a Session that ended.
	CauseDroppedSessionEnded

	causes
)

var causeNames = [causes]string{
	"nothing in the way", "topic invalid", "topic too long", "topic reserved",
	"unknown client", "session ended", "session expired", "session deleted", "refused", "banned",
	"session of another principal",
	"no subscription", "no filter matches", "filter replaced", "wildcards do not match $ topics",
	"mount point",
	"not authorized", "no local", "shared: another member got it", "retained message not asked for",
	"retained messages on their way",
	"offline, QoS 0", "offline", "connecting", "disconnecting", "queue full",
	"principal's queues full",
	"window full", "not acknowledged", "slow client", "out of memory", "not committed yet",
	"store fails", "publishers wait", "broker closed",
	"too large", "expired", "dropped: queue full", "dropped: slow client", "dropped: out of memory",
	"dropped: not authorized", "dropped: client refused it", "dropped: session ended",
}

// String returns the cause in a few words.
func (c Cause) String() string {
	if c < causes {
		return causeNames[c]
	}
	return "unknown"
}

// Causes returns all causes, in their order.
func Causes() []Cause {
	all := make([]Cause, causes)
	for i := range all {
		all[i] = Cause(i)
	}
	return all
}

// A Finding is one thing that keeps messages from a client, or did so.
type Finding struct {
	Cause Cause
	// Text is a sentence for people.
	Text string
	// Filter is the subscription that matches, as the client wrote it; empty if none does.
	Filter string
	// Nearest is the subscription that comes closest where none matches.
	Nearest string
	// Rule is what the Authorizer said.
	Rule string
	// Member is the Client Identifier of the member of the shared subscription that got the last
	// message.
	Member string
	// Drop is the last drop of a message of the topic; nil if the cause is of another kind.
	Drop *Drop
	// Ending is how the last connection ended, or why it was refused, for causes of a client
	// without a Session.
	Ending *Ending
}

// An Explanation answers why a client does not get the messages of a topic. The Finding is what
// matters most. Also holds what else was found, most important first.
type Explanation struct {
	ClientID, Principal, Topic string
	// Time is when the question was answered.
	Time time.Time
	// Session says whether the client has a Session, Connected whether it has a connection.
	Session, Connected bool
	// QoS is the highest QoS that the subscriptions which match were granted.
	QoS packets.QoS
	Finding
	Also []Finding
}

// A Subscriber is one subscription that matches a topic.
type Subscriber struct {
	// ClientID is the Client Identifier, or "$local/" and the name of a Subscription of the
	// program.
	ClientID, Principal string
	// Filter is the Topic Filter as the client wrote it, without mount point, "$share/" and
	// ShareName. Group is the ShareName, empty for most.
	Filter, Group string
	QoS           packets.QoS
	NoLocal       bool
	Connected     bool
	// Cause is what would keep the next message from the client; CauseNone: nothing. The broker
	// does not ask the Authorizer for it, as Explain does.
	Cause Cause
}

// A Drop is a message that did not reach a client. Messages of the same client, topic and reason
// are one Drop.
type Drop struct {
	// Time is when it was dropped, the last of them; First the first.
	Time, First time.Time
	Count       uint64
	ClientID    string
	// Topic is the Topic Name with the client's mount point. It is empty where the broker no longer
	// had the message.
	Topic  string
	Reason DropReason
}
