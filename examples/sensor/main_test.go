package main

import (
	"strconv"
	"testing"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
)

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-every", "5ms")
	c := try.Connect(t, p.Line("listening on "), "watch")
	c.Subscribe("ESP32/#", 2)
	seen := map[string]int{}
	for len(seen) < 2 || seen["ESP32/HUM"] < 2 {
		m := c.Message()
		v, err := strconv.ParseFloat(string(m.Payload), 64)
		if err != nil || v < 0 || v > 100 || m.QoS != 0 {
			t.Fatalf("%s is %q at QoS %d", m.Topic, m.Payload, m.QoS)
		}
		seen[string(m.Topic)]++
	}
	if seen["ESP32/TEM"] == 0 {
		t.Fatalf("what came is %v", seen)
	}
	p.Stop()
}
