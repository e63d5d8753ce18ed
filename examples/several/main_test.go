package main

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
)

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0,127.0.0.1:0")
	red, blue := p.Line("red listens on "), p.Line("blue listens on ")
	watch := try.Connect(t, blue, "same") // the same Client Identifier, in another world
	watch.Subscribe("#", 0)
	other := try.Connect(t, red, "same")
	other.Publish("a", "1")
	if got := p.Line("red: "); got != "a 1" {
		t.Fatalf("it printed %q", got)
	}
	third := try.Connect(t, blue, "other")
	third.Publish("a", "2")
	watch.Want("a", "2") // and not the one of the other broker
	for _, c := range []*try.Client{watch, other, third} {
		c.Close()
	}
	p.Stop()
}
