package pahotest

import (
	"context"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/eclipse/paho.golang/autopaho"
	pahopackets "github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/stretchr/testify/require"
)

// done waits for a token of paho.mqtt.golang.
func done(t *testing.T, k mqtt.Token) {
	t.Helper()
	require.True(t, k.WaitTimeout(10*time.Second), "the token is not done")
	require.NoError(t, k.Error())
}

// options are those of a paho.mqtt.golang client that dials in memory.
func options(b *mqtttest.Broker, id string) *mqtt.ClientOptions {
	return mqtt.NewClientOptions().AddBroker("mqtt://in-memory").SetClientID(id).
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
			return b.Dial()
		})
}

// leave disconnects and lets the client's goroutines end before the bubble does.
func leave(c mqtt.Client) {
	c.Disconnect(250)
	time.Sleep(time.Second)
}

func TestPahoOverTCP(t *testing.T) {
	b := mqtttest.NewBroker(t)
	got := make(chan string, 1)
	c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(b.URL()).SetClientID("sensor"))
	done(t, c.Connect())
	done(t, c.Subscribe("commands/#", 1, func(_ mqtt.Client, m mqtt.Message) {
		got <- m.Topic() + " " + string(m.Payload())
	}))
	b.Publish("commands/led", "on")
	require.Equal(t, "commands/led on", <-got)
	done(t, c.Publish("status", 2, true, "lit"))
	b.WaitFor(t, "status", mqtttest.Payload("lit"))
	c.Disconnect(250)
	b.WaitDisconnected(t, "sensor")
}

// An hour passes, and the session is gone: in well under a second.
func TestPahoSessionExpiryInVirtualTime(t *testing.T) {
	start := time.Now()
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.MaxSessionExpiry = time.Hour
		}))
		connect := func(want bool) {
			t.Helper()
			c := mqtt.NewClient(options(b, "sensor").SetCleanSession(false))
			k := c.Connect()
			done(t, k)
			require.Equal(t, want, k.(*mqtt.ConnectToken).SessionPresent())
			leave(c)
			b.WaitDisconnected(t, "sensor")
		}
		connect(false)
		time.Sleep(59 * time.Minute)
		connect(true)
		time.Sleep(61 * time.Minute)
		connect(false)
	})
	t.Logf("two hours took %v", time.Since(start))
	require.Less(t, time.Since(start),
		time.Minute) // well under a second on a machine that does nothing else
}

// The client's own Keep Alive runs in virtual time, too: it pings, and it notices a broker that has
// fallen silent.
func TestPahoKeepAliveInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		lost := make(chan error, 1)
		c := mqtt.NewClient(options(b, "sensor").SetKeepAlive(30 * time.Second).
			SetPingTimeout(10 * time.Second).SetAutoReconnect(false).
			SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err }))
		done(t, c.Connect())
		pings := b.Inject(mqtttest.Delay(mqtttest.FromClient, packets.TypePingreq, 0,
			time.Nanosecond)) // to count them
		time.Sleep(time.Hour)
		require.GreaterOrEqual(t, pings.Hits(), 60)
		require.True(t, c.IsConnected())

		silent := b.Inject(mqtttest.StallWrites(), mqtttest.ForClient("sensor"))
		require.ErrorContains(t, <-lost, "pingresp not received")
		silent.Lift()
		b.WaitDisconnected(t, "sensor")
		leave(c)
	})
}

// The client reconnects by itself to a broker that was away for ten minutes.
func TestPahoReconnectsInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Timeout(time.Hour))
		c := mqtt.NewClient(options(b,
			"sensor").SetMaxReconnectInterval(time.Minute).SetResumeSubs(true))
		done(t, c.Connect())
		b.Stop()
		time.Sleep(10 * time.Minute)
		b.Start()
		b.WaitConnected(t, "sensor")
		leave(c)
	})
}

// newAutopaho connects an autopaho client in memory.
func newAutopaho(t *testing.T, b *mqtttest.Broker, id string, expiry uint32,
	up func(*paho.Connack)) (c *autopaho.ConnectionManager, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	server, err := url.Parse("mqtt://in-memory")
	require.NoError(t, err)
	c, err = autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls: []*url.URL{server}, KeepAlive: 30, SessionExpiryInterval: expiry,
		AttemptConnection: func(context.Context, autopaho.ClientConfig, *url.URL) (net.Conn,
			error) {
			nc, err := b.Dial()
			return pahopackets.NewThreadSafeConn(nc), err
		},
		OnConnectionUp: func(_ *autopaho.ConnectionManager, ack *paho.Connack) { up(ack) },
		ClientConfig:   paho.ClientConfig{ClientID: id},
	})
	require.NoError(t, err)
	require.NoError(t, c.AwaitConnection(ctx))
	return c, func() {
		c.Disconnect(ctx)
		cancel()
		<-c.Done()
	}
}

func TestAutopahoSessionExpiryInVirtualTime(t *testing.T) {
	start := time.Now()
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		connect := func(want bool) {
			t.Helper()
			present := make(chan bool, 1)
			_, end := newAutopaho(t, b, "sensor", 3600, func(ack *paho.Connack) {
				present <- ack.SessionPresent
			})
			require.Equal(t, want, <-present)
			end()
			b.WaitDisconnected(t, "sensor")
		}
		connect(false)
		time.Sleep(59 * time.Minute)
		connect(true)
		time.Sleep(61 * time.Minute)
		connect(false)
	})
	t.Logf("two hours took %v", time.Since(start))
	require.Less(t, time.Since(start),
		time.Minute) // well under a second on a machine that does nothing else
}

func TestAutopahoSurvivesARestartInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Timeout(time.Hour))
		ups := make(chan bool, 10)
		c, end := newAutopaho(t, b, "sensor", 3600, func(*paho.Connack) { ups <- true })
		<-ups
		b.Stop()
		time.Sleep(5 * time.Minute)
		b.Start()
		<-ups
		_, err := c.Publish(t.Context(), &paho.Publish{Topic: "status", QoS: 2,
			Payload: []byte("back")})
		require.NoError(t, err)
		b.WaitFor(t, "status", mqtttest.Payload("back"))
		end()
	})
}

// An acknowledgement that is lost: the client sends the message again on its next connection, and
// QoS 2 makes that one message.
func TestPahoRepeatsWhatWasNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Timeout(time.Hour))
		c := mqtt.NewClient(options(b, "sensor").SetCleanSession(false))
		done(t, c.Connect())
		b.Inject(mqtttest.Drop(mqtttest.ToClient, packets.TypePubrec, 1))
		k := c.Publish("status", 2, false, "x")
		b.WaitFor(t, "status", nil)
		b.Broker().Disconnect("sensor", packets.ServerShuttingDown)
		done(t, k)
		require.Len(t, b.Messages("status"), 1, "exactly once")
		leave(c)
	})
}
