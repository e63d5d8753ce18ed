//go:build unix

package websocket_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	ws "github.com/coder/websocket"
	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// BenchmarkTransports sends QoS 0 messages of 128 bytes, 32 in a write, from one client to another,
// over each transport. The CPU time is that of both clients and the broker together, per message.
func BenchmarkTransports(b *testing.B) {
	ca := testcert.CA(b, "servers")
	server := &tls.Config{Certificates: []tls.Certificate{ca.Issue("localhost").TLS()}}
	client := &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}
	for _, tt := range []struct {
		name string
		open func(b *testing.B) (l net.Listener, dial func() net.Conn)
	}{
		{"TCP", func(b *testing.B) (net.Listener, func() net.Conn) { return overTCP(b, nil, nil) }},
		{"TLS", func(b *testing.B) (net.Listener,
			func() net.Conn) {
			return overTCP(b, server, client)
		}},
		{"WebSocket", func(b *testing.B) (net.Listener,
			func() net.Conn) {
			return overWebSocket(b, nil, nil)
		}},
		{"WebSocket over TLS", func(b *testing.B) (net.Listener,
			func() net.Conn) {
			return overWebSocket(b, server, client)
		}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			l, dial := tt.open(b)
			broker, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
				Logger: slog.New(slog.DiscardHandler)})
			require.NoError(b, err)
			defer broker.Close()
			go broker.Serve(l) // ends with broker
			pub, sub := dial(), dial()
			defer pub.Close()
			defer sub.Close()
			say(b, pub, &packets.Connect{Version: packets.V311, ClientID: "pub", CleanStart: true},
				4)
			say(b, sub, &packets.Connect{Version: packets.V311, ClientID: "sub", CleanStart: true},
				4)
			say(b, sub, &packets.Subscribe{PacketID: 1,
				Subscriptions: []packets.Subscription{{Filter: "a"}}}, 5)
			message, err := (&packets.Publish{Topic: []byte("a"), Payload: make([]byte, 128)}).
				Append(nil, packets.V311)
			require.NoError(b, err)
			const batch, ahead = 32, 16
			many := strings.Repeat(string(message), batch)
			window := make(chan struct{}, ahead)
			writes := b.N/batch + 1
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu(b)
			go func() { // ends when all is read, or with pub
				for range writes {
					window <- struct{}{}
					if _, err := io.WriteString(pub, many); err != nil {
						return
					}
				}
			}()
			in := make([]byte, len(many))
			for range writes {
				_, err := io.ReadFull(sub, in)
				require.NoError(b, err)
				<-window
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(writes*batch), "cpu-ns/msg")
		})
	}
}

// say sends a packet and reads its answer of n bytes.
func say(b *testing.B, c net.Conn, p packets.Packet, n int) {
	out, err := p.Append(nil, packets.V311)
	require.NoError(b, err)
	_, err = c.Write(out)
	require.NoError(b, err)
	_, err = io.ReadFull(c, make([]byte, n))
	require.NoError(b, err)
}

// cpu is the CPU time of the process in nanoseconds.
func cpu(b *testing.B) int64 {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return u.Utime.Nano() + u.Stime.Nano()
}

func overTCP(b *testing.B, server, client *tls.Config) (net.Listener, func() net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	addr := l.Addr().String()
	if server == nil {
		return l, func() net.Conn {
			c, err := net.Dial("tcp", addr)
			require.NoError(b, err)
			return c
		}
	}
	return tls.NewListener(l, server), func() net.Conn {
		c, err := tls.Dial("tcp", addr, client)
		require.NoError(b, err)
		return c
	}
}

func overWebSocket(b *testing.B, server, client *tls.Config) (net.Listener, func() net.Conn) {
	l := websocket.New(websocket.Options{})
	srv := httptest.NewUnstartedServer(l)
	o := &ws.DialOptions{Subprotocols: []string{"mqtt"}}
	if server != nil {
		srv.TLS = server
		srv.StartTLS()
		o.HTTPClient = &http.Client{Transport: &http.Transport{TLSClientConfig: client}}
	} else {
		srv.Start()
	}
	b.Cleanup(srv.Close)
	return l, func() net.Conn {
		c, _, err := ws.Dial(b.Context(), "ws"+strings.TrimPrefix(srv.URL, "http"), o)
		require.NoError(b, err)
		c.SetReadLimit(-1)
		return ws.NetConn(context.Background(), c, ws.MessageBinary)
	}
}
