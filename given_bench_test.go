package dunlin

import (
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// BenchmarkSubscriptionsOfAbsentClients makes a subscription for each of b.N clients that were
// never there, with a Store in memory, and loads them into another Broker. It reports the memory of
// each, in the Broker and the Store together, the time to load all, and the time to join and to
// leave when all are there. A million: -benchtime 1000000x.
func BenchmarkSubscriptionsOfAbsentClients(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	cfg := Config{Authenticator: hooks.AllowAll, Logger: slog.New(slog.DiscardHandler),
		Store: &faultStore{Store: new(memory.Store)}}
	x, err := New(cfg)
	require.NoError(b, err)
	before := heap()
	join := func(i int, group string) {
		err := x.SubscribeClient(b.Context(), fmt.Sprint("user-", i), served(group, 1))
		require.NoError(b, err)
	}
	b.ResetTimer()
	for i := range b.N {
		join(i, fmt.Sprint("groups/", i/10))
	}
	b.StopTimer()
	b.ReportMetric((heap()-before)/float64(b.N), "B-each")
	const some = 1000
	began := time.Now()
	for i := range some {
		join(i, "groups/other")
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/some, "µs-join")
	began = time.Now()
	for i := range some {
		_, err := x.UnsubscribeClient(b.Context(), fmt.Sprint("user-", i), "groups/other")
		require.NoError(b, err)
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/some, "µs-leave")
	require.NoError(b, x.Close())
	began = time.Now()
	x, err = New(cfg)
	require.NoError(b, err)
	b.ReportMetric(time.Since(began).Seconds(), "s-load")
	require.Len(b, x.ClientSubscriptions(fmt.Sprint("user-", b.N-1)), 1)
	require.NoError(b, x.Close())
}
