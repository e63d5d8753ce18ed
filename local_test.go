package dunlin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// Tests of what the program does itself: Publish, Subscribe, Request and Respond.

// inProcess runs f in a bubble with a Broker.
func inProcess(t *testing.T, edit func(*Config), f func(t *testing.T, b *Broker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, edit)
		defer b.Close()
		f(t, b)
	})
}

func mustSubscribe(t *testing.T, b *Broker, filter string, o *SubscribeOptions) *Subscription {
	t.Helper()
	sub, err := b.Subscribe(t.Context(), filter, o)
	require.NoError(t, err)
	return sub
}

func mustPublish(t *testing.T, b *Broker, topic, payload string, qos QoS) {
	t.Helper()
	require.NoError(t, b.Publish(t.Context(),
		&Message{Topic: topic, Payload: []byte(payload), QoS: qos}))
}

// unread takes what is there without waiting.
func unread(sub *Subscription) (got []string) {
	for {
		m, more := sub.take(time.Now())
		if m != nil {
			got = append(got, string(m.Payload))
		} else if !more {
			return got
		}
	}
}

func TestPublishRefusesWhatNoClientCouldPublish(t *testing.T) {
	inProcess(t, func(c *Config) {
		c.MaxTopicLevels, c.MaxTopicLength, c.MaxPacketSize = 3, 200,
			1000
	}, func(t *testing.T, b *Broker) {
		for _, tt := range []struct {
			name string
			m    Message
			code packets.ReasonCode
			says string
		}{
			{"no topic", Message{}, packets.TopicNameInvalid, `"" is no Topic Name`},
			{"a wildcard", Message{Topic: "a/#"}, packets.TopicNameInvalid,
				`"a/#" is no Topic Name`},
			{"a long one with a wildcard", Message{Topic: strings.Repeat("+", 200)},
				packets.TopicNameInvalid, `"` + strings.Repeat("+", maxName) + `" is no`},
			{"too many levels", Message{Topic: "a/b/c/d"}, packets.TopicNameInvalid,
				"a topic of 4 levels, at most 3 are accepted"},
			{"too many bytes", Message{Topic: strings.Repeat("x", 201)}, packets.TopicNameInvalid,
				"a topic of 201 bytes, at most 200 are accepted"},
			{"more than any topic has", Message{Topic: strings.Repeat("x/", 35_000)},
				packets.TopicNameInvalid, "a topic of 70000 bytes"},
			{"a QoS that is none", Message{Topic: "a", QoS: 3}, packets.ProtocolError, "QoS 3"},
			{"a property of another packet", Message{Topic: "a",
				Properties: packets.Properties(nil).AppendUint(packets.ReceiveMaximum, 1)},
				packets.MalformedPacket, "receive-maximum is not allowed"},
			{"a Topic Alias", Message{Topic: "a",
				Properties: packets.Properties(nil).AppendUint(packets.TopicAlias, 1)},
				packets.ProtocolError, "does not travel"},
			{"more than a packet can hold", Message{Topic: "a",
				Payload: make([]byte, maxPacketSize)}, packets.PacketTooLarge,
				"no packet can hold more"},
		} {
			err := b.Publish(t.Context(), &tt.m)
			require.Error(t, err, tt.name)
			require.Equal(t, tt.code, packets.CodeOf(err), "%s: %v", tt.name, err)
			require.Contains(t, err.Error(), tt.says, tt.name)
			require.Less(t, len(err.Error()), 300, tt.name)
		}
		for filter, says := range map[string]string{
			"a/b/c/#":                   "a filter of 4 levels, at most 3",
			strings.Repeat("x", 70_000): "a filter of 70000 bytes, at most 200",
			strings.Repeat("x+", 100):   "is no Topic Filter",
		} {
			_, err := b.Subscribe(t.Context(), filter, nil)
			require.Equal(t, packets.TopicFilterInvalid, packets.CodeOf(err))
			require.Contains(t, err.Error(), says)
			require.Less(t, len(err.Error()), 300)
		}
		// MaxPacketSize is for what clients send
		mustPublish(t, b, "a", strings.Repeat("x", 2000), 0)
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("why")
		cancel(why)
		require.ErrorIs(t, b.Publish(ctx, &Message{Topic: "a"}), why)
	})
}

