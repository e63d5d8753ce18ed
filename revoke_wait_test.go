package dunlin

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// Whoever takes many subscriptions away, with the many messages that they have brought, holds the
// lock of the Session for a piece of that at a time.
func TestManySubscriptionsAreRevokedAFewAtATime(t *testing.T) {
	const filters, messages = 20_000, 20_000
	share := 1.0 // of the time that all takes, for one wait: of the best of some tries
	for try := 0; try < 10 && share >= 0.1; try++ {
		b := newTestBroker(t, func(c *Config) {
			c.MaxQueuedMessages, c.MaxQueuedBytes = messages, 64<<20
		})
		s := b.sessionWithQueue(t, filters, messages)
		refused := s.subscriptionList()[:filters/2]
		done := make(chan time.Duration)
		go func() {
			began := time.Now()
			require.Equal(t, filters/2, b.revoke(s, s.gen, refused))
			done <- time.Since(began)
		}()
		var longest, took time.Duration
		for took == 0 {
			began := time.Now()
			s.mu.Lock()
			longest = max(longest, time.Since(began))
			s.mu.Unlock()
			select {
			case took = <-done:
			default:
			}
		}
		share = min(share, float64(longest)/float64(took))
		t.Logf("%v of %v", longest, took)
		s.mu.Lock()
		require.EqualValues(t, messages/2, s.out.queue.Len(), "which others have brought")
		s.mu.Unlock()
		require.NoError(t, b.Close())
	}
	require.Less(t, share, 0.1)
}

// sessionWithQueue returns the Session of a client that is away, with that many subscriptions and
// messages for them, in turn.
func (b *Broker) sessionWithQueue(t *testing.T, filters, messages int) *session {
	here, there := net.Pipe()
	go b.ServeConn(context.Background(), there)
	c, _ := newTestClient(t, here, &packets.Connect{Version: packets.V5, ClientID: "s",
		Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 3600)})
	for at := 0; at < filters; at += 5_000 {
		sub := &packets.Subscribe{PacketID: 1}
		for i := range 5_000 {
			sub.Subscriptions = append(sub.Subscriptions, packets.Subscription{
				Filter: fmt.Sprint("a/", at+i), QoS: packets.QoS1})
		}
		c.send(sub)
		require.Len(t, c.recv().(*packets.Suback).Codes, 5_000)
	}
	require.NoError(t, c.nc.Close())
	s := b.ofClient("s")[0]
	for gone := false; !gone; {
		s.mu.Lock()
		gone = s.conn == nil
		s.mu.Unlock()
	}
	for i := range messages {
		require.NoError(t, b.Publish(t.Context(), &Message{Topic: fmt.Sprint("a/", i%filters),
			QoS: packets.QoS1}))
	}
	return s
}
