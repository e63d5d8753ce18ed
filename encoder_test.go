package dunlin

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// What a PUBLISH has of its own on one hop stands in it, behind what travels with the message, and
// is counted in its size.
func TestAPublishHasWhatItsHopAdds(t *testing.T) {
	m := &message{Message: packets.Message{Topic: "a/b", Payload: []byte("hi")}}
	m.AddUser("k", "v")
	w := wire{version: packets.V5, qos: packets.QoS1, dup: true, retain: true, id: 7, alias: 3,
		ids: []uint32{1, 200, 268_435_455, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18}}
	p := &packets.Publish{Dup: true, Retain: true, QoS: packets.QoS1, PacketID: 7,
		Topic: []byte(m.Topic), Properties: m.Properties, Payload: m.Payload}
	old, err := p.Append(nil, packets.V311)
	require.NoError(t, err)
	for _, id := range w.ids {
		p.Properties = p.Properties.AppendUint(packets.SubscriptionIdentifier, id)
	}
	p.Properties = p.Properties.AppendUint(packets.TopicAlias, 3)
	want, err := p.Append(nil, packets.V5)
	require.NoError(t, err)
	require.Equal(t, want, appendPublish(nil, w, m.Topic, m.Properties, m.Payload))
	require.Equal(t, want, appendPublish(nil, w, []byte(m.Topic), m.Properties, m.Payload))
	require.Equal(t, len(want), publishSize(w, len(m.Topic), m))

	w.version = packets.V311 // which has no properties
	require.Equal(t, old, appendPublish(nil, w, m.Topic, m.Properties, m.Payload))
	require.Equal(t, len(old), publishSize(w, len(m.Topic), m))
}