func TestPropertiesArriveAsPublished(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "a", &SubscribeOptions{QoS: 2, ID: 7})
		props := packets.Properties(nil).AppendUint(packets.PayloadFormatIndicator,
			1).AppendUint(packets.MessageExpiryInterval, 60).
			AppendText(packets.ContentType, "text/plain").AppendText(packets.ResponseTopic, "r").
			AppendBytes(packets.CorrelationData, []byte{0, 1}).AppendUser("k", "v").AppendUser("k",
			"w")
		at := time.Now()
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "a", Payload: []byte("p"), QoS: 2, Properties: props}))
		m, err := sub.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, props, m.Properties)
		require.Equal(t, "text/plain", m.ContentType())
		require.Equal(t, []byte{0, 1}, m.CorrelationData())
		require.Equal(t, packets.QoS2, m.QoS)
		require.Equal(t, []uint32{7}, m.SubscriptionIDs)
		require.True(t, at.Add(time.Minute).Equal(m.Expires), "the absolute expiry is %v",
			m.Expires)
	})
}

func TestPublishWaitCountsWhatBecomesOfTheMessage(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		none, err := b.PublishWait(t.Context(), &Message{Topic: "x", QoS: 1})
		require.NoError(t, err)
		require.Equal(t, Outcome{}, none, "nobody subscribes")

		c, _ := newTestClient(t, dial(t, l), connect("c"))
		c.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "x", QoS: 2}}})
		c.recv()
		manual := mustSubscribe(t, b, "x", &SubscribeOptions{QoS: 1, ManualAck: true})
		full := mustSubscribe(t, b, "x", &SubscribeOptions{Buffer: 1, Overflow: OverflowDropNewest})
		mustPublish(t, b, "x", "fills the one with room for one", 0)
		require.Len(t, unread(manual), 1)
		c.recv()

		type result struct {
			Outcome
			err error
		}
		done := make(chan result, 1)
		go func() {
			o, err := b.PublishWait(t.Context(),
				&Message{Topic: "x", Payload: []byte("waited for"), QoS: 2})
			done <- result{o, err}
		}()
		synctest.Wait()
		p := c.recv().(*packets.Publish)
		select {
		case r := <-done:
			t.Fatalf("it did not wait: %+v", r)
		default:
		}
		c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: p.PacketID})
		synctest.Wait()
		require.Empty(t, done, "one more has to acknowledge")
		m, err := manual.Next(t.Context())
		require.NoError(t, err)
		m.Ack()
		m.Ack()
		synctest.Wait()
		require.Equal(t, result{Outcome{Matched: 3, Acknowledged: 2, Lost: 1}, nil}, <-done)
		require.Equal(t, []string{"fills the one with room for one"}, unread(full))

		// Whoever waits with an end learns how far it got.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		at := time.Now()
		o, err := b.PublishWait(ctx, &Message{Topic: "x", QoS: 1})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Minute, time.Since(at))
		require.Equal(t, Outcome{Matched: 3}, o)

		// What is in flight to a session that ends is lost; what a member of a group leaves goes to
		// another.
		go func() {
			o, err := b.PublishWait(t.Context(), &Message{Topic: "x", QoS: 1})
			done <- result{o, err}
		}()
		synctest.Wait()
		require.NoError(t, manual.Close())
		require.NoError(t, full.Close())
		synctest.Wait()
		require.True(t, deletes(t, b, "c"))
		require.Equal(t, Outcome{Matched: 3, Lost: 3}, (<-done).Outcome)
		first := mustSubscribe(t, b, "$share/g/y", &SubscribeOptions{QoS: 1, ManualAck: true})
		go func() {
			o, err := b.PublishWait(t.Context(), &Message{Topic: "y", QoS: 1})
			done <- result{o, err}
		}()
		synctest.Wait()
		second := mustSubscribe(t, b, "$share/g/y", &SubscribeOptions{QoS: 1})
		require.NoError(t, first.Close())
		require.Len(t, unread(second), 1)
		require.Equal(t, Outcome{Matched: 1, Acknowledged: 1}, (<-done).Outcome)
	})
}

