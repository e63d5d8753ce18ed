package dunlin

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/subs"
)

// manyOf is a Broker with n Sessions that subscribe to the same topic, every second one as a member
// of a group.
func manyOf(tb testing.TB, n int) *Broker {
	b := newTestBroker(tb, func(c *Config) { c.MaxMemory = -1 })
	tb.Cleanup(func() { b.Close() })
	for i := range n {
		id := fmt.Sprintf("client-%07d", i)
		s := &session{holder: &nobody, b: b, id: id, expiry: noExpiry, out: newSender(b.memory)}
		s.num, s.subs = b.number(s), 1
		b.tree.Restore(s.num, []string{"", "g"}[i%2], []string{"all/#", "all/+"}[i/2%2], subs.Options{})
		b.sessions.put(id, s)
	}
	return b
}

// However many subscribers there are, each is there once, and who looks at a few of them copies no
// others.
func TestSubscribersOfManyAreThereOnce(t *testing.T) {
	b := manyOf(t, 20_000)
	seen := map[string]bool{}
	for x := range b.Subscribers("all/1") {
		require.False(t, seen[x.ClientID], x.ClientID)
		seen[x.ClientID] = true
	}
	require.Len(t, seen, 20_000)

	b = manyOf(t, 1500) // one more round than the first
	n := 0
	for x := range b.Subscribers("all/1") {
		if n++; n == 1 { // what changes meanwhile is not there twice
			s := b.sessionAt(x.ClientID)
			b.tree.Add(s.num, x.Group, x.Filter, subs.Options{QoS: 1})
		}
	}
	require.Equal(t, 1500, n)
}

func TestAFewOfManySubscribersTakeLittle(t *testing.T) {
	b := manyOf(t, 50_000)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := 0
	for range b.Subscribers("all/1") {
		if n++; n == 500 {
			break
		}
	}
	runtime.ReadMemStats(&after)
	require.Equal(t, 500, n)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
}

// BenchmarkSubscribersAmongAMillion looks at the first 500 of a million.
func BenchmarkSubscribersAmongAMillion(b *testing.B) {
	br := manyOf(b, 1_000_000)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for range br.Subscribers("all/1") {
			if n++; n == 500 {
				break
			}
		}
	}
}
