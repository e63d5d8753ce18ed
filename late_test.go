package dunlin_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A QoS 2 message that no member of a group takes is at an end, and does not go round for ever.
func TestAQoS2MessageThatNoMemberTakesIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dropped := 0
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.Observer = &hooks.Observer{Dropped: func(hooks.Dropped) { dropped++ }}
		}))
		member := b.Client(t, "member", func(p *packets.Connect) {
			p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, 100)
		})
		member.Send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "$share/g/t", QoS: 2}}})
		member.WantType("granted", packets.TypeSuback)
		pub := b.Client(t, "pub", func(p *packets.Connect) {
			p.CleanStart = false
			p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 3600)
		})
		pub.Send(&packets.Publish{QoS: 2, PacketID: 1, Topic: []byte("t"),
			Payload: make([]byte, 200)})
		pub.WantType("taken", packets.TypePubrec)
		pub.Send(&packets.Ack{Kind: packets.TypePubrel, PacketID: 1})
		pub.WantType("complete", packets.TypePubcomp)
		time.Sleep(time.Minute) // would not come to its end while something goes round
		synctest.Wait()
		require.Less(t, dropped, 10)
		require.NotZero(t, dropped)
		member.WantIdle("it is too large")
	})
}