func TestSubscribeRefusesWhatMakesNoSense(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		for _, tt := range []struct {
			name, filter string
			o            SubscribeOptions
			want         string
		}{
			{"a wildcard within a level", "a#", SubscribeOptions{}, "no Topic Filter"},
			{"a share without a filter", "$share/g", SubscribeOptions{}, ""},
			{"a QoS that is none", "a", SubscribeOptions{QoS: 3}, "QoS is 3"},
			{"an identifier too large", "a", SubscribeOptions{ID: 268_435_456}, "ID is 268435456"},
			{"a retain handling that is none", "a", SubscribeOptions{RetainHandling: 3},
				"RetainHandling is 3"},
			{"No Local with a share", "$share/g/a", SubscribeOptions{NoLocal: true}, "No Local"},
			{"a policy for clients", "a", SubscribeOptions{Overflow: OverflowDisconnect},
				"Overflow"},
			{"a negative buffer", "a", SubscribeOptions{Buffer: -1}, "Buffer is -1"},
			{"a negative wait", "a", SubscribeOptions{BlockTimeout: -1}, "BlockTimeout is -1ns"},
			{"a negative expiry", "a", SubscribeOptions{Expiry: -1}, "Expiry is -1ns"},
			{"a name that is no Client Identifier", "a", SubscribeOptions{Name: "\xff"},
				"the Name"},
			{"a name that is too long", "a", SubscribeOptions{Name: strings.Repeat("n", 65_529)},
				"65529 bytes"},
		} {
			_, err := b.Subscribe(t.Context(), tt.filter, &tt.o)
			require.ErrorContains(t, err, tt.want, tt.name)
		}
		require.Empty(t, b.locals, "nothing stays of what was refused")
		_, err := New(Config{Authenticator: hooks.AllowAll, Overflow: OverflowBlock})
		require.Error(t, err, "clients cannot be waited for")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = b.Subscribe(ctx, "a", nil)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestSubscriptionEndsWithItsContextCloseOrTheBroker(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		why := errors.New("why")
		ctx, cancel := context.WithCancelCause(t.Context())
		byContext, err := b.Subscribe(ctx, "a", nil)
		require.NoError(t, err)
		byClose, byBroker := mustSubscribe(t, b, "a", nil), mustSubscribe(t, b, "a", nil)
		require.NoError(t, byClose.Err())
		cancel(why)
		_, err = byContext.Next(t.Context())
		require.ErrorIs(t, err, why)
		byClose.Close()
		byClose.Close()
		for range byClose.Messages() {
			t.Error("a message after Close")
		}
		require.ErrorIs(t, byClose.Err(), ErrSubscriptionClosed)
		require.ErrorIs(t, byClose.Add("b", nil), ErrSubscriptionClosed)
		require.ErrorIs(t, byClose.Publish(t.Context(), &Message{Topic: "a"}),
			ErrSubscriptionClosed)
		require.False(t, removes(t, byClose, "a"))
		reader, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		_, err = byBroker.Next(reader)
		require.ErrorIs(t, err, context.DeadlineExceeded, "the reader's own context")
		b.Close()
		_, err = byBroker.Next(t.Context())
		require.ErrorIs(t, err, ErrBrokerClosed)
		require.Equal(t, 0, b.tree.Len())
	})
}

