package dunlin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is how the program that runs the Broker takes part itself. A Subscription is a Session like any other; only that it is read
// by a program instead of a connection.

// Publish routes m as if a client had published it, without asking the Authorizer or the Interceptor. It returns when the message is in the
// queue or the output buffer of every Session that matches, which is when a client would get its PUBACK or PUBREC, and never waits for a
// client. The Broker keeps m.Payload and m.Properties: they must not be modified afterwards. The topic may begin with "$".
//
// The error is ErrBrokerClosed, the cause of ctx if that has ended, or a *packets.Error: Topic Name invalid (0x90), Protocol Error for
// properties that no PUBLISH may have, Packet too large (0x95), Quota exceeded (0x97) where retained messages are at their limit.
func (b *Broker) Publish(ctx context.Context, m *Message) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch {
	case b.ctx.Err() != nil:
		return ErrBrokerClosed
	case !packets.ValidTopicName(m.Topic) || packets.Levels(m.Topic) > b.cfg.MaxTopicLevels:
		return packets.Errorf(packets.TopicNameInvalid, "%q is no Topic Name", m.Topic)
	case m.QoS > packets.QoS2:
		return packets.Errorf(packets.ProtocolError, "QoS %d", m.QoS)
	case len(m.Payload)+len(m.Topic)+len(m.Properties) > maxPacketSize-16:
		return packets.Errorf(packets.PacketTooLarge, "a message of %d bytes", len(m.Payload))
	}
	if len(m.Properties) > 0 {
		if err := m.Properties.Check(packets.TypePublish); err != nil {
			return err
		}
		if m.Properties.Has(packets.TopicAlias) || m.Properties.Has(packets.SubscriptionIdentifier) {
			return packets.Errorf(packets.ProtocolError, "a property that does not travel with a message")
		}
	}
	var err error
	b.work(func(t *turn) {
		sm := &message{Message: *m}
		if n, ok := m.Properties.Uint(packets.MessageExpiryInterval); ok {
			sm.Expires = t.now.Add(time.Duration(n) * time.Second).UnixNano()
		}
		_, err = t.publishMessage(sm, 0)
	})
	return err
}

// SubscribeOptions say how a program subscribes. The zero value, also nil, is QoS 0, retained messages sent, and the defaults below.
type SubscribeOptions struct {
	// QoS is the highest that messages are delivered with. At QoS 0 as well nothing is lost within Buffer.
	QoS QoS
	// SkipRetained leaves out the messages that are retained at the time of the call.
	SkipRetained bool
	// Buffer is how many messages wait for a slow reader before Overflow decides. Zero: 1,024.
	Buffer int
	// Overflow is the policy for a full buffer: DropOldest (the default) or DropNewest.
	Overflow Overflow
	// ManualAck leaves the acknowledgement of QoS 1 and 2 messages to Incoming.Ack. Messages that are not acknowledged when the Subscription
	// is closed go, if it was a shared one, to another member. No more than Buffer messages are out at a time.
	ManualAck bool
}

// Incoming is a message as a Subscription receives it. It is shared and must not be modified.
type Incoming struct {
	// Message is as it was published, but for QoS, which is that of this delivery, and Retain, which says that the message was retained
	// before the subscription was made.
	Message
	sub *Subscription
	id  uint16
}

// Ack acknowledges a QoS 1 or 2 message of a Subscription with ManualAck. Repeated calls, and calls on others, do nothing.
func (m *Incoming) Ack() {
	if m.id == 0 {
		return
	}
	s := m.sub.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.out.find(m.id); d != nil && !s.ended {
		s.out.finish(d)
		m.sub.signal()
	}
	m.id = 0
}

// A Subscription is a Session of the program itself. Its methods may be called concurrently; concurrent readers share the messages among them.
type Subscription struct {
	s        *session
	manual   bool
	overflow Overflow
	news     chan struct{} // capacity 1: something may be there to read
	closed   chan struct{}
	once     sync.Once
	stop     func() bool // of the context
	err      error       // why it is closed; set before closed is
	dropped  uint64      // guarded by s.mu
}

// ErrSubscriptionClosed is returned by Next after Close.
var ErrSubscriptionClosed = errors.New("dunlin: subscription closed")

