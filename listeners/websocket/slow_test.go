package websocket_test

import (
	"log/slog"
	"net"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// What waits for clients that read nothing is known to the count of memory, also what is copied
// into frames.
func TestFramesForClientsThatDoNotReadCount(t *testing.T) {
	const clients, most = 100, 1 << 20
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, MaxOutboundBytes: 256 << 10,
		Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	l := websocket.New(websocket.Options{})
	go b.Serve(l)
	srv := httptest.NewServer(l)
	defer srv.Close()
	var all []net.Conn
	for range clients {
		c, _, err := coder.Dial(t.Context(), srv.URL,
			&coder.DialOptions{Subprotocols: []string{"mqtt"}})
		require.NoError(t, err)
		defer c.CloseNow()
		nc := coder.NetConn(t.Context(), c, coder.MessageBinary)
		for _, p := range []packets.Packet{
			&packets.Connect{Version: packets.V5, CleanStart: true},
			&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "a"}}},
		} {
			wire, err := p.Append(nil, packets.V5)
			require.NoError(t, err)
			_, err = nc.Write(wire)
			require.NoError(t, err)
		}
		all = append(all, nc)
	}
	for b.Stats().Subscriptions < clients {
		time.Sleep(time.Millisecond)
	}
	began := heap() - b.Stats().Memory
	m := &dunlin.Message{Topic: "a", Payload: make([]byte, 60<<10)}
	for b.Stats().Dropped.Total() < 10*clients { // all sockets are full, and their output is
		require.NoError(t, b.Publish(t.Context(), m))
	}
	require.Less(t, heap()-b.Stats().Memory-began, int64(most),
		"bytes in use that are not counted")
	require.NoError(t, b.Close())
	runtime.KeepAlive(all)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
