package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"testing"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// manySessions returns a broker with n Sessions whose clients are away, which it has loaded from a
// Store: to connect a million clients takes minutes.
func manySessions(tb testing.TB, n int) *dunlin.Broker {
	s := new(memory.Store)
	ops := make([]store.Op, 0, 2*n)
	for i := range n {
		id := uint64(i + 1)
		ops = append(ops,
			&store.PutSession{Session: id, ClientID: fmt.Sprintf("device-%07d", i), Expiry: 0xFFFFFFFF},
			&store.PutSubscription{Session: id, Subscription: packets.Subscription{
				Filter: fmt.Sprintf("devices/%d/set", i), QoS: 1}})
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
