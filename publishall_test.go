package dunlin

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

func TestPublishAllPublishesInOrderUntilTheFirstError(t *testing.T) {
	inProcess(t, func(c *Config) {
		c.Store, c.MaxTopicLevels = new(memory.Store), 2
	}, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "#", &SubscribeOptions{QoS: 1, Name: "kept",
			Buffer: 3 * publishChunk})
		list := make([]*Message, 2*publishChunk+10)
		want := make([]string, len(list))
		for i := range list {
			want[i] = fmt.Sprint(i)
			list[i] = &Message{Topic: "a/b", Payload: []byte(want[i]), QoS: QoS(i % 3)}
		}
		n, err := b.PublishAll(t.Context(), list...)
		require.NoError(t, err)
		require.Equal(t, len(list), n)
		require.Equal(t, want, unread(sub), "every message, in order")

		bad := publishChunk + 3
		list[bad] = &Message{Topic: "a/b/c"}
		n, err = b.PublishAll(t.Context(), list...)
		require.ErrorContains(t, err, "a topic of 3 levels")
		require.Equal(t, bad, n, "which one is refused")
		require.Equal(t, want[:bad], unread(sub), "nothing behind the one that is refused")

		n, err = b.PublishAll(t.Context())
		require.NoError(t, err, "an empty list")
		require.Zero(t, n)
	})
}

func TestPublishAllTellsWhatTheStoreRefused(t *testing.T) {
	st := &faultStore{Store: new(memory.Store)}
	inProcess(t, func(c *Config) { c.Store = st }, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "#", &SubscribeOptions{QoS: 1, Name: "kept"})
		st.before = func([]store.Op) error { return errors.New("the disk is full") }
		n, err := b.PublishAll(t.Context(), &Message{Topic: "a"}, &Message{Topic: "b", QoS: 1},
			&Message{Topic: "c", QoS: 1})
		require.Error(t, err)
		require.Equal(t, 1, n, "the message at QoS 0 needs no Store")
		require.Len(t, unread(sub), 1)
		st.before = nil
	})
}

func TestPublishAllWaitsForAFullSubscription(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "a", &SubscribeOptions{Buffer: 2, Overflow: OverflowBlock,
			BlockTimeout: time.Hour})
		list := make([]*Message, 20)
		for i := range list {
			list[i] = &Message{Topic: "a"}
		}
		over := make(chan int, 1)
		go func() {
			n, _ := b.PublishAll(t.Context(), list...)
			over <- n
		}()
		synctest.Wait()
		sub.s.mu.Lock()
		require.EqualValues(t, 3, sub.s.out.queue.Len(), "two in the buffer, and the one that waits")
		sub.s.mu.Unlock()
		for range list {
			_, err := sub.Next(t.Context())
			require.NoError(t, err)
		}
		require.Equal(t, len(list), <-over)
		require.Zero(t, sub.Dropped())
	})
}
