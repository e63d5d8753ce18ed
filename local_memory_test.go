package dunlin

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// Subscriptions of the program whose readers are slow, such as those of Respond, lose messages
// before the broker refuses those of everybody.
func TestSlowSubscriptionsOfTheProgramMakeRoom(t *testing.T) {
	const limit = 4 << 20
	inProcess(t, func(c *Config) { c.MaxMemory = limit }, func(t *testing.T, b *Broker) {
		filters := []string{"a", "b", "c"}
		for _, f := range filters {
			mustSubscribe(t, b, f, &SubscribeOptions{QoS: packets.QoS1})
		}
		blocks := mustSubscribe(t, b, "d", &SubscribeOptions{QoS: packets.QoS1,
			Overflow: OverflowBlock})
		mustPublish(t, b, "d", "kept", 1)
		payload := string(make([]byte, 50_000))
		for i := range 300 {
			mustPublish(t, b, filters[i%len(filters)], payload, 1)
			synctest.Wait()
		}
		require.LessOrEqual(t, b.Stats().Memory, int64(limit))
		require.Equal(t, []string{"kept"}, unread(blocks))
	})
}
