package pahotest

import (
	"context"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/eclipse/paho.golang/autopaho"
	pahopackets "github.com/eclipse/paho.golang/packets"
	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/stretchr/testify/require"
)

// This file is code of docs/testing.md; see the one of the same name in mqtttest.

func TestLampReportsThatItIsOn(t *testing.T) {
	b := mqtttest.NewBroker(t)
	c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(b.URL()).SetClientID("lamp"))
	c.Connect().Wait()
	defer c.Disconnect(250)
	c.Subscribe("lamp/set", 1, func(c mqtt.Client, m mqtt.Message) { c.Publish("lamp/state", 1, true, m.Payload()) }).Wait()
	b.Publish("lamp/set", "on")
	b.WaitFor(t, "lamp/state", mqtttest.Payload("on"))
}

func TestLampAnHourLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		o := mqtt.NewClientOptions().AddBroker("mqtt://in-memory").SetClientID("lamp").SetCustomOpenConnectionFn(
			func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return b.Dial() })
		c := mqtt.NewClient(o)
		c.Connect().Wait()
		time.Sleep(time.Hour) // its Keep Alive runs as well
		require.True(t, c.IsConnected())
		c.Disconnect(250)
		time.Sleep(time.Second) // let its goroutines end before the bubble does
	})
}

func TestAutopahoDialsInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		ctx, cancel := context.WithCancel(context.Background())
		server, _ := url.Parse("mqtt://in-memory")
		c, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
			ServerUrls: []*url.URL{server},
			KeepAlive:  30,
			AttemptConnection: func(context.Context, autopaho.ClientConfig, *url.URL) (net.Conn, error) {
				nc, err := b.Dial()
				return pahopackets.NewThreadSafeConn(nc), err // as Paho wants it: it writes a packet in pieces
			},
		})
		require.NoError(t, err)
		require.NoError(t, c.AwaitConnection(ctx))
		b.Restart()
		require.NoError(t, c.AwaitConnection(ctx)) // it has come back
		cancel()
		<-c.Done() // before the bubble ends
	})
}
