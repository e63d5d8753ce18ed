package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestRun(t *testing.T) {
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-every", "10ms")
	addr := p.Line("listening on ")
	p.Line("  mosquitto_sub ")
	c := try.Connect(t, addr, "c")
	c.Subscribe("c/reply", 1)
	ask := func(zone string) *packets.Publish {
		c.Send(&packets.Publish{Topic: []byte("time"), Payload: []byte(zone),
			Properties: packets.Properties(nil).
				AppendText(packets.ResponseTopic, "c/reply").AppendText(packets.CorrelationData,
				"1")})
		m := c.Message()
		if data, _ := m.Properties.Bytes(packets.CorrelationData); string(data) != "1" {
			t.Fatalf("the answer has the Correlation Data %q", data)
		}
		return m
	}
	if m := ask("UTC"); !strings.HasSuffix(string(m.Payload), "Z") {
		t.Fatalf("the answer is %q", m.Payload)
	}
	if m := ask("Nowhere/Land"); len(m.Payload) != 0 {
		t.Fatalf("the answer is %q", m.Payload)
	}

	// The other way round: the client is the one who answers.
	c.Subscribe("ask/thermometer", 1)
	for got := ""; got != "the thermometer says 21.5"; got = p.Line("") {
		if got != "" && !strings.HasPrefix(got,
			"no answer: ") { // it does not wait long for one; then it asks again
			t.Fatalf("it said %q", got)
		}
		m := c.Message()
		to, _ := m.Properties.Text(packets.ResponseTopic)
		data, _ := m.Properties.Bytes(packets.CorrelationData)
		c.Send(&packets.Publish{Topic: []byte(to), Payload: []byte("21.5"),
			Properties: packets.Properties(nil).AppendBytes(packets.CorrelationData, data)})
	}
}

func TestMosquittoRR(t *testing.T) {
	rr := try.Need(t, "mosquitto_rr", "mosquitto-clients")
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-every", time.Hour.String())
	host, port, _ := strings.Cut(p.Line("listening on "), ":")
	out, err := exec.CommandContext(t.Context(), rr, "-V", "5", "-h", host, "-p", port, "-q", "1",
		"-t", "time", "-e", "my/reply", "-m", "UTC", "-W", "10").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := time.Parse(time.RFC3339, strings.TrimSpace(string(out))); err != nil {
		t.Fatalf("mosquitto_rr got %q", out)
	}
}
