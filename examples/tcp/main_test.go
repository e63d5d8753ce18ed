package main

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0")
	addr := p.Line("listening on ")
	sub, pub := try.Connect(t, addr, "sub"), try.Connect(t, addr, "pub")
	sub.Subscribe("hello/#", 1)
	pub.Publish("hello/world", "hi")
	sub.Want("hello/world", "hi")
	p.Interrupt()
	for _, c := range []*try.Client{sub, pub} {
		if d, ok := c.Receive().(*packets.Disconnect); !ok || d.Code != packets.ServerShuttingDown {
			t.Fatal("the client was not told that the server shuts down")
		}
		c.Close()
	}
	p.Stop()
}
