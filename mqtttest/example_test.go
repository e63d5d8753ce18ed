package mqtttest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// The argument of a test function.
var t *testing.T

func ExampleNewBroker() {
	b := mqtttest.NewBroker(t)

	// Start what is to be tested with b.URL(), then:
	b.WaitConnected(t, "lamp")
	b.Publish("lamp/set", "on")
	b.WaitFor(t, "lamp/state", mqtttest.Payload("on"))
}

func ExampleBroker_Client() {
	b := mqtttest.NewBroker(t)
	c := b.Client(t, "c1")
	c.Send(&packets.Pingreq{})
	c.Want("a ping is answered", &packets.Pingresp{})
	c.WantIdle("and nothing else comes")
}

// A session that ends after an hour, in no time.
func ExampleBroker_Dial() {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		nc, err := b.Dial() // for a client library
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		time.Sleep(time.Hour)
	})
}

func ExampleBroker_Inject() {
	b := mqtttest.NewBroker(t)
	in := b.Inject(mqtttest.StallReads(), mqtttest.ForClient("lamp"))
	b.Publish("lamp/set", "on")
	// What does the lamp do while nobody listens to it?
	in.Lift()
	b.WaitFor(t, "lamp/state", mqtttest.Payload("on"))
}
