package main

import (
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
)

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0")
	addr := p.Line("listening on ")
	sub, pub := try.Connect(t, addr, "sub"), try.Connect(t, addr, "pub")
	sub.Subscribe("orders/+/state", 1)
	pub.Publish("orders/7", `{"item":"spade","count":2}`)
	sub.Want("orders/7/state", "accepted")
	if got := p.Line("orders/7: "); got != "2 of spade" {
		t.Fatalf("it printed %q", got)
	}
	pub.Publish("orders/8", `two spades`)
	if m := sub.Message(); !strings.HasPrefix(string(m.Payload), "refused: ") {
		t.Fatalf("what is no order was answered with %q", m.Payload)
	}
	p.Stop()
}
