package dunlin

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is how the program that runs the Broker publishes, and how it learns what becomes of a
// message at each Session. Subscriptions of the program are in subscription.go.

// Publish routes m as if a client had published it, without asking the Authorizer or the
// Interceptor. It returns when the message is in the queue or the output buffer of every Session
// that matches, which is when a client would get its PUBACK or PUBREC. It never waits for a client;
// for a Subscription that is full and has the policy OverflowBlock it waits as that says, or until
// ctx ends, and the message is there all the same. The Broker keeps m.Payload and m.Properties:
// they must not be modified afterwards. The topic may begin with "$".
//
// m.Properties are those of the PUBLISH (3.3.2.3), made with the setters of Message or the Append
// methods of packets.Properties.
//
// The error is ErrBrokerClosed, the cause of ctx if that has ended before, or a *packets.Error:
// Topic Name invalid (0x90), Malformed Packet (0x81) or Protocol Error (0x82) for what no PUBLISH
// may have, Packet too large (0x95) for what no packet can hold (256 MiB), Quota exceeded (0x97)
// where retained messages are at their limit. MaxTopicLength and MaxTopicLevels of the Config hold
// here, too; MaxPacketSize, MaxQoS and the switches for what clients may not use do not.
func (b *Broker) Publish(ctx context.Context, m *Message) error {
	_, err := b.publishLocal(ctx, m, local{})
	return err
}

// local is what an in-process publish may have besides its message.
type local struct {
	from    string        // Client Identifier of the Subscription that publishes
	origin  origin        // and as what it publishes
	client  *hooks.Client // and what the Observer knows of it
	receipt *receipt      // of PublishWait
}

// PublishAll publishes messages as Publish does, one after the other, with less work for each: a
// client gets all of them that are for it in one write if it can, and the Store in one batch. It
// stops at the first error, which is about list[n]: those before it are published, and those behind
// it are not, except after an error of a Store that fails and after the end of ctx, when some may
// be.
func (b *Broker) PublishAll(ctx context.Context, list ...*Message) (n int, err error) {
	for n < len(list) && err == nil {
		var some int
		some, err = b.publishSome(ctx, list[n:])
		n += some
	}
	return n, err
}

// publishChunk is how many messages of PublishAll are routed in one turn. It is less than what the
// queue of a Session or Subscription holds by default, so that one turn does not fill an empty one.
const publishChunk = 1000

// publishSome publishes the first ones of a list in one turn, and returns how many.
func (b *Broker) publishSome(ctx context.Context, list []*Message) (n int, err error) {
	type part struct {
		x     *journal.Batch
		first int
	}
	var parts []part
	blocked := b.workMany(func(t *turn) (more bool) {
		var x *journal.Batch
		if _, x, err = b.routeLocal(ctx, t, list[n], local{}); err != nil {
			return false
		}
		if x != nil && (len(parts) == 0 || parts[len(parts)-1].x != x) {
			parts = append(parts, part{x, n})
		}
		n++
		return n < min(len(list), publishChunk) && !t.full() && len(t.blocked) == 0
	})
	for _, p := range parts {
		if failed := b.journal.WaitAdded(ctx, p.x); failed != nil {
			return p.first, failed
		}
	}
	for _, sub := range blocked {
		sub.await(ctx.Done())
	}
	return n, err
}

// publishLocal returns how many Sessions took the message.
func (b *Broker) publishLocal(ctx context.Context, m *Message, l local) (matched int, err error) {
	var x *journal.Batch
	blocked := b.work(func(t *turn) { matched, x, err = b.routeLocal(ctx, t, m, l) })
	if x != nil && err == nil {
		err = b.journal.WaitAdded(ctx, x)
	}
	for _, sub := range blocked {
		sub.await(ctx.Done())
	}
	return matched, err
}

