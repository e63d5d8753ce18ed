package dunlin

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A large message is not there once for each client that does not read it.
func TestALargeMessageThatManyDoNotReadIsThereOnce(t *testing.T) {
	const clients, limit = 300, 64 << 20
	for _, qos := range []packets.QoS{packets.QoS0, packets.QoS1} {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			b := newTestBroker(t, func(c *Config) { c.MaxMemory = limit })
			l := listeners.NewMemory()
			l.Buffer = 4 << 10
			go b.Serve(l)
			for i := range clients {
				nc, err := l.Dial()
				require.NoError(t, err)
				defer nc.Close()
				c, _ := newTestClient(t, nc, &packets.Connect{Version: packets.V5,
					ClientID: fmt.Sprint(i)})
				c.send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{
					{Filter: "a", QoS: qos}}})
				require.IsType(t, new(packets.Suback), c.recv())
			}
			before := heapBytes()
			m := &Message{Topic: "a", QoS: qos, Payload: make([]byte, 1_000_000)}
			for range 3 {
				b.Publish(t.Context(), m) // which may be refused
			}
			runtime.Gosched()
			require.Less(t, heapBytes()-before, int64(limit), "bytes in use, %d are counted",
				b.Stats().Memory)
			require.NoError(t, b.Close())
		})
	}
}

// A large message of QoS 2 waits for the store in the output of each client that gets it. It is
// not there once for each.
func TestALargeMessageThatWaitsForTheStoreIsThereOnce(t *testing.T) {
	const clients, size, limit = 100, 1_000_000, 64 << 20
	synctest.Test(t, func(t *testing.T) {
		st := &faultStore{Store: new(memory.Store)}
		b := newTestBroker(t, func(c *Config) { c.MaxMemory, c.Store = limit, st })
		l := listeners.NewMemory()
		l.Buffer = 4 << 10
		go b.Serve(l)
		all := make([]*testClient, clients)
		for i := range all {
			nc, err := l.Dial()
			require.NoError(t, err)
			defer nc.Close()
			all[i], _ = newTestClient(t, nc, &packets.Connect{Version: packets.V5,
				ClientID: fmt.Sprint(i), Properties: packets.Properties(nil).AppendUint(
					packets.SessionExpiryInterval, 100)})
			all[i].send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{
				{Filter: "a", QoS: packets.QoS2}}})
			require.IsType(t, new(packets.Suback), all[i].recv())
		}
		before := heapBytes()
		m := &Message{Topic: "a", QoS: packets.QoS2, Payload: make([]byte, size)}
		for i := range m.Payload {
			m.Payload[i] = byte(i % 251)
		}
		release := st.hold()
		go b.Publish(t.Context(), m)
		synctest.Wait()
		require.Less(t, heapBytes()-before, int64(limit), "bytes in use, %d are counted",
			b.Stats().Memory)
		require.Less(t, b.Stats().Memory, int64(limit)/2)
		most := int64(0)
		release()
		for _, c := range all {
			p, ok := c.recv().(*packets.Publish)
			require.True(t, ok)
			require.True(t, bytes.Equal(m.Payload, p.Payload))
			if len(p.Payload) > 0 && c == all[0] {
				most = heapBytes() - before
			}
		}
		require.Less(t, most, int64(limit), "bytes in use while clients read")
		require.NoError(t, b.Close())
	})
}