func TestRetainHandlingOfSubscriptions(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "r/1", Payload: []byte("one"), QoS: 2, Retain: true}))
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "r/2", Payload: []byte("two"), Retain: true}))
		sub := mustSubscribe(t, b, "r/#", &SubscribeOptions{QoS: 1, ID: 5})
		m, err := sub.Next(t.Context())
		require.NoError(t, err)
		require.True(t, m.Retain)
		require.Equal(t, packets.QoS1, m.QoS, "the lower of the two")
		require.Equal(t, []uint32{5}, m.SubscriptionIDs)
		require.Equal(t, []string{"two"}, unread(sub))
		require.Empty(t, unread(mustSubscribe(t, b, "r/#",
			&SubscribeOptions{RetainHandling: RetainHandlingSkip})))
		require.Empty(t, unread(mustSubscribe(t, b, "$share/g/r/#", nil)),
			"shared subscriptions get none")

		named := &SubscribeOptions{Name: "n", RetainHandling: RetainHandlingSendIfNew}
		first := mustSubscribe(t, b, "r/#", named)
		require.Len(t, unread(first), 2)
		first.Close()
		require.Empty(t, unread(mustSubscribe(t, b, "r/#", named)), "the subscription is not new")

		asPublished := mustSubscribe(t, b, "x", &SubscribeOptions{RetainAsPublished: true})
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "x", Payload: []byte("x"), Retain: true}))
		m, err = asPublished.Next(t.Context())
		require.NoError(t, err)
		require.True(t, m.Retain)
	})
}

func TestNoLocalAndSeveralFilters(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		sub := mustSubscribe(t, b, "a/#", &SubscribeOptions{NoLocal: true, ID: 1})
		require.NoError(t, sub.Add("+/b", &SubscribeOptions{QoS: 1, ID: 2}))
		require.NoError(t, sub.Publish(t.Context(), &Message{Topic: "a/x", Payload: []byte("own")}))
		mustPublish(t, b, "a/b", "of the program", 1)
		m, err := sub.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, "of the program", string(m.Payload), "its own is left out")
		require.Equal(t, []uint32{1, 2}, m.SubscriptionIDs)
		require.Equal(t, packets.QoS1, m.QoS)
		require.Empty(t, m.Publisher)

		c, _ := newTestClient(t, dial(t, l), connect("c"))
		c.send(&packets.Publish{Topic: []byte("a/c"), Payload: []byte("of a client")})
		m, err = sub.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, "c", m.Publisher)

		require.True(t, removes(t, sub, "a/#"))
		require.False(t, removes(t, sub, "a/#"))
		mustPublish(t, b, "a/c", "", 0)
		mustPublish(t, b, "c/b", "still", 0)
		require.Equal(t, []string{"still"}, unread(sub))
	})
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestOverflowPolicies(t *testing.T) {
	for _, tt := range []struct {
		name   string
		policy Overflow
		want   []string
	}{
		{"the oldest makes room", OverflowDropOldest, []string{"2", "3", "4"}},
		{"the newest is dropped", OverflowDropNewest, []string{"0", "1", "2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log syncBuffer
			inProcess(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) },
				func(t *testing.T, b *Broker) {
					sub := mustSubscribe(t, b, "a", &SubscribeOptions{Buffer: 3, Overflow: tt.policy})
					for i := range 5 {
						mustPublish(t, b, "a", fmt.Sprint(i), 0)
					}
					require.EqualValues(t, 2, sub.Dropped())
					require.Empty(t, log.String(), "nothing is logged on the publisher's goroutine")
					time.Sleep(2 * time.Second)
					synctest.Wait()
					require.Equal(t, 1, strings.Count(log.String(), "lost=2"), "one line for both: %s",
						log.String())
					require.Equal(t, tt.want, unread(sub))
					for i := range 5 {
						mustPublish(t, b, "a", fmt.Sprint(i), 0)
					}
					sub.Close()
					require.Contains(t, log.String(), `lost=2 "in all"=4`,
						"Close logs what has not been")
				})
		})
	}
}

func TestExpiredMessagesAreNotRead(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "a", nil)
		props := packets.Properties(nil).AppendUint(packets.MessageExpiryInterval, 10)
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "a", Payload: []byte("gone"), Properties: props}))
		mustPublish(t, b, "a", "there", 0)
		time.Sleep(11 * time.Second)
		require.Equal(t, []string{"there"}, unread(sub))
		require.EqualValues(t, 1, sub.Dropped())
	})
}