// routeLocal routes m in t. x is what makes it durable, nil if it need not be.
func (b *Broker) routeLocal(
	ctx context.Context, t *turn, m *Message, l local,
) (matched int, x *journal.Batch, err error) {
	if ctx.Err() != nil {
		return 0, nil, context.Cause(ctx)
	}
	if b.ctx.Err() != nil {
		return 0, nil, ErrBrokerClosed
	}
	if err := b.sound(m); err != nil {
		return 0, nil, err
	}
	if err := b.refuseMemory(); err != nil && !b.shrinks(m) {
		return 0, nil, err
	}
	sm := &message{Message: *m, From: l.from}
	if n, ok := m.Properties.Uint(packets.MessageExpiryInterval); ok {
		sm.Expires = unixNano(t.now.Add(time.Duration(n) * time.Second))
	}
	t.receipt, t.write.ctx = l.receipt, ctx
	if matched, err = t.publishMessage(sm, l.origin); err == nil {
		b.published(cmp.Or(l.client, program), &sm.Message, matched)
	}
	return matched, t.write.Want(), err
}

// shrinks says whether m makes the retained messages smaller, which is possible beyond every limit.
func (b *Broker) shrinks(m *Message) bool {
	return m.Retain && b.retained.Shrinks(m.Topic, len(m.Payload), len(m.Properties))
}

// sound says what is wrong with a message that the program has made: to publish it, or in the place
// of another one.
func (b *Broker) sound(m *Message) error {
	size := len(m.Payload) + len(m.Topic) + len(m.Properties)
	switch {
	case len(m.Topic) > b.cfg().MaxTopicLength && !b.shrinks(m):
		return packets.Errorf(packets.TopicNameInvalid,
			"a topic of %d bytes, at most %d are accepted", len(m.Topic), b.cfg().MaxTopicLength)
	case !packets.ValidTopicName(m.Topic):
		return packets.Errorf(packets.TopicNameInvalid, "%q is no Topic Name",
			cut(m.Topic, maxName))
	case packets.Levels(m.Topic) > b.cfg().MaxTopicLevels && !b.shrinks(m):
		return packets.Errorf(packets.TopicNameInvalid,
			"a topic of %d levels, at most %d are accepted", packets.Levels(m.Topic),
			b.cfg().MaxTopicLevels)
	case m.QoS > packets.QoS2:
		return packets.Errorf(packets.ProtocolError, "QoS %d", m.QoS)
	case size > maxPacketSize-16:
		return packets.Errorf(packets.PacketTooLarge,
			"a message of %d bytes, no packet can hold more than %d", size, maxPacketSize-16)
	}
	if len(m.Properties) > 0 {
		if err := m.Properties.Check(packets.TypePublish); err != nil {
			return err
		}
		if m.Properties.Has(packets.TopicAlias) ||
			m.Properties.Has(packets.SubscriptionIdentifier) {
			return packets.Errorf(packets.ProtocolError,
				"a property that does not travel with a message")
		}
	}
	return nil
}

// An Outcome is what became of a message that was published with PublishWait.
type Outcome struct {
	// Matched is how many Sessions the message was for, Acknowledged how many of them have it, Lost
	// how many will not get it: their queue was full, the message expired or was too large for
	// them, they refused it, or they ended. What remains is still under way.
	Matched, Acknowledged, Lost int
}

// PublishWait publishes as Publish does and waits until every Session that the message is for has
// acknowledged or lost it: with PUBACK at QoS 1 and PUBREC at QoS 2, a Subscription by reading it
// or, with ManualAck, by Ack. At QoS 0 there is nothing to wait for but that the message has left
// the queue. A Session whose client is away is waited for, and a Subscription that nobody reads, at
// QoS 0 as well, so ctx should have an end.
//
// If ctx ends first the error is its cause, and the Outcome is that of the moment; the message
// stays where it is. Other errors are those of Publish.
func (b *Broker) PublishWait(ctx context.Context, m *Message) (Outcome, error) {
	return b.publishWait(ctx, m, local{}, -1)
}

