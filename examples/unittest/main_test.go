package main

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// start runs a thermostat against a broker that is there for this test alone.
func start(t *testing.T) (*thermostat, *mqtttest.Broker) {
	b := mqtttest.NewBroker(t)
	th, err := newThermostat(b.URL(), "kitchen", 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(th.cancel)
	b.WaitSubscribed(t, "kitchen/temperature")
	return th, b
}

func TestItHeatsWhenItIsCold(t *testing.T) {
	_, b := start(t)
	b.Publish("kitchen/temperature", "18.5")
	b.WaitFor(t, "kitchen/heating", mqtttest.Payload("on"))
	b.Publish("kitchen/temperature", "20.5")
	b.WaitFor(t, "kitchen/heating", mqtttest.Payload("off"))
}

func TestItIgnoresWhatIsNoTemperature(t *testing.T) {
	_, b := start(t)
	b.Publish("kitchen/temperature", "warm")
	b.Publish("kitchen/temperature", "1")
	b.WaitFor(t, "kitchen/heating", nil)
	if n := len(b.Messages("kitchen/heating")); n != 1 {
		t.Fatalf("it said %d times whether to heat", n)
	}
}

func TestItSaysThatItIsThere(t *testing.T) {
	th, b := start(t)
	b.WaitFor(t, "kitchen/thermostat", mqtttest.Payload("here"))
	th.Close()
	b.WaitFor(t, "kitchen/heating", mqtttest.Payload("off"))
	b.WaitFor(t, "kitchen/thermostat", mqtttest.Payload("gone"))
}

// A measurement that comes while the broker is away is not lost: the Session of the thermostat is
// kept.
func TestItComesBackAfterARestartOfTheBroker(t *testing.T) {
	_, b := start(t)
	b.WaitFor(t, "kitchen/thermostat", mqtttest.Payload("here"))
	b.Restart()
	b.Publish("kitchen/temperature", "3")
	b.WaitFor(t, "kitchen/heating", mqtttest.Payload("on"))
	b.WaitFor(t, "kitchen/thermostat", mqtttest.Payload("here"))
}

// When its network goes, the others are told, and it tries again until it is back.
func TestItsWillIsPublishedWhenItsNetworkGoes(t *testing.T) {
	_, b := start(t)
	b.WaitFor(t, "kitchen/thermostat", mqtttest.Payload("here"))
	refused := b.Inject(mqtttest.Refuse(packets.ServerUnavailable),
		mqtttest.ForClient("thermostat-kitchen"))
	b.Broker().Disconnect("thermostat-kitchen", packets.UnspecifiedError)
	b.WaitFor(t, "kitchen/thermostat", mqtttest.Payload("gone"))
	refused.Lift()
	b.WaitFor(t, "kitchen/thermostat", mqtttest.Payload("here"))
}
