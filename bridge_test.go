package dunlin_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// asBridge makes the CONNECT that of a bridge of Mosquitto.
func asBridge(p *packets.Connect) { p.Version, p.Bridge = packets.V311, true }

func subscribeTo(id uint16, filter string) *packets.Subscribe {
	return &packets.Subscribe{PacketID: id,
		Subscriptions: []packets.Subscription{{Filter: filter, QoS: 1}}}
}

func TestABridgeTellsItsState(t *testing.T) {
	for _, tt := range []struct {
		topic string
		taken bool
	}{
		{"$SYS/broker/connection/kitchen.dunlin/state", true},
		{"$SYS/broker/connection/state", false},
		{"$SYS/broker/connection//state", false},
		{"$SYS/broker/connection/a/b/state", false},
		{"$SYS/broker/connection/a/state/", false},
		{"$SYS/broker/uptime", false},
		{"$share/a/b", false},
	} {
		t.Run(tt.topic, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := mqtttest.NewBroker(t)
				willed := b.Open(t)
				willed.Send(&packets.Connect{
					Version: packets.V311, CleanStart: true, ClientID: "w", Bridge: true,
					Will: &packets.Will{Topic: tt.topic, Payload: []byte("0"), QoS: 1,
						Retain: true},
				})
				if !tt.taken {
					willed.Want("the Will is refused",
						&packets.Connack{Code: packets.NotAuthorized})
					c := b.Client(t, "c1")
					c.Send(&packets.Publish{QoS: 1, PacketID: 1, Topic: []byte(tt.topic),
						Payload: []byte("1"), Retain: true})
					c.Want("so is a PUBLISH", &packets.Ack{Kind: packets.TypePuback, PacketID: 1,
						Code: packets.NotAuthorized})
					willed.WantClosed("and the connection ends")
					b.Failures()
					return
				}
				willed.WantType("the Will is taken", packets.TypeConnack)
				willed.Send(&packets.Publish{QoS: 1, PacketID: 1, Topic: []byte(tt.topic),
					Payload: []byte("1"), Retain: true})
				willed.Want("and a PUBLISH", &packets.Ack{Kind: packets.TypePuback, PacketID: 1})
				willed.Close()
				b.WaitFor(t, tt.topic, mqtttest.Payload("0"))
				c := b.Client(t, "c1")
				c.Send(subscribeTo(1, tt.topic))
				c.WantType("granted", packets.TypeSuback)
				c.Want("the state is retained", &packets.Publish{QoS: 1, PacketID: 1,
					Topic: []byte(tt.topic), Payload: []byte("0"), Retain: true})
			})
		})
	}
}

// What a bridge publishes does not come back to it, and what it gets says whether it is retained.
func TestABridgeGetsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen hooks.Client
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.Observer = &hooks.Observer{Connected: func(e hooks.Connected) {
				if e.Client.ID == "bridge" {
					seen = *e.Client
				}
			}}
		}))
		bridge := b.Client(t, "bridge", asBridge)
		synctest.Wait() // the CONNACK leaves before the Observer is told
		require.True(t, seen.Bridge)
		require.Equal(t, packets.V311, seen.Version)
		bridge.Send(subscribeTo(1, "#"))
		bridge.WantType("granted", packets.TypeSuback)
		bridge.Send(&packets.Publish{QoS: 1, PacketID: 1, Topic: []byte("a"),
			Payload: []byte("mine")})
		bridge.WantType("taken", packets.TypePuback)
		bridge.WantIdle("its own message does not come back")
		c := b.Client(t, "c1")
		c.Send(&packets.Publish{QoS: 1, PacketID: 1, Topic: []byte("a"), Payload: []byte("theirs"),
			Retain: true})
		bridge.Want("RETAIN is as it was published",
			&packets.Publish{QoS: 1, PacketID: 1, Topic: []byte("a"), Payload: []byte("theirs"),
				Retain: true})
		bridge.Send(subscribeTo(2, "$share/g/b"))
		bridge.WantType("a shared filter has no No Local", packets.TypeSuback)
		bridge.Send(&packets.Publish{QoS: 0, Topic: []byte("b"), Payload: []byte("x")})
		bridge.Want("so its own message comes back by it",
			&packets.Publish{QoS: 0, Topic: []byte("b"), Payload: []byte("x")})
	})
}

// Mosquitto acknowledges QoS 2 messages beyond its limit, and does not deliver them.
func TestABridgeGetsNoMoreAtATimeThanMosquittoTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		bridge := b.Client(t, "bridge", asBridge)
		bridge.Send(subscribeTo(1, "#"))
		bridge.WantType("granted", packets.TypeSuback)
		for range 30 {
			b.Publish("a", "x")
		}
		for range 20 {
			bridge.WantType("a message", packets.TypePublish)
		}
		bridge.WantIdle("the next ones wait for acknowledgements")
		bridge.Send(&packets.Ack{Kind: packets.TypePuback, PacketID: 1})
		bridge.WantType("the 21st", packets.TypePublish)
	})
}

// A service below a prefix of its own, as an Interceptor.
func TestSystemTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.SystemTopics = []string{"$CONTROL/", "$aws/"}
			c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
				m *packets.Message) (*packets.Message, error) {
				switch {
				case m.Topic != "$CONTROL/lamp":
					return m, nil
				case string(m.Payload) == "on":
					return nil, hooks.ErrDrop
				}
				return nil, packets.Errorf(packets.PayloadFormatInvalid, "say on")
			})
		}))
		c := b.Client(t, "c1")
		publish := func(topic, payload string) packets.ReasonCode {
			c.Send(&packets.Publish{QoS: 1, PacketID: 1, Topic: []byte(topic),
				Payload: []byte(payload)})
			return c.WantType("it is answered", packets.TypePuback).(*packets.Ack).Code
		}
		require.Equal(t, packets.NoMatchingSubscribers, publish("$aws/things/x", "y"))
		require.Equal(t, packets.PayloadFormatInvalid, publish("$CONTROL/lamp", "off"))
		require.False(t, publish("$CONTROL/lamp", "on").Failed())
		require.Equal(t, packets.NotAuthorized, publish("$CONTROLS/lamp", "on"))
		require.Equal(t, packets.NotAuthorized, publish("$SYS/broker/uptime", "1"))
	})
	for _, wrong := range []string{"", "$", "aws/", "$SYS/", "$SYS/x/", "$share/", "$local/", "$lo",
		"$a/+/"} {
		_, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
			SystemTopics: []string{wrong}})
		require.ErrorContains(t, err, "Config.SystemTopics", "%q", wrong)
	}
}