// publishWait is PublishWait as l has it. If limit is not negative it waits so long at most.
func (b *Broker) publishWait(
	ctx context.Context, m *Message, l local, limit time.Duration,
) (Outcome, error) {
	r := &receipt{pending: 1, done: make(chan struct{})}
	l.receipt = r
	_, err := b.publishLocal(ctx, m, l)
	if err != nil {
		return Outcome{}, err
	}
	r.published()
	var over <-chan time.Time
	if limit >= 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	lock.NoneHeld("a wait")
	select {
	case <-r.done:
	case <-over:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-b.ctx.Done():
		err = ErrBrokerClosed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == 0 {
		err = nil
	}
	return r.outcome, err
}

// A receipt counts what becomes of the deliveries of one message. Its lock is a leaf.
type receipt struct {
	name string // for Observer.Settled; empty: it is not called

	mu      lock.Mutex[receiptLock]
	pending int // deliveries under way, and one for publishWait until it has published
	outcome Outcome
	done    chan struct{} // closed when none is pending; nil: nobody waits
}

// maxReceipt is how long the name of a receipt may be. Each delivery is counted with it.
const maxReceipt = 256

// receiptOf returns the receipt of a message with the given properties. It is r with the name that
// the message has, if any. If r is nil, it is a new receipt, or nil if the message has no name.
func (b *Broker) receiptOf(r *receipt, props packets.Properties) *receipt {
	if len(props) == 0 || b.obs.Settled == nil {
		return r
	}
	return b.namedReceipt(r, props)
}

// namedReceipt is receiptOf for a message that has properties.
func (b *Broker) namedReceipt(r *receipt, props packets.Properties) *receipt {
	for key, value := range props.User() {
		if key == b.cfg().ReceiptProperty && value != "" && len(value) <= maxReceipt {
			if r == nil {
				r = new(receipt)
			}
			r.name = strings.Clone(value)
			break
		}
	}
	return r
}

// enter counts one more delivery. All methods do nothing on nil.
func (r *receipt) enter() {
	if r != nil {
		r.mu.Lock()
		r.pending++
		r.outcome.Matched++
		r.mu.Unlock()
	}
}

// leave ends one delivery to s: it has arrived, if why is 0, or is lost. s.mu is held.
func (r *receipt) leave(s *session, qos packets.QoS, why hooks.DropReason) {
	if r == nil {
		return
	}
	r.mu.Lock()
	if why == 0 {
		r.outcome.Acknowledged++
	} else {
		r.outcome.Lost++
	}
	r.lessLocked()
	r.mu.Unlock()
	if f := s.b.obs.Settled; f != nil && r.name != "" {
		f(hooks.Settled{Client: s.observed(), Receipt: r.name, QoS: qos, Reason: why})
	}
}

// published ends the count that publishWait began with.
func (r *receipt) published() {
	r.mu.Lock()
	r.lessLocked()
	r.mu.Unlock()
}

// moved takes back one delivery, see withdraw.
func (r *receipt) moved() {
	if r != nil {
		r.mu.Lock()
		r.outcome.Matched--
		r.lessLocked()
		r.mu.Unlock()
	}
}

func (r *receipt) lessLocked() {
	if r.pending--; r.pending == 0 && r.done != nil {
		close(r.done)
	}
}

// receipt returns the receipt that d counts for, nil for most.
func (d *delivery) receipt() *receipt {
	if d.extra == nil || d.extra.to == nil {
		return nil
	}
	return d.extra.receipt
}

// settleArrived tells the receipt that d has arrived. Only the first call of it or settleLost
// counts. The lock of the Session is held.
func (d *delivery) settleArrived() { d.settle(0) }

// settleLost tells the receipt that d is lost. Only the first call of it or settleArrived counts.
// The lock of the Session is held.
func (d *delivery) settleLost(why hooks.DropReason) { d.settle(why) }

func (d *delivery) settle(why hooks.DropReason) {
	if r := d.receipt(); r != nil {
		s := d.extra.to
		d.extra.to = nil
		r.leave(s, d.qos, why)
	}
}

// withdraw takes d back from its receipt: another delivery takes its place, or the message could
// not be stored and its publisher is refused.
func (d *delivery) withdraw() {
	if r := d.receipt(); r != nil {
		d.extra.to = nil
		r.moved()
	}
}

// settleLeft is settleLost for a delivery that a Session has left to others, without its lock.
func (d *delivery) settleLeft(why hooks.DropReason) {
	if d.receipt() != nil {
		s := d.extra.to
		s.mu.Lock()
		defer s.mu.Unlock()
		d.settleLost(why)
	}
}
