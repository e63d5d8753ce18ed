package dunlin

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
)

// A Decoder makes a value of a message. It runs on the goroutine that reads the subscription, and
// must not modify the message.
type Decoder[T any] func(m *Message) (T, error)

// JSON is a Decoder for payloads that are JSON texts.
func JSON[T any](m *Message) (v T, err error) {
	if err := json.Unmarshal(m.Payload, &v); err != nil {
		return v, fmt.Errorf("the payload on %s is not what is expected: %w", m.Topic, err)
	}
	return v, nil
}

// Decoded is a message with what a Decoder made of it.
type Decoded[T any] struct {
	*Incoming
	// Value is what the Decoder returned, to be used only where Err is nil.
	Value T
	// Err is the Decoder's error. A message with one is still there to look at, and to be
	// acknowledged.
	Err error
}

// SubscriptionOf is a Subscription whose messages are decoded.
type SubscriptionOf[T any] struct {
	*Subscription
	decode Decoder[T]
}

// SubscribeAs subscribes as b.Subscribe does, and decodes what comes: SubscribeAs(ctx, b,
// "sensors/+", JSON[Reading], nil).
func SubscribeAs[T any](ctx context.Context, b *Broker, filter string, decode Decoder[T],
	o *SubscribeOptions) (*SubscriptionOf[T], error) {
	sub, err := b.Subscribe(ctx, filter, o)
	if err != nil {
		return nil, err
	}
	return &SubscriptionOf[T]{sub, decode}, nil
}

// Next returns the next message. Its errors are those of Subscription.Next; that of the Decoder is
// in the message.
func (s *SubscriptionOf[T]) Next(ctx context.Context) (*Decoded[T], error) {
	m, err := s.Subscription.Next(ctx)
	if err != nil {
		return nil, err
	}
	return s.decoded(m), nil
}

// Messages yields messages until the Subscription is closed.
func (s *SubscriptionOf[T]) Messages() iter.Seq[*Decoded[T]] {
	return func(yield func(*Decoded[T]) bool) {
		for m := range s.Subscription.Messages() {
			if !yield(s.decoded(m)) {
				return
			}
		}
	}
}

func (s *SubscriptionOf[T]) decoded(m *Incoming) *Decoded[T] {
	v, err := s.decode(&m.Message)
	return &Decoded[T]{m, v, err}
}
