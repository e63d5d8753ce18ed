package dunlin

import (
	"fmt"
	"math"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the options of Subscribe.

// RetainHandling says whether retained messages are sent when a subscription is made (3.8.3.1).
type RetainHandling byte

const (
	// RetainHandlingSend sends them.
	RetainHandlingSend RetainHandling = iota
	// RetainHandlingSendIfNew sends them if the Session had no such subscription, which only one
	// with a Name can have had.
	RetainHandlingSendIfNew
	// RetainHandlingSkip does not.
	RetainHandlingSkip
)

// SubscribeOptions say how a program subscribes. The zero value, also nil, is QoS 0, retained
// messages sent, and the defaults below.
//
// The first group belongs to one Topic Filter, the second to the Subscription as a whole: Add takes
// no notice of that.
type SubscribeOptions struct {
	// QoS is the highest that messages are delivered with. At QoS 0 as well nothing is lost within
	// Buffer.
	QoS QoS
	// NoLocal leaves out what this Subscription publishes itself, with its Publish. Not for shared
	// filters.
	NoLocal bool
	// RetainAsPublished leaves Retain as it was published; otherwise it says that a message was
	// retained before the subscription was made.
	RetainAsPublished bool
	// RetainHandling says whether the messages are sent that are retained at the time of the call.
	// Those of shared filters never are.
	RetainHandling RetainHandling
	// ID is a Subscription Identifier, at most 268,435,455, that comes with each message that this
	// filter matched. Zero: none.
	ID uint32

	// Name makes the Subscription durable: its Session, with filters and queue, stays when nobody
	// reads it, and Subscribe with the same Name goes on with it, with the filter and options that
	// are then given besides those that it had. Its Client Identifier is "$local/" and the Name,
	// which must be valid UTF-8 without U+0000 of at most 65,528 bytes. Where Config.Store is set
	// it survives the end of the process; what was read or acknowledged at the moment of a crash
	// may come again. While nobody reads, it is as with clients that are away: QoS 0 messages are
	// kept only with Config.QueueQoS0. Empty: the Session ends with the Subscription.
	Name string
	// Expiry is how long a named Session waits for its next reader, at most
	// Config.MaxSessionExpiry. Zero: that.
	Expiry time.Duration
	// Buffer is how many messages wait for a slow reader before Overflow decides;
	// Config.MaxQueuedBytes holds as well. Zero: 1,024.
	Buffer int
	// Overflow is the policy for a full buffer: OverflowDropOldest (the default),
	// OverflowDropNewest, or OverflowBlock.
	//
	// With OverflowBlock, whoever publishes a message for which there is no room waits: the
	// connection that it came by is not read on, and Publish does not return. The message itself
	// goes into the queue. Other connections go on, until they publish to the same. After
	// BlockTimeout the Subscription counts as stalled: it drops the newest, and delays nobody,
	// until its reader has made room. MaxQueuedBytes is not exceeded, and while nobody reads a
	// named one, the newest are dropped.
	Overflow Overflow
	// BlockTimeout is how long one message may delay its publisher. Zero: 1 s.
	BlockTimeout time.Duration
	// ManualAck leaves the acknowledgement of QoS 1 and 2 messages to Incoming.Ack. No more than
	// Buffer messages are out at a time. Those that are not acknowledged when the Subscription ends
	// come again, if it has a Name, and go, if the filter was a shared one, to another member.
	ManualAck bool
}

func (o *SubscribeOptions) check() error {
	switch {
	case o.Overflow > OverflowBlock, o.Overflow == OverflowDisconnect:
		return fmt.Errorf("dunlin: Subscribe: Overflow %d is not OverflowDropOldest, "+
			"OverflowDropNewest or OverflowBlock", o.Overflow)
	case o.Buffer < 0:
		return fmt.Errorf("dunlin: Subscribe: Buffer is %d, which is negative", o.Buffer)
	case o.BlockTimeout < 0:
		return fmt.Errorf("dunlin: Subscribe: BlockTimeout is %v, which is negative",
			o.BlockTimeout)
	case o.Expiry < 0:
		return fmt.Errorf("dunlin: Subscribe: Expiry is %v, which is negative", o.Expiry)
	case len(localPrefix)+len(o.Name) > math.MaxUint16:
		return fmt.Errorf("dunlin: Subscribe: the Name has %d bytes, at most %d are possible",
			len(o.Name), math.MaxUint16-len(localPrefix))
	case !packets.ValidUTF8(o.Name):
		return fmt.Errorf(
			"dunlin: Subscribe: the Name %q is not what a Client Identifier can be: valid UTF-8 "+
				"without U+0000", cut(o.Name, maxName))
	}
	return nil
}
