package dunlin

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
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
