package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// manySessions returns a broker with n Sessions whose clients are away, each with a subscription of
// its own and one to "all". It has loaded them from a Store: to connect a million clients takes
// minutes.
func manySessions(tb testing.TB, n int) *dunlin.Broker {
	s := new(memory.Store)
	ops := make([]store.Op, 0, 3*n)
	for i := range n {
		id := uint64(i + 1)
		ops = append(ops,
			&store.PutSession{Session: id, ClientID: fmt.Sprintf("device-%07d", i), Expiry: 0xFFFFFFFF},
			&store.PutSubscription{Session: id, Subscription: packets.Subscription{
				Filter: fmt.Sprintf("devices/%d/set", i), QoS: 1}},
			&store.PutSubscription{Session: id, Subscription: packets.Subscription{Filter: "all"}})
	}
	if err := s.Commit(context.Background(), ops); err != nil {
		tb.Fatal(err)
	}
	br, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Store: s, MaxMemory: -1,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { br.Close() })
	return br
}

// BenchmarkPageAmongAMillion is one page of 50 clients of the API among a million Sessions. A page
// that is sorted looks at all of them; one with a filter looks at 100,000 at most, and says where to
// go on.
func BenchmarkPageAmongAMillion(b *testing.B) {
	br := manySessions(b, 1_000_000)
	h := New(map[string]*dunlin.Broker{"main": br}, Options{Authorize: byRole,
		Logger: slog.New(slog.DiscardHandler)})
	defer h.Close()
	for _, tt := range []struct {
		name  string
		query []string
	}{
		{"first", nil},
		{"middle", []string{"after", encodeCursor("device-0500000")}},
		{"one", []string{"prefix", "device-0700000"}},
		{"found nowhere, a part", []string{"user", "nobody"}},
		{"sorted", []string{"sort", "queued"}},
		{"sorted, found nowhere", []string{"sort", "queued", "user", "nobody"}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				r := httptest.NewRequestWithContext(context.Background(), "GET",
					"http://127.0.0.1"+at("clients", tt.query...), nil)
				r.SetBasicAuth("reader", "x")
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, r); w.Code != 200 {
					b.Fatal(w.Body)
				}
			}
		})
	}
}

// A page of a client with many subscriptions is read again with each sample of the broker: it
// copies none of them, and a page of them copies only its own.
func TestAClientWithManySubscriptionsCostsNoMoreThanAnother(t *testing.T) {
	s := new(memory.Store)
	ops := []store.Op{&store.PutSession{Session: 1, ClientID: "gateway", Expiry: 0xFFFFFFFF}}
	for i := range 50_000 {
		ops = append(ops, &store.PutSubscription{Session: 1, Subscription: packets.Subscription{
			Filter: fmt.Sprintf("devices/%d/set", i)}})
	}
	require.NoError(t, s.Commit(t.Context(), ops))
	br, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Store: s, MaxMemory: -1,
		Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { br.Close() })
	b := &bench{t: t, role: "reader", h: New(map[string]*dunlin.Broker{"main": br},
		Options{Authorize: byRole, Logger: slog.New(slog.DiscardHandler)})}
	t.Cleanup(func() { b.h.Close() })
	for _, path := range []string{"client", "subscriptions"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		b.do(b.request("GET", at(path, "id", "gateway"), ""), 200)
		runtime.ReadMemStats(&after)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(256<<10), path)
	}
	var c clientView
	b.get(&c, "client", "id", "gateway")
	require.Equal(t, 50_000, c.Subscriptions)
	require.Equal(t, "no_client", b.refused(404, "client", "id", "gatewa").Code)
	require.Equal(t, "no_client", b.refused(404, "client", "id", "gateway2").Code)
}
