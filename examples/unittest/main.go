// Command unittest is a thermostat, as somebody might have written it with a client library. What
// it shows is its test: main_test.go runs it against a broker of its own, and lets the network and
// the broker fail.
package main

import (
	"context"
	"flag"
	"log"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
)

func main() {
	broker := flag.String("broker", "mqtt://127.0.0.1:1883", "`URL` of the broker")
	room := flag.String("room", "kitchen", "which room to heat")
	target := flag.Float64("target", 20, "degrees Celsius")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	t, err := newThermostat(*broker, *room, *target)
	if err != nil {
		log.Fatal(err)
	}
	<-ctx.Done()
	t.Close()
}

// A thermostat reads ROOM/temperature, says on ROOM/heating whether to heat, and on ROOM/thermostat
// whether it is there.
type thermostat struct {
	ctx    context.Context
	cancel context.CancelFunc
	c      *autopaho.ConnectionManager
	room   string
	target float64
}

func newThermostat(broker, room string, target float64) (*thermostat, error) {
	server, err := url.Parse(broker)
	if err != nil {
		return nil, err
	}
	t := &thermostat{room: room, target: target}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.c, err = autopaho.NewConnection(t.ctx, autopaho.ClientConfig{
		ServerUrls: []*url.URL{server}, KeepAlive: 30, SessionExpiryInterval: 3600,
		ReconnectBackoff: func(int) time.Duration { return 50 * time.Millisecond },
		WillMessage: &paho.WillMessage{Topic: room + "/thermostat", Payload: []byte("gone"),
			QoS: 1, Retain: true},
		// a moment
		OnConnectionUp: func(*autopaho.ConnectionManager, *paho.Connack) { go t.hello() },
		ClientConfig: paho.ClientConfig{ClientID: "thermostat-" + room,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){
				func(p paho.PublishReceived) (bool, error) {
					// not here: nothing else would be received meanwhile
					go t.measured(string(p.Packet.Payload))
					return true, nil
				},
			}},
	})
	if err != nil {
		t.cancel()
	}
	return t, err
}

// hello follows each connection.
func (t *thermostat) hello() {
	_, err := t.c.Subscribe(t.ctx,
		&paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: t.room + "/temperature",
			QoS: 1}}})
	if err != nil {
		log.Print("not subscribed: ", err)
		return
	}
	t.say("thermostat", "here")
}

// measured is called with each measurement.
func (t *thermostat) measured(payload string) {
	celsius, err := strconv.ParseFloat(payload, 64)
	if err != nil {
		log.Printf("%q is no temperature", payload)
		return
	}
	state := "off"
	if celsius < t.target {
		state = "on"
	}
	t.say("heating", state)
}

func (t *thermostat) say(what, state string) {
	ctx, cancel := context.WithTimeout(t.ctx, 5*time.Second)
	defer cancel()
	// a measurement may come before autopaho knows that it is connected
	err := t.c.AwaitConnection(ctx)
	if err == nil {
		_, err = t.c.Publish(ctx,
			&paho.Publish{Topic: t.room + "/" + what, Payload: []byte(state), QoS: 1, Retain: true})
	}
	if err != nil {
		log.Printf("%s %s was not said: %v", what, state, err)
	}
}

// Close turns the heating off and leaves.
func (t *thermostat) Close() {
	t.say("heating", "off")
	t.say("thermostat", "gone")
	t.c.Disconnect(t.ctx)
	t.cancel()
	<-t.c.Done()
}
