package dunlin

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// Retained messages stay until somebody removes them, so they do not get all memory: messages on
// their way have the rest.
func TestRetainedMessagesLeaveRoomForLiveTraffic(t *testing.T) {
	const most = 1 << 20
	withRules(t, everything, func(c *Config) { oneForAll(c); c.MaxMemory = most },
		func(r *guardRig) {
			p, sub := r.connect(as("p", "u")), r.connect(as("sub", "u"))
			require.Equal(t, packets.GrantedQoS1, sub.subscribe("live", 1))
			large := strings.Repeat("x", 10_000)
			n := 0
			for ; !p.publish(fmt.Sprintf("r/%d", n), large, true).Failed(); n++ {
				require.Less(t, n, 100)
			}
			require.Greater(t, n, 40, "half of MaxMemory is theirs")
			require.LessOrEqual(t, r.b.memory.Of(budget.Retained), int64(most/2))
			require.Equal(t, packets.QuotaExceeded, p.publish("r/0", strings.Repeat(large, 3), true),
				"a larger one in its place")
			require.False(t, p.publish("r/0", large, true).Failed(), "one of the same size")
			require.False(t, p.publish("live", large, false).Failed())
			sub.message("live")
			require.False(t, p.publish("r/1", "x", true).Failed(), "a smaller one")
			require.False(t, p.publish("r/2", "", true).Failed(), "a removal")
			require.False(t, p.publish("r/new", large[:9000], true).Failed(), "what has become free")
			p.close()
			sub.close()
		})
}

// Whatever makes the retained messages smaller is taken although there is no memory for anything
// else. So who has too much can get out of it.
func TestWhatFreesMemoryIsTakenAtTheLimit(t *testing.T) {
	large := strings.Repeat("x", 50_000)
	synctest.Test(t, func(t *testing.T) {
		s := new(memory.Store)
		b := newTestBroker(t, func(c *Config) { c.Store = s })
		for i := range 40 {
			m := &Message{Topic: fmt.Sprintf("r/%d", i), Payload: []byte(large), QoS: 1,
				Retain: true}
			require.NoError(t, b.Publish(t.Context(), m))
		}
		require.NoError(t, b.Close())
		require.NoError(t, s.Open())

		b = newTestBroker(t, func(c *Config) { c.Store, c.MaxMemory = s, 1<<20 })
		l, done := serveMemory(t, b)
		p, _ := newTestClient(t, dial(t, l), as("p", "u"))
		old := as("old", "u")
		old.Version, old.Properties = packets.V311, nil
		p3, _ := newTestClient(t, dial(t, l), old)
		require.Equal(t, packets.QuotaExceeded, p.publish("live", "x", false), "it is at its limit")
		require.Equal(t, packets.QuotaExceeded, p.publish("r/0", large, true))
		require.Equal(t, packets.QuotaExceeded, p.publish("none", "", true),
			"there is nothing to remove")
		require.Error(t, b.Publish(t.Context(), &Message{Topic: "live"}))

		require.False(t, p.publish("r/0", "x", true).Failed(), "a smaller one")
		require.False(t, p.publish("r/0", "", true).Failed(), "a removal")
		require.Equal(t, packets.Success, p3.publish("r/1", "", true), "by a client before 5.0")
		require.NoError(t, b.Publish(t.Context(),
			&Message{Topic: "r/2", Payload: []byte("x"), Retain: true}))
		require.NoError(t, b.Publish(t.Context(), &Message{Topic: "r/2", Retain: true}))
		p.send(&packets.Publish{Topic: []byte("r/3"), Retain: true})
		p.nothing("QoS 0 has no answer")
		require.Equal(t, 36, b.Stats().Retained)
		for i := 4; i < 40; i++ {
			require.False(t, p.publish(fmt.Sprintf("r/%d", i), "", true).Failed())
		}
		synctest.Wait()
		require.False(t, p.publish("live", "x", false).Failed(), "now there is memory")
		p.close()
		p3.close()
		done()
	})
}

// A retained message from before the limits of topics were lowered can be removed.
func TestARetainedMessageBeyondTheLimitsOfTopicsCanBeRemoved(t *testing.T) {
	long, deep := strings.Repeat("l", 100), "a/b/c/d/e"
	synctest.Test(t, func(t *testing.T) {
		s := new(memory.Store)
		b := newTestBroker(t, func(c *Config) { c.Store = s })
		for _, topic := range []string{long, deep, "m/" + long} {
			require.NoError(t, b.Publish(t.Context(),
				&Message{Topic: topic, Payload: []byte("x"), QoS: 1, Retain: true}))
		}
		require.NoError(t, b.Close())
		require.NoError(t, s.Open())
		b = newTestBroker(t, func(c *Config) {
			c.Store, c.MaxTopicLength, c.MaxTopicLevels = s, 50, 3
			c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
				q *hooks.ConnectRequest) error {
				if q.Client.ID == "mounted" {
					q.Grant.MountPoint = "m/"
				}
				return nil
			})
		})
		l, done := serveMemory(t, b)
		p, _ := newTestClient(t, dial(t, l), as("p", "u"))
		require.NoError(t, b.Publish(t.Context(), &Message{Topic: deep, Retain: true}))
		require.Error(t, b.Publish(t.Context(), &Message{Topic: deep, Retain: true}),
			"there is nothing to remove")
		require.False(t, p.publish(long, "", true).Failed())
		m, _ := newTestClient(t, dial(t, l), as("mounted", "u"))
		require.False(t, m.publish(long, "", true).Failed())
		require.Zero(t, b.Stats().Retained)
		m.close()
		p.close()
		done()
	})
}

// A client that begins its Session anew at MaxSessions keeps its place, although another client
// comes in between.
func TestACleanStartAtMaxSessionsKeepsItsPlace(t *testing.T) {
	between := func() {}
	withRules(t, everything, func(c *Config) {
		c.MaxSessions = 1
		c.Observer = &hooks.Observer{SessionEnded: func(hooks.SessionEnded) { between() }}
	}, func(r *guardRig) {
		a := r.connect(as("a", "u"))
		between = func() {
			between = func() {}
			r.connect(as("b", "u")).close()
		}
		clean := as("a", "u")
		clean.CleanStart = true
		anew := r.connect(clean)
		anew.nothing("it is connected")
		r.refused(as("c", "u"), packets.QuotaExceeded)
		anew.close()
		a.close()
	})
}
