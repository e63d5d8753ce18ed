package dunlin

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// The broker encodes a PUBLISH from its parts, package packets from a Publish: with the same bytes.
func TestBothEncodersOfAPublishAgree(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 5000 {
		v := []packets.Version{packets.V31, packets.V311, packets.V5}[rnd.IntN(3)]
		w := wire{
			version: v, qos: packets.QoS(rnd.IntN(3)), dup: rnd.IntN(2) == 0,
			retain: rnd.IntN(2) == 0,
		}
		if w.qos > packets.QoS0 {
			w.id = uint16(rnd.IntN(65535) + 1)
		}
		m := packets.Message{Topic: strings.Repeat("t", rnd.IntN(300))}
		m.Payload = make([]byte, rnd.IntN(20_000))
		if v == packets.V5 {
			m.AddUser("k", strings.Repeat("v", rnd.IntN(200)))
			for range rnd.IntN(3) {
				w.ids = append(w.ids, 1+rnd.Uint32N(268_435_455))
			}
			w.alias = uint16(rnd.IntN(3))
		}
		p := &packets.Publish{
			Dup: w.dup, Retain: w.retain, QoS: w.qos, PacketID: w.id,
			Topic: []byte(m.Topic), Properties: m.Properties, Payload: m.Payload,
		}
		for _, id := range w.ids {
			p.Properties = p.Properties.AppendUint(packets.SubscriptionIdentifier, id)
		}
		if w.alias != 0 {
			p.Properties = p.Properties.AppendUint(packets.TopicAlias, uint32(w.alias))
		}
		want, err := p.Append([]byte("before"), v)
		require.NoError(t, err)
		got := appendPublish([]byte("before"), w, m.Topic, m.Properties, m.Payload)
		require.Equal(t, want, got, "%s", packets.Trace(p))
		n, _ := publishSize(w, len(m.Topic), len(m.Properties), len(m.Payload))
		require.Equal(t, p.Size(v), 1+uvarintLen(n)+n)
	}
}
