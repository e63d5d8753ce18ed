package dunlin

import (
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A large message for many clients takes little memory on its way: not a copy for each of them
// before the first is written.
func TestALargeMessageForManyIsNotCopiedForAllAtOnce(t *testing.T) {
	const clients, size = 100, 900 << 10
	b := newTestBroker(t, func(c *Config) { c.MaxMemory = 64 << 20 })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go b.Serve(l)
	var reading sync.WaitGroup
	got := make(chan struct{}, 2*clients)
	for i := range clients {
		nc, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer nc.Close()
		send := func(p packets.Packet) {
			wire, err := p.Append(nil, packets.V5)
			require.NoError(t, err)
			_, err = nc.Write(wire)
			require.NoError(t, err)
			_, err = nc.Read(make([]byte, 256))
			require.NoError(t, err)
		}
		send(&packets.Connect{Version: packets.V5, CleanStart: true})
		send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{
			{Filter: "#", QoS: packets.QoS(i % 2)}}})
		reading.Go(func() {
			for {
				if _, err := io.CopyN(io.Discard, nc, size); err != nil {
					return
				}
				got <- struct{}{}
			}
		})
	}
	for _, retain := range []bool{false, true} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m := &Message{Topic: "t", Payload: make([]byte, size), QoS: packets.QoS1, Retain: retain}
		require.NoError(t, b.Publish(t.Context(), m))
		runtime.ReadMemStats(&after)
		made := int64(after.TotalAlloc - before.TotalAlloc)
		require.Less(t, made, int64(clients*size/2), "bytes allocated, retained: %v", retain)
		for range clients {
			<-got
		}
	}
	require.NoError(t, b.Close())
	reading.Wait()
}
