package dunlin

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// overlapping makes filter i of those that have a or + at each of ten levels.
func overlapping(i int) string {
	levels := strings.Split("a/a/a/a/a/a/a/a/a/a", "/")
	for k := range levels {
		if i>>k&1 != 0 {
			levels[k] = "+"
		}
	}
	return strings.Join(levels, "/")
}

// Every subscription that is granted does what it should: each identifier comes with the message
// [MQTT-3.3.4-4].
func TestAMessageMatchesOnlySoManySubscriptionsOfASession(t *testing.T) {
	const most = 20
	withRules(t, everything, func(c *Config) { c.MaxOverlapping = most }, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		for i := range uint32(most) {
			require.Equal(t, packets.GrantedQoS1, c.subscribeWithID(overlapping(int(i)), 1, i+1))
		}
		require.Equal(t, packets.QuotaExceeded, c.subscribeWithID(overlapping(most), 1, most+1))
		code := c.subscribeWithID(overlapping(1), 1, 2)
		require.Equal(t, packets.GrantedQoS1, code, "what is there may be replaced")
		for i := range 100 {
			code := c.subscribe(fmt.Sprint("+/b/", i, "/a/a/a/a/a/a/a"), 1)
			require.False(t, code.Failed(), "no two of these match together")
		}
		p := r.connect(as("p", "u"))
		require.False(t, p.publish("a/a/a/a/a/a/a/a/a/a", "x", false).Failed())
		n := 0
		for range c.message("a/a/a/a/a/a/a/a/a/a").Properties.SubscriptionIDs() {
			n++
		}
		require.Equal(t, most, n)

		connect := as("old", "u")
		connect.Version, connect.Properties = packets.V311, nil
		old := r.connect(connect)
		for i := range most {
			require.Equal(t, packets.GrantedQoS1, old.subscribe(overlapping(i), 1))
		}
		require.Equal(t, packets.ReasonCode(0x80), old.subscribe(overlapping(most), 1))

		sub := mustSubscribe(r.t, r.b, overlapping(0), nil)
		for i := range most {
			require.NoError(t, sub.Add(overlapping(i), nil))
		}
		require.Equal(t, packets.QuotaExceeded, packets.CodeOf(sub.Add(overlapping(most), nil)))
		for _, c := range []*testClient{c, p, old} {
			c.close()
		}
	})
}

// Subscriptions stop at half of MaxMemory. What was published before goes on, and all of it comes
// back.
func TestSubscriptionsCountInMaxMemory(t *testing.T) {
	const most = 2 << 20
	withRules(t, everything, func(c *Config) { c.MaxMemory = most }, func(r *guardRig) {
		p, s := r.connect(as("p", "u")), r.connect(as("s", "u"))
		require.False(t, s.subscribe("t", 1).Failed())
		before := r.b.Stats().Memory
		c := r.connect(as("c", "u"))
		n := 0
		for ; ; n++ {
			require.Less(t, n, 1000, "there is a bound")
			code := c.subscribe(fmt.Sprint(n, strings.Repeat("/+", 31)), 1)
			if code == packets.QuotaExceeded {
				break
			}
			require.Equal(t, packets.GrantedQoS1, code)
			require.LessOrEqual(t, r.b.memory.Of(budget.Subscriptions), int64(most/2))
		}
		require.Greater(t, n, 200)
		require.False(t, p.publish("t", "x", false).Failed())
		require.False(t, p.publish("t", "x", true).Failed())
		c.close()
		require.True(t, deletes(r.t, r.b, "c"))
		s.message("t")
		s.message("t")
		synctest.Wait()
		require.InDelta(t, before, r.b.Stats().Memory, 8<<10, "what is left is a retained message")
		p.close()
		s.close()
	})
}

func TestAFilterWithWildcardsHasFewerLevelsThanATopic(t *testing.T) {
	withRules(t, everything, nil, func(r *guardRig) {
		c := r.connect(as("c", "u"))
		for _, tt := range []struct {
			filter string
			want   packets.ReasonCode
		}{
			{strings.Repeat("a/", 127) + "a", packets.GrantedQoS0},
			{strings.Repeat("a/", 128) + "a", packets.TopicFilterInvalid},
			{strings.Repeat("a/", 31) + "#", packets.GrantedQoS0},
			{strings.Repeat("a/", 32) + "#", packets.TopicFilterInvalid},
			{"$share/g/" + strings.Repeat("+/", 31) + "a", packets.GrantedQoS0},
			{"$share/g/" + strings.Repeat("+/", 32) + "a", packets.TopicFilterInvalid},
		} {
			require.Equal(t, tt.want, c.subscribe(tt.filter, 0), tt.filter)
		}
		c.close()
	})
	for _, tt := range []struct{ wildcard, topic, want int }{
		{0, 0, 32}, {-1, 0, 128}, {500, 0, 128}, {0, 10, 10}, {5, 10, 5}, {100, -1, 100},
	} {
		b := newTestBroker(t, func(c *Config) {
			c.MaxWildcardLevels, c.MaxTopicLevels = tt.wildcard, tt.topic
		})
		require.Equal(t, tt.want, b.cfg().MaxWildcardLevels, "%+v", tt)
		b.Close()
	}
}