func TestBlockHoldsBackWhoPublishesAndNobodyElse(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		slow := mustSubscribe(t, b, "a", &SubscribeOptions{QoS: 1, Buffer: 2,
			Overflow: OverflowBlock, BlockTimeout: time.Minute})
		other := mustSubscribe(t, b, "b", nil)
		held, _ := newTestClient(t, dial(t, l), connect("held"))
		free, _ := newTestClient(t, dial(t, l), connect("free"))
		for i := range 10 { // most likely in one read of the broker
			held.send(&packets.Publish{Topic: []byte("a"), Payload: fmt.Append(nil, i), QoS: 1,
				PacketID: uint16(i + 1)})
		}
		for range 3 { // two in the buffer, and the one that waits
			held.recv()
		}
		synctest.Wait()
		time.Sleep(10 * time.Second)
		slow.s.mu.Lock()
		require.EqualValues(t, 3, slow.s.out.queue.Len(), "no more of it is read")
		slow.s.mu.Unlock()

		free.send(&packets.Publish{Topic: []byte("b"), Payload: []byte("passes")})
		m, err := other.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, "passes", string(m.Payload))

		for i := range 10 {
			m, err := slow.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(i), string(m.Payload), "nothing is lost, all is in order")
		}
		require.Zero(t, slow.Dropped())

		// The program itself waits as well, and gives up with its context; the message is there.
		for i := range 2 {
			mustPublish(t, b, "a", fmt.Sprint(i), 0)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		at := time.Now()
		require.NoError(t, b.Publish(ctx, &Message{Topic: "a", Payload: []byte("2")}))
		require.Equal(t, 5*time.Second, time.Since(at))
		require.Equal(t, []string{"0", "1", "2"}, unread(slow))
	})
}

func TestABlockingSubscriptionThatStallsDelaysNobodyTwice(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "a", &SubscribeOptions{Buffer: 1, Overflow: OverflowBlock})
		at := time.Now()
		for i := range 5 {
			mustPublish(t, b, "a", fmt.Sprint(i), 0)
		}
		require.Equal(t, time.Second, time.Since(at), "one wait of BlockTimeout")
		require.EqualValues(t, 3, sub.Dropped())
		require.Equal(t, []string{"0", "1"}, unread(sub))
		mustPublish(t, b, "a", "again", 0)
		require.Equal(t, []string{"again"}, unread(sub))

		// A publisher that waits goes on when the subscription ends.
		mustPublish(t, b, "a", "", 0)
		go func() {
			time.Sleep(100 * time.Millisecond)
			sub.Close()
		}()
		at = time.Now()
		mustPublish(t, b, "a", "", 0)
		require.Equal(t, 100*time.Millisecond, time.Since(at))
	})
}

func TestShutdownDoesNotWaitForABlockedPublisher(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		mustSubscribe(t, b, "a", &SubscribeOptions{Buffer: 1, Overflow: OverflowBlock,
			BlockTimeout: time.Hour})
		c, _ := newTestClient(t, dial(t, l), connect("c"))
		for range 5 {
			c.send(&packets.Publish{Topic: []byte("a")})
		}
		synctest.Wait()
		at := time.Now()
		require.NoError(t, b.Close())
		require.Zero(t, time.Since(at))
	})
}

func TestManualAckLimitsWhatIsOut(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "a", &SubscribeOptions{QoS: 1, Buffer: 2, ManualAck: true})
		for i := range 4 {
			mustPublish(t, b, "a", fmt.Sprint(i), 1)
			if i == 1 {
				require.Equal(t, []string{"0", "1"}, unread(sub))
			}
		}
		require.Empty(t, unread(sub), "two are out")
		sub.Close()
	})
}

// A Session that is ended just as somebody takes it leaves nobody waiting.
func TestASubscriptionEndsWithItsSession(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "a", &SubscribeOptions{Name: "n"})
		b.work(func(turn *turn) { b.endSession(turn, sub.s, nil) })
		_, err := sub.Next(t.Context())
		require.ErrorIs(t, err, ErrSubscriptionClosed)
		require.ErrorIs(t, sub.Add("b", nil), ErrSubscriptionClosed)
		require.Empty(t, b.locals)

		sub = mustSubscribe(t, b, "a", &SubscribeOptions{Name: "n"})
		ended := func(is bool) {
			sub.s.mu.Lock()
			defer sub.s.mu.Unlock()
			sub.s.ended = is
		}
		ended(true) // by somebody who has not come to tell the Subscription yet
		require.ErrorIs(t, sub.Add("b", nil), ErrSubscriptionClosed)
		ended(false)
	})
}

