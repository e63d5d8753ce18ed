package dunlin

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// Clients that had something under way until their patience was over do not all go at once.
func TestDrainKeepsItsRateAfterAWait(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		const clients = 40
		for i := range clients {
			p := st.durable(fmt.Sprint("c", i), packets.V5)
			p.send(message2("t", "", packets.QoS2, 1)) // and no PUBREL
			p.want(packets.TypePubrec)
		}
		done := st.drain(context.Background(),
			DrainOptions{PerSecond: 10, Patience: 10 * time.Second})
		time.Sleep(12*time.Second + 1)
		require.InDelta(t, clients-10, st.b.Stats().Connections, 3,
			"two seconds at that rate, and a client has one to close")
		got := <-done
		require.NoError(t, got.err)
		require.Equal(t, clients, got.moved)
	})
}

// Somebody who tries to write has not found out yet that the socket does not take it.
func TestAClientIsNotBlockedBecauseSomebodyWritesToIt(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		time.Sleep(time.Minute)
		st.dial("c", packets.V5, false, 600).want(packets.TypeConnack)
		c := st.b.ofClient("c")[0].conn
		c.sess.mu.Lock()
		c.out.writing = true
		c.append(new(packets.Pingresp))
		c.sess.mu.Unlock()
		info := st.infoOf("c")
		require.NotZero(t, info.Unsent)
		require.Zero(t, info.BlockedSince)
		c.sess.mu.Lock()
		c.out.writing = false
		c.sess.mu.Unlock()
	})
}

// The number of a Session that ends is that of the next one, which may have a longer mount point
// than the filter that was found.
func TestASubscriberWhoseNumberAnotherHasIsNone(t *testing.T) {
	onStage(t, func(st *stage) {
		t := st.t
		c := st.dial("c", packets.V5, false, 600)
		c.want(packets.TypeConnack)
		c.subscribe("#", packets.QoS0)
		s := st.b.ofClient("c")[0]
		s.mu.Lock()
		s.holder = &holder{mount: "tenants/a/"} // not the one that others share
		f := subs.Found{Filter: "#", Sub: s.num}
		s.mu.Unlock()
		_, ok := st.b.subscriber(&f, "tenants/a/t", nil)
		require.False(t, ok)
	})
}
