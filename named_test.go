package dunlin

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

func TestANamedSubscriptionKeepsItsQueue(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		o := &SubscribeOptions{QoS: 2, Name: "jobs", ManualAck: true, Expiry: time.Hour}
		sub := mustSubscribe(t, b, "jobs/#", o)
		for i := range 3 {
			mustPublish(t, b, "jobs/x", fmt.Sprint(i), QoS(i%3))
		}
		first, err := sub.Next(t.Context())
		require.NoError(t, err)
		second, err := sub.Next(t.Context())
		require.NoError(t, err)
		require.False(t, second.Redelivered)
		sub.Close()
		first.Ack() // of QoS 0, does nothing
		second.Ack()
		mustPublish(t, b, "jobs/x", "3", 1)
		mustPublish(t, b, "jobs/x", "lost, as for clients that are away", 0)
		info, ok := b.Session("$local/jobs")
		require.True(t, ok)
		require.Equal(t, 2, info.Queued)
		require.True(t, time.Now().Add(time.Hour).Equal(info.ExpiresAt))

		sub = mustSubscribe(t, b, "jobs/#", o)
		m, err := sub.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, "1", string(m.Payload), "what was not acknowledged comes first")
		require.True(t, m.Redelivered)
		m.Ack()
		require.Equal(t, []string{"2", "3"}, unread(sub))

		taken := sub
		sub = mustSubscribe(t, b, "jobs/#", &SubscribeOptions{QoS: 2, Name: "jobs"})
		_, err = taken.Next(t.Context())
		require.ErrorIs(t, err, ErrSubscriptionTaken)
		require.Equal(t, []string{"2", "3"}, unread(sub), "acknowledged by reading now")
		sub.Close()
		require.Empty(t, unread(mustSubscribe(t, b, "jobs/#", o)), "and not twice")

		require.True(t, deletes(t, b, "$local/jobs"), "also while somebody reads it")
		_, ok = b.Session("$local/jobs")
		require.False(t, ok)
		require.Zero(t, b.tree.Len())
	})
}

func TestANamedSubscriptionExpires(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "a", &SubscribeOptions{QoS: 1, Name: "n", Expiry: time.Hour})
		time.Sleep(2 * time.Hour)
		mustPublish(t, b, "a", "there", 1)
		require.Equal(t, []string{"there"}, unread(sub), "not while it is read")
		sub.Close()
		time.Sleep(time.Hour + time.Second)
		require.Zero(t, b.tree.Len())
		require.Zero(t, b.Stats().Sessions)

		sub = mustSubscribe(t, b, "a", &SubscribeOptions{Name: "n"})
		require.NoError(t, sub.Delete())
		require.Zero(t, b.Stats().Sessions, "Delete does not wait for the expiry")
	})
}

// Whoever loses the race for a Name learns that, and nothing that sounds like a fault.
func TestSubscribersRaceForAName(t *testing.T) {
	b := newTestBroker(t, nil)
	defer b.Close()
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			for n := range 3000 {
				if i == 4 { // also while nobody holds it
					b.DeleteSession(t.Context(), "$local/n")
					continue
				}
				sub, err := b.Subscribe(t.Context(), "a", &SubscribeOptions{Name: "n", QoS: 1})
				if err == nil {
					err = sub.Publish(t.Context(), &Message{Topic: "a", QoS: 1})
				}
				if err != nil && err != ErrSubscriptionTaken && err != ErrSubscriptionClosed {
					t.Errorf("round %d: %v", n, err)
				}
				if sub != nil {
					sub.Delete()
				}
			}
		})
	}
	wg.Wait()
	b.DeleteSession(t.Context(), "$local/n")
	require.Zero(t, b.tree.Len())
	require.Zero(t, b.Stats().Sessions)
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.locals)
}

func TestANamedSubscriptionSurvivesARestart(t *testing.T) {
	st := new(memory.Store)
	require.NoError(t, st.Close())
	life := func(f func(t *testing.T, b *Broker)) {
		t.Helper()
		inProcess(t, func(c *Config) {
			require.NoError(t, st.Open())
			c.Store = st
		}, f)
	}
	o := &SubscribeOptions{Name: "jobs", QoS: 2, ManualAck: true, ID: 3}
	life(func(t *testing.T, b *Broker) {
		require.NoError(t, b.Publish(t.Context(), &Message{Topic: "jobs/retained",
			Payload: []byte("retained"), QoS: 1, Retain: true}))
		sub := mustSubscribe(t, b, "jobs/#", o)
		for i := range 4 {
			mustPublish(t, b, "jobs/x", fmt.Sprint(i), QoS(1+i%2))
		}
		mustPublish(t, b, "jobs/x", "not stored", 0)
		for i := range 3 {
			m, err := sub.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(i), string(m.Payload))
			if i == 1 {
				m.Ack()
			}
		}
	})
	life(func(t *testing.T, b *Broker) {
		mustPublish(t, b, "jobs/x", "while nobody reads", 1)
		info, ok := b.Session("$local/jobs")
		require.True(t, ok)
		require.Len(t, info.Subscriptions, 1)
		sub := mustSubscribe(t, b, "jobs/#", &SubscribeOptions{Name: "jobs", QoS: 2,
			ManualAck: true, RetainHandling: RetainHandlingSendIfNew})
		for _, want := range []string{"0", "2", "3", "while nobody reads"} {
			m, err := sub.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, want, string(m.Payload))
			require.Equal(t, want < "3", m.Redelivered)
			m.Ack()
		}
		require.Empty(t, unread(sub))
	})
	life(func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "jobs/#", &SubscribeOptions{Name: "jobs", QoS: 1,
			RetainHandling: RetainHandlingSendIfNew})
		require.Empty(t, unread(sub), "all was acknowledged")
		mustPublish(t, b, "jobs/x", "read", 1)
		require.Equal(t, []string{"read"}, unread(sub))
		mustPublish(t, b, "jobs/x", "unread", 1)
	})
	life(func(t *testing.T, b *Broker) {
		sub := mustSubscribe(t, b, "jobs/#", &SubscribeOptions{Name: "jobs", QoS: 1,
			RetainHandling: RetainHandlingSendIfNew})
		require.Equal(t, []string{"unread"}, unread(sub))
		sub.Delete()
	})
	life(func(t *testing.T, b *Broker) {
		_, ok := b.Session("$local/jobs")
		require.False(t, ok, "what was deleted stays so")
	})
	life(func(t *testing.T, b *Broker) { // the time between two lives counts
		mustSubscribe(t, b, "jobs/#", &SubscribeOptions{Name: "jobs", Expiry: time.Hour}).Close()
		time.Sleep(time.Hour + time.Second)
		_, ok := b.Session("$local/jobs")
		require.False(t, ok)
	})
}

func TestANamedSubscriptionIsRefusedWhileTheStoreFails(t *testing.T) {
	inProcess(t, func(c *Config) { c.Store = &refusingStore{} }, func(t *testing.T, b *Broker) {
		_, err := b.Subscribe(t.Context(), "a", &SubscribeOptions{Name: "n"})
		require.ErrorIs(t, err, store.ErrFull)
		require.Zero(t, b.Stats().Sessions)
		mustSubscribe(t, b, "a", nil) // of which the store knows nothing
	})
}
