package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"testing"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// manySessions returns a broker with n Sessions whose clients are away.
func manySessions(b *testing.B, n int) *dunlin.Broker {
	br, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AllowAll, Logger: slog.New(slog.DiscardHandler), MaxMemory: -1,
		MaxSessions: -1, MaxSessionsPerPrincipal: -1, MaxSubscriptionsPerPrincipal: -1,
		MaxKeptBytesPerPrincipal: -1, ConnectRate: -1, ConnectRatePerIP: -1,
		MaxConnectionsPerIP: -1})
	if err != nil {
		b.Fatal(err)
	}
	l := listeners.NewMemory()
	go br.Serve(l) // ends with br
	b.Cleanup(func() { br.Close() })
	for i := range n {
		id := fmt.Sprintf("device-%07d", i)
		nc, err := l.Dial()
		if err != nil {
			b.Fatal(err)
		}
		expiry := packets.Properties{}.AppendUint(packets.SessionExpiryInterval, 3600)
		wire, _ := (&packets.Connect{Version: packets.V5, ClientID: id, Properties: expiry}).
			Append(nil, packets.V5)
		wire, _ = (&packets.Disconnect{}).Append(wire, packets.V5)
		if _, err := nc.Write(wire); err != nil {
			b.Fatal(err)
		}
		r := packets.NewReader(nc, packets.Limits{})
		r.SetVersion(packets.V5)
		if p, err := r.ReadPacket(); err != nil || p.(*packets.Connack).Code != 0 {
			b.Fatal(p, err)
		}
		nc.Close()
	}
	return br
}

// BenchmarkPageAmongAMillion is one page of 50 clients of the API among a million Sessions.
func BenchmarkPageAmongAMillion(b *testing.B) {
	br := manySessions(b, 1_000_000)
	h := New(map[string]*dunlin.Broker{"main": br}, Options{Authorize: byRole,
		Logger: slog.New(slog.DiscardHandler)})
	defer h.Close()
	for name, query := range map[string][]string{
		"first": {}, "middle": {"after", encodeCursor("device-0500000")},
		"one": {"prefix", "device-0700000"}, "sorted": {"sort", "queued"},
		"found nowhere": {"user", "nobody"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				r := httptest.NewRequestWithContext(context.Background(), "GET",
					"http://127.0.0.1"+at("clients", query...), nil)
				r.SetBasicAuth("reader", "x")
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, r); w.Code != 200 {
					b.Fatal(w.Body)
				}
			}
		})
	}
}
