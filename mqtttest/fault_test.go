package mqtttest_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

func TestRefuse(t *testing.T) {
	both(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		in := b.Inject(mqtttest.Refuse(packets.ServerBusy), mqtttest.ForClient("unlucky"))
		b.Client(t, "lucky")
		for _, tt := range []struct {
			version packets.Version
			want    packets.ReasonCode
		}{{packets.V5, packets.ServerBusy}, {packets.V311, packets.ReasonCode(3)}} {
			c := b.Open(t)
			c.Send(&packets.Connect{Version: tt.version, CleanStart: true, ClientID: "unlucky"})
			ack := c.WantType("an answer", packets.TypeConnack).(*packets.Connack)
			if tt.version == packets.V5 {
				require.Equal(t, tt.want, ack.Code)
			} else {
				require.Equal(t, byte(3), ack.Code.ReturnCode(), "Server unavailable")
			}
			c.WantClosed("a refused client is thrown out")
		}
		require.Equal(t, 2, in.Hits())
		in.Lift()
		in.Lift()
		b.Client(t, "unlucky")
		require.Equal(t, 2, in.Hits())
	})
}

func TestRefuseWithEnhancedAuthentication(t *testing.T) {
	b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
		c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{
			"yes": hooks.EnhancedAuthenticatorFunc(func(context.Context,
				*hooks.ConnectRequest) (hooks.Exchange, error) {
				return agree{}, nil
			}),
		}
	}))
	method := func(p *packets.Connect) {
		p.Properties = p.Properties.AppendText(packets.AuthenticationMethod, "yes")
	}
	b.Client(t, "c1", method)
	b.Inject(mqtttest.Refuse(packets.Banned))
	c := b.Open(t)
	p := &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c2"}
	method(p)
	c.Send(p)
	c.Want("the fault comes before the exchange", &packets.Connack{Code: packets.Banned})
}

type agree struct{}

func (agree) Next(context.Context, []byte) ([]byte, bool, error) { return nil, true, nil }

func TestDrop(t *testing.T) {
	bothIdle(t, func(t *testing.T, idle func(*mqtttest.Client, string)) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "c1")
		in := b.Inject(mqtttest.Drop(mqtttest.FromClient, packets.TypePublish, 2),
			mqtttest.ForClient("c1"))
		for id := uint16(1); id <= 3; id++ {
			c.Send(publish1(id, "a", string(rune('0'+id))))
		}
		c.WantType("the first arrives", packets.TypePuback)
		c.Want("then the third", &packets.Ack{Kind: packets.TypePuback, PacketID: 3,
			Code: packets.NoMatchingSubscribers})
		idle(c, "the second is lost")
		require.Equal(t, 1, in.Hits())
		require.Contains(t, b.Trace(), "id=2 topic=a payload=2  # dropped by a fault")

		each := b.Inject(mqtttest.Drop(mqtttest.ToClient, packets.TypePuback, 0))
		c.Send(publish1(4, "a", "4"), publish1(5, "a", "5"))
		b.WaitFor(t, "a", mqtttest.Payload("5"))
		idle(c, "no acknowledgement comes")
		require.Equal(t, 2, each.Hits())
	})
}

func TestDuplicate(t *testing.T) {
	both(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "c1")
		b.Inject(mqtttest.Duplicate(mqtttest.FromClient, packets.TypePublish, 1))
		c.Send(&packets.Publish{QoS: packets.QoS2, PacketID: 1, Topic: []byte("a"),
			Payload: []byte("x")})
		c.WantType("the message is taken", packets.TypePubrec)
		c.WantType("twice", packets.TypePubrec)
		require.Len(t, b.Messages("a"), 1, "exactly once")
	})
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Timeout(time.Hour))
		c := b.Client(t, "c1")
		b.Inject(mqtttest.Delay(mqtttest.FromClient, packets.TypePublish, 1, time.Minute))
		b.Inject(mqtttest.Delay(mqtttest.ToClient, packets.TypePingresp, 1, 10*time.Second))
		start := time.Now()
		c.Send(publish1(1, "a", "x"), &packets.Pingreq{})
		c.WantIdle("nothing passes for a while")
		c.WantType("the message is late", packets.TypePuback)
		require.Equal(t, time.Minute, time.Since(start))
		c.WantType("and what came behind it", packets.TypePingresp)
		require.Equal(t, 70*time.Second, time.Since(start))
	})
}

// A delay that is longer than Keep Alive: the broker's read deadline passes while the packet is
// held, and the client is gone.
func TestADelayBeyondKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Timeout(time.Hour))
		c := b.Client(t, "c1", func(p *packets.Connect) { p.KeepAlive = 10 })
		b.Inject(mqtttest.Delay(mqtttest.FromClient, packets.TypePingreq, 1, time.Minute))
		start := time.Now()
		c.Send(&packets.Pingreq{})
		require.Equal(t, packets.KeepAliveTimeout, c.WantClosed("Keep Alive ends it").Code)
		require.GreaterOrEqual(t, time.Since(start), 15*time.Second)
		require.Less(t, time.Since(start), 17*time.Second)
	})
}

func TestCut(t *testing.T) {
	both(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "c1", func(p *packets.Connect) {
			p.Will = &packets.Will{Topic: "will", Payload: []byte("gone")}
		})
		in := b.Inject(mqtttest.Cut(mqtttest.FromClient, 10), mqtttest.ForClient("c1"))
		c.Send(&packets.Pingreq{})
		c.WantType("2 bytes pass", packets.TypePingresp)
		require.Zero(t, in.Hits())
		c.Send(publish("a", "0123456789"))
		c.WantClosed("the connection breaks in the middle of the packet")
		b.WaitDisconnected(t, "c1")
		b.WaitFor(t, "will", mqtttest.Payload("gone"))
		require.Empty(t, b.Messages("a"))
		require.Equal(t, 1, in.Hits())
		b.Client(t, "c1").Send(publish("a", "0123456789"))
		b.WaitFor(t, "a", nil) // once cut, it is over
	})
}

