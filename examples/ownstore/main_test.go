package main

import (
	"os"
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

// The command of the README names a file in the working directory. Names with characters that a URL
// would take for its own work, too.
func TestAnyFileNameWorks(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"broker.db", "a b?c#d%20.db",
		filepath.Join(t.TempDir(), "x y.db")} {
		p := try.Start(t, run, "-listen", "127.0.0.1:0", "-db", name)
		p.Line("listening on ")
		p.Stop()
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}

func retained(topic, payload string) *packets.Publish {
	return &packets.Publish{Topic: []byte(topic), Payload: []byte(payload), QoS: packets.QoS1,
		PacketID: 1, Retain: true}
}