// Subscribe subscribes the program to filter, which may be a shared one, until ctx ends, the Subscription is closed, or the Broker is. It starts no
// goroutine. A reader that falls behind loses messages, as o says, and never delays a publisher.
//
// The error is ErrBrokerClosed, the cause of ctx, or a *packets.Error with Topic Filter invalid (0x8F).
func (b *Broker) Subscribe(ctx context.Context, filter string, o *SubscribeOptions) (*Subscription, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if o == nil {
		o = new(SubscribeOptions)
	}
	group, inner, err := packets.SplitShared(filter)
	if err != nil {
		return nil, err
	}
	if !packets.ValidTopicFilter(inner) || packets.Levels(inner) > b.cfg.MaxTopicLevels {
		return nil, packets.Errorf(packets.TopicFilterInvalid, "%q is no Topic Filter", filter)
	}
	if o.QoS > packets.QoS2 || o.Overflow > DropNewest || o.Buffer < 0 {
		return nil, fmt.Errorf("dunlin: Subscribe: QoS %d, Overflow %d or Buffer %d is out of range", o.QoS, o.Overflow, o.Buffer)
	}
	buffer := o.Buffer
	if buffer == 0 {
		buffer = 1024
	}
	sub := &Subscription{manual: o.ManualAck, overflow: o.Overflow, news: make(chan struct{}, 1), closed: make(chan struct{})}
	s := &session{b: b, id: "", local: sub, quota: queueLimits{buffer, b.cfg.MaxQueuedBytes}}
	sub.s = s
	s.out.begin(min(buffer, 65535))
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil, ErrBrokerClosed
	}
	b.locals[s] = struct{}{}
	b.mu.Unlock()
	if !o.SkipRetained && group == "" {
		s.cursors = []cursor{{filter: inner, qos: o.QoS}}
	}
	if _, err := s.subscribe(nil, group, inner, subOptions{qos: o.QoS}); err != nil {
		sub.end(err)
		return nil, err
	}
	sub.stop = context.AfterFunc(ctx, func() { sub.end(context.Cause(ctx)) })
	return sub, nil
}

// signal tells a reader that there may be something. The lock is held.
func (sub *Subscription) signal() {
	select {
	case sub.news <- struct{}{}:
	default:
	}
}

// Next returns the next message. It waits until there is one, ctx ends (and returns its cause), or the Subscription is closed: then the
// error is ErrSubscriptionClosed, ErrBrokerClosed, or the cause of the context of Subscribe.
func (sub *Subscription) Next(ctx context.Context) (*Incoming, error) {
	for {
		if m := sub.take(time.Now()); m != nil {
			return m, nil
		}
		select {
		case <-sub.news:
		case <-sub.closed:
			return nil, sub.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Messages yields messages until the Subscription is closed.
func (sub *Subscription) Messages() iter.Seq[*Incoming] {
	return func(yield func(*Incoming) bool) {
		for {
			m, err := sub.Next(context.Background())
			if err != nil || !yield(m) {
				return
			}
		}
	}
}

// take returns what there is to read, nil if there is nothing.
func (sub *Subscription) take(now time.Time) *Incoming {
	s := sub.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.ended {
		d, ok := s.next(now)
		if !ok {
			return nil
		}
		m := &Incoming{Message: d.msg.Message, sub: sub}
		m.QoS, m.Retain = d.qos, d.retain
		if sub.manual && d.qos > packets.QoS0 {
			m.id = s.out.open(d)
		}
		if s.out.queue.n > 0 || len(s.cursors) > 0 {
			sub.signal() // for other readers
		}
		return m
	}
	return nil
}

// next takes the next message of an in-process session: from the queue, then from the retained ones. The lock is held.
func (s *session) next(now time.Time) (d delivery, ok bool) {
	for s.out.room() {
		if s.out.queue.n > 0 {
			d = s.out.pop()
		} else if len(s.cursors) > 0 {
			var room [1]*message
			cur := &s.cursors[0]
			found, next, over := s.b.retained.scan(cur.filter, cur.after, 1, room[:0])
			cur.after = next
			if over {
				s.cursors = nil
			}
			if len(found) == 0 {
				continue
			}
			d = delivery{msg: found[0], qos: min(found[0].QoS, cur.qos), retain: true}
		} else {
			return d, false
		}
		if d.msg.Expires == 0 || d.msg.Expires > now.UnixNano() {
			return d, true
		}
	}
	return d, false
}

// Dropped returns how many messages were lost because the reader fell behind.
func (sub *Subscription) Dropped() uint64 {
	sub.s.mu.Lock()
	defer sub.s.mu.Unlock()
	return sub.dropped
}

// Close ends the Subscription. What was not read is dropped. It returns nil, also when called again.
func (sub *Subscription) Close() error {
	sub.end(ErrSubscriptionClosed)
	return nil
}

func (sub *Subscription) end(err error) {
	sub.once.Do(func() {
		sub.err = err
		close(sub.closed)
		if sub.stop != nil {
			sub.stop()
		}
		s := sub.s
		s.b.mu.Lock()
		delete(s.b.locals, s)
		s.b.mu.Unlock()
		s.b.work(func(t *turn) { s.b.endSession(t, s, nil) })
	})
}

// closeLocal ends all Subscriptions.
func (b *Broker) closeLocal() {
	b.mu.Lock()
	var subs []*Subscription
	for s := range b.locals {
		subs = append(subs, s.local)
	}
	b.mu.Unlock()
	for _, sub := range subs {
		sub.end(ErrBrokerClosed)
	}
}