func TestCutTowardsTheClient(t *testing.T) {
	both(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		nc, err := b.Dial()
		require.NoError(t, err)
		defer nc.Close()
		b.Inject(mqtttest.Cut(mqtttest.ToClient, 3))
		raw, _ := (&packets.Connect{Version: packets.V311, CleanStart: true, ClientID: "c1"}).
			Append(nil, packets.V311)
		nc.Write(raw)
		got, err := io.ReadAll(nc)
		require.NoError(t, err)
		require.Equal(t, []byte{0x20, 2, 0}, got, "three of the four bytes of the CONNACK")
	})
}

func TestStallReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c, other := b.Client(t, "c1"), b.Client(t, "c2")
		in := b.Inject(mqtttest.StallReads(), mqtttest.ForClient("c1"))
		c.Send(publish1(1, "a", "x"))
		c.WantIdle("nobody reads it")
		other.Send(&packets.Pingreq{})
		other.WantType("others are served", packets.TypePingresp)
		in.Lift()
		c.WantType("it goes on", packets.TypePuback)
		require.Equal(t, 1, in.Hits())
	})
}

// A client that takes nothing is ended by the broker's WriteTimeout, in virtual time.
func TestStallWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Timeout(time.Hour),
			mqtttest.Config(func(c *dunlin.Config) { c.WriteTimeout = 20 * time.Second }))
		c := b.Client(t, "slow")
		c.Send(subscribe(1, "a", 0))
		c.WantType("", packets.TypeSuback)
		in := b.Inject(mqtttest.StallWrites(), mqtttest.ForClient("slow"))
		start := time.Now()
		b.Publish("a", "x")
		b.WaitDisconnected(t, "slow")
		require.Equal(t, 20*time.Second, time.Since(start).Round(time.Second))
		require.Equal(t, 1, in.Hits())

		c = b.Client(t, "patient")
		c.Send(subscribe(1, "a", 0))
		c.WantType("", packets.TypeSuback)
		in = b.Inject(mqtttest.StallWrites(), mqtttest.ForClient("patient"))
		b.Publish("a", "y")
		c.WantIdle("held up")
		in.Lift()
		c.Want("and then it comes", publish("a", "y"))
	})
}

func TestForgetSession(t *testing.T) {
	both(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		persistent := func(p *packets.Connect) {
			p.CleanStart = false
			p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 3600)
		}
		b.Client(t, "c1", persistent).Disconnect()
		c := b.Client(t, "c1", persistent)
		require.True(t, c.Connack.SessionPresent)
		c.Disconnect()
		b.Inject(mqtttest.ForgetSession(), mqtttest.ForClient("c1"))
		c = b.Client(t, "c1", persistent)
		require.False(t, c.Connack.SessionPresent, "it has been forgotten")
		c.Disconnect()
		require.True(t, b.Client(t, "c1", persistent).Connack.SessionPresent, "once")
	})
}

// Large packets and streams that are no MQTT pass as they come.
func TestWhatCannotBeTakenApartPasses(t *testing.T) {
	both(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) { c.MaxPacketSize = -1 }))
		c := b.Client(t, "c1")
		c.Send(publish1(1, "big", string(make([]byte, 3<<20))))
		c.WantType("more than is held for a fault", packets.TypePuback)
		require.Len(t, b.Messages("big")[0].Payload, 3<<20)
		require.Contains(t, b.Trace(), "> PUBLISH of 31457")
	})
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		nc, err := b.Dial()
		require.NoError(t, err)
		nc.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		_, err = nc.Read(make([]byte, 1))
		require.Error(t, err)
		nc.Close()
		require.Eventually(t, func() bool {
			return len(b.Failures()) == 1
		}, time.Second, time.Millisecond)
	})
}

// An identifier that the broker has assigned is known to the faults.
func TestFaultsForAssignedIdentifiers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		c := b.Client(t, "")
		id, ok := c.Connack.Properties.Text(packets.AssignedClientIdentifier)
		require.True(t, ok)
		b.WaitConnected(t, id)
		b.Inject(mqtttest.Drop(mqtttest.FromClient, packets.TypePingreq, 0), mqtttest.ForClient(id))
		c.Send(&packets.Pingreq{})
		c.WantIdle("it is dropped")
	})
}

// A client that takes something now and then is not ended by WriteTimeout, as it would not be
// without this package in between.
func TestASlowClientIsNotAStalledOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.WriteTimeout = 20 * time.Second
		}))
		c := b.Client(t, "slow")
		c.Send(subscribe(1, "a", 0))
		c.WantType("", packets.TypeSuback)
		b.Publish("a", strings.Repeat("x", 400_000))
		nc := c.Conn()
		nc.SetReadDeadline(time.Time{})
		for range 40 {
			time.Sleep(5 * time.Second)
			_, err := io.ReadFull(nc, make([]byte, 9_000))
			require.NoError(t, err)
		}
		rest := make([]byte, 1+3+3+1+400_000-40*9_000)
		_, err := io.ReadFull(nc, rest)
		require.NoError(t, err)
		require.Equal(t, byte('x'), rest[len(rest)-1])
	})
}
