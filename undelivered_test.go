package dunlin

import (
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// serveTLS serves b over TLS, and returns the address.
func serveTLS(t *testing.T, b *Broker) string {
	cert := testcert.CA(t, "ca").Issue("localhost")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go b.Serve(listeners.NewTLS(l, &tls.Config{Certificates: []tls.Certificate{cert.TLS()}}))
	return l.Addr().String()
}

// Handshakes that do not end take no more than what is known of them, and a part of MaxMemory.
func TestHandshakesThatDoNotEndStayWithinMaxMemory(t *testing.T) {
	const limit = 64 << 20
	b := newTestBroker(t, func(c *Config) { c.MaxMemory, c.ConnectTimeout = limit, -1 })
	addr := serveTLS(t, b)
	hello := make([]byte, 0xFF00)
	copy(hello, []byte{1, 0, 0xFF, 0xF0}) // a ClientHello, and how long it will be
	var wire []byte
	for part := hello; len(part) > 0; {
		n := min(len(part), 1<<14)
		wire = append(wire, 22, 3, 1, byte(n>>8), byte(n))
		wire = append(wire, part[:n]...)
		part = part[n:]
	}
	before := heapBytes()
	counted := 0
	for range 300 {
		nc, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		defer nc.Close()
		was, over := b.memory.Of(budget.Partial), make(chan struct{})
		go func() {
			nc.Read(make([]byte, 1)) // an alert, or the end
			close(over)
		}()
		nc.Write(wire) // which fails if the connection has ended
		for waits := true; waits; {
			select {
			case <-over:
				waits = false
			default:
				if b.memory.Of(budget.Partial) >= was+2*int64(len(wire)) {
					counted, waits = counted+1, false
				}
				runtime.Gosched()
			}
		}
	}
	t.Logf("%d of 300 are waited for", counted)
	require.Positive(t, counted)
	require.LessOrEqual(t, b.memory.Of(budget.Partial), int64(limit/2))
	require.Less(t, heapBytes()-before, b.Stats().Memory+4<<20, "bytes in use")
	require.NoError(t, b.Close())
}

// What a long handshake has taken counts as long as the connection lasts.
func TestALongHandshakeCounts(t *testing.T) {
	const clients = 100
	b := newTestBroker(t, nil)
	addr := serveTLS(t, b)
	var names []string // of protocols, 58 KB in the ClientHello
	for i := range 225 {
		names = append(names, fmt.Sprintf("%03d%s", i, strings.Repeat("x", 250)))
	}
	before := heapBytes()
	var all []*testClient
	for i := range clients {
		nc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: names})
		require.NoError(t, err)
		defer nc.Close()
		c, _ := newTestClient(t, nc, &packets.Connect{Version: packets.V5,
			ClientID: fmt.Sprint(i)})
		all = append(all, c)
	}
	require.Less(t, heapBytes()-before, b.Stats().Memory+2<<20,
		"bytes in use, with those of the clients")
	require.Greater(t, b.memory.Of(budget.Partial), int64(clients*100<<10))
	for _, c := range all {
		c.send(new(packets.Pingreq))
		require.IsType(t, new(packets.Pingresp), c.recv())
		require.NoError(t, c.nc.Close())
	}
	for b.Stats().Connections > 0 {
		runtime.Gosched()
	}
	require.NoError(t, b.Close())
	require.Zero(t, b.memory.Of(budget.Partial))
}
