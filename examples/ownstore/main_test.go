package main

import (
	"path/filepath"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestRetainedMessageOutlivesTheBroker(t *testing.T) {
	args := []string{"-listen", "127.0.0.1:0", "-db", filepath.Join(t.TempDir(), "broker.db")}
	p := try.Start(t, run, args...)
	c := try.Connect(t, p.Line("listening on "), "writer")
	c.Send(retained("hello", "hi"))
	c.Receive() // PUBACK
	p.Stop()
	p = try.Start(t, run, args...)
	c = try.Connect(t, p.Line("listening on "), "reader")
	c.Subscribe("hello", 1)
	c.Want("hello", "hi")
	p.Stop()
}

func retained(topic, payload string) *packets.Publish {
	return &packets.Publish{Topic: []byte(topic), Payload: []byte(payload), QoS: packets.QoS1, PacketID: 1, Retain: true}
}
