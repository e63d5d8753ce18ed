package mqtttest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// inBubble runs f in a bubble and says how long that took in real time, which must be no time at
// all.
func inBubble(t *testing.T, f func(t *testing.T, b *mqtttest.Broker), opts ...mqtttest.Option) {
	t.Helper()
	start := time.Now()
	synctest.Test(t, func(t *testing.T) { f(t, mqtttest.NewBroker(t, opts...)) })
	// 50 ms on a machine that does nothing else; this one may
	if took := time.Since(start); took > time.Minute {
		t.Errorf("took %v of real time", took)
	}
}

func expiring(seconds uint32) func(*packets.Connect) {
	return func(p *packets.Connect) {
		p.CleanStart = false
		p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, seconds)
	}
}

func TestSessionExpiryInAnHour(t *testing.T) {
	inBubble(t, func(t *testing.T, b *mqtttest.Broker) {
		c := b.Client(t, "c1", expiring(3600))
		c.Send(subscribe(1, "a", packets.QoS1))
		c.WantType("", packets.TypeSuback)
		c.Close()
		b.WaitDisconnected(t, "c1")

		time.Sleep(59 * time.Minute)
		c = b.Client(t, "c1", expiring(3600))
		require.True(t, c.Connack.SessionPresent, "a minute before its end")
		c.Close()
		b.WaitDisconnected(t, "c1")
		time.Sleep(time.Hour + time.Second)
		_, ok := b.Broker().Session("c1")
		require.False(t, ok, "the session is gone without anybody asking")
		require.False(t, b.Client(t, "c1", expiring(3600)).Connack.SessionPresent)
	})
}

func TestMessageExpiryInAnHour(t *testing.T) {
	inBubble(t, func(t *testing.T, b *mqtttest.Broker) {
		c := b.Client(t, "c1", expiring(0xFFFFFFFF))
		c.Send(subscribe(1, "a", packets.QoS1))
		c.WantType("", packets.TypeSuback)
		c.Close()
		b.WaitDisconnected(t, "c1")
		for _, s := range []uint32{3600, 7200} {
			b.PublishMessage(&dunlin.Message{
				Topic: "a", Payload: []byte("x"), QoS: packets.QoS1,
				Properties: packets.Properties(nil).
					AppendUint(packets.MessageExpiryInterval, s),
			})
		}
		time.Sleep(90 * time.Minute)
		c = b.Client(t, "c1", expiring(0xFFFFFFFF))
		p := c.WantType("one message is left", packets.TypePublish).(*packets.Publish)
		left, _ := p.Properties.Uint(packets.MessageExpiryInterval)
		require.Equal(t, uint32(1800), left, "with what is left of its time")
		c.WantIdle("the other has expired")
	})
}

func TestWillDelay(t *testing.T) {
	inBubble(t, func(t *testing.T, b *mqtttest.Broker) {
		c := b.Client(t, "c1", expiring(3600), func(p *packets.Connect) {
			p.Will = &packets.Will{Topic: "will", Payload: []byte("x"),
				Properties: packets.Properties(nil).AppendUint(packets.WillDelayInterval, 600)}
		})
		start := time.Now()
		c.Close()
		time.Sleep(599 * time.Second)
		require.Empty(t, b.Messages("will"))
		b.WaitFor(t, "will", nil)
		require.Equal(t, 600*time.Second, time.Since(start))
	})
}

func TestKeepAlive(t *testing.T) {
	inBubble(t, func(t *testing.T, b *mqtttest.Broker) {
		start := time.Now()
		c := b.Client(t, "c1", func(p *packets.Connect) { p.KeepAlive = 60 })
		for range 10 {
			time.Sleep(80 * time.Second)
			c.Send(&packets.Pingreq{})
			c.WantType("it is within one and a half times", packets.TypePingresp)
		}
		require.Equal(t, packets.KeepAliveTimeout, c.WantClosed("silence ends it").Code)
		require.Equal(t, 890*time.Second, time.Since(start))
	}, mqtttest.Timeout(time.Hour))
}

func TestSysInterval(t *testing.T) {
	inBubble(t, func(t *testing.T, b *mqtttest.Broker) {
		c := b.Client(t, "c1")
		c.Send(subscribe(1, "$SYS/broker/uptime", 0))
		c.WantType("", packets.TypeSuback)
		for range 2 { // the retained one, which was published at the start, then the next
			c.WantType("uptime", packets.TypePublish)
		}
		require.Equal(t, "CONNACK code=0x00", packets.Trace(&packets.Connack{}))
		time.Sleep(time.Hour)
		for range 6 {
			c.WantType("six in an hour", packets.TypePublish)
		}
		c.WantIdle("and no more")
	}, mqtttest.Timeout(time.Hour), mqtttest.Config(func(c *dunlin.Config) {
		c.SysInterval = 10 * time.Minute
	}))
}

func TestAuthenticationThatEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, b *mqtttest.Broker) {
		method := func(p *packets.Connect) {
			p.Properties = p.Properties.AppendText(packets.AuthenticationMethod, "hourly")
		}
		start := time.Now()
		c := b.Client(t, "c1", method)
		time.Sleep(50 * time.Minute)
		c.Send(&packets.Auth{Code: packets.ReAuthenticate,
			Properties: packets.Properties(nil).AppendText(packets.AuthenticationMethod, "hourly")})
		require.Equal(t, packets.Success,
			c.WantType("it authenticates anew", packets.TypeAuth).(*packets.Auth).Code)
		require.Equal(t, packets.MaximumConnectTime, c.WantClosed("an hour later nobody has").Code)
		require.Equal(t, 110*time.Minute, time.Since(start))
	}, mqtttest.Timeout(2*time.Hour), mqtttest.Config(func(c *dunlin.Config) {
		c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{
			"hourly": hooks.EnhancedAuthenticatorFunc(func(_ context.Context,
				r *hooks.ConnectRequest) (hooks.Exchange, error) {
				r.Grant.Expires = time.Now().Add(time.Hour)
				return agree{}, nil
			}),
		}
	}))
}