func TestClientsCannotHaveTheSessionsOfTheProgram(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		mustSubscribe(t, b, "a", &SubscribeOptions{Name: "n"}).Close()
		_, ack := newTestClient(t, dial(t, l), connect("$local/n"))
		require.Equal(t, packets.ClientIdentifierNotValid, ack.Code)
	})
}

func TestConcurrentReadersPublishersAndClosers(t *testing.T) {
	b := newTestBroker(t, nil)
	defer b.Close()
	sub := mustSubscribe(t, b, "a/#", &SubscribeOptions{QoS: 1, Buffer: 8, Overflow: OverflowBlock,
		BlockTimeout: time.Hour, ManualAck: true})
	const publishers, each = 4, 200
	var wg, readers sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[string]int)
	for range 3 {
		readers.Go(func() {
			for m := range sub.Messages() {
				mu.Lock()
				seen[m.Topic+string(m.Payload)]++
				mu.Unlock()
				m.Ack()
			}
		})
	}
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				m := &Message{Topic: fmt.Sprintf("a/%d", p), Payload: fmt.Append(nil, i), QoS: 1}
				if err := b.Publish(t.Context(), m); err != nil {
					t.Error(err)
				}
				if i%50 == 0 { // named ones that come, take each other over, and go
					switch s, err := b.Subscribe(t.Context(), "a/#",
						&SubscribeOptions{Name: "n", QoS: 1}); {
					case err == ErrSubscriptionTaken: // by another publisher, meanwhile
					case err != nil:
						t.Error(err)
					case p == 0:
						s.Close()
					}
				}
			}
		})
	}
	wg.Wait()
	b.DeleteSession(t.Context(), "$local/n")
	o, err := b.PublishWait(t.Context(), &Message{Topic: "a/last", QoS: 1})
	require.NoError(t, err)
	require.Equal(t, Outcome{Matched: 1, Acknowledged: 1}, o)
	sub.Close()
	readers.Wait()
	require.Zero(t, sub.Dropped())
	require.Len(t, seen, publishers*each+1)
	for k, n := range seen {
		require.Equal(t, 1, n, "message %s", k)
	}
}

func TestTypedSubscriptions(t *testing.T) {
	type reading struct{ Celsius float64 }
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		sub, err := SubscribeAs(t.Context(), b, "t", JSON[reading], nil)
		require.NoError(t, err)
		mustPublish(t, b, "t", `{"Celsius":21.5}`, 0)
		mustPublish(t, b, "t", `warm`, 0)
		m, err := sub.Next(t.Context())
		require.NoError(t, err)
		require.NoError(t, m.Err)
		require.Equal(t, reading{21.5}, m.Value)
		for m := range sub.Messages() {
			require.ErrorContains(t, m.Err, "on t is not what is expected",
				"an error is of one message")
			require.Equal(t, "warm", string(m.Payload))
			sub.Close()
		}
		_, err = sub.Next(t.Context())
		require.ErrorIs(t, err, ErrSubscriptionClosed)
		_, err = SubscribeAs(t.Context(), b, "a#", JSON[reading], nil)
		require.Error(t, err)
	})
}

// refusingStore has no room.
type refusingStore struct{ memory.Store }

func (s *refusingStore) Load(ctx context.Context) iter.Seq2[store.Op, error] {
	return func(func(store.Op, error) bool) {}
}
func (s *refusingStore) Commit(context.Context, []store.Op) error { return store.ErrFull }
func (s *refusingStore) Checkpoint(context.Context) error         { return nil }
func (s *refusingStore) Close() error                             { return nil }

// removes is Remove of a Subscription, without an error.
func removes(t *testing.T, sub *Subscription, filter string) bool {
	t.Helper()
	found, err := sub.Remove(filter)
	require.NoError(t, err)
	return found
}

// deletes is DeleteSession, without an error.
func deletes(t *testing.T, b *Broker, id string) bool {
	t.Helper()
	found, err := b.DeleteSession(t.Context(), id)
	require.NoError(t, err)
	return found
}
