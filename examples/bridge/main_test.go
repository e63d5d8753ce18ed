package main

import (
	"net"
	"testing"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/examples/internal/try"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// startRemote starts the broker on the other side, at an address that it may have had before.
func startRemote(t *testing.T, addr string) (b *dunlin.Broker, at string) {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	go b.Serve(l) // ends with b
	t.Cleanup(func() { b.Close() })
	return b, l.Addr().String()
}

func TestMessagesCrossInBothDirectionsAndOutliveAnOutage(t *testing.T) {
	remote, there := startRemote(t, "127.0.0.1:0")
	p := try.Start(t, run, "-listen", "127.0.0.1:0", "-remote", "mqtt://"+there, "-out",
		"out/#,both/#", "-in", "in/#,both/#", "-retry", "20ms")
	here := p.Line("listening on ")
	p.Line(`msg="a bridge link is up"`)

	subHere, pubHere := try.Connect(t, here, "sub"), try.Connect(t, here, "pub")
	subHere.Subscribe("#", 1)
	subThere, pubThere := try.Connect(t, there, "sub"), try.Connect(t, there, "pub")
	subThere.Subscribe("#", 1)

	pubHere.Send(&packets.Publish{Topic: []byte("out/a"), Payload: []byte("1"), QoS: 1, PacketID: 1,
		Properties: packets.Properties(nil).AppendText(packets.ContentType, "text/plain").
			AppendUser("k", "v")})
	pubHere.Receive()
	subHere.Want("out/a", "1")
	m := subThere.Message()
	if kind, _ := m.Properties.Text(packets.ContentType); string(m.Topic) != "out/a" ||
		kind != "text/plain" {
		t.Fatalf("%s %v came", m.Topic, m.Properties)
	}
	pubThere.Publish("in/b", "2")
	subThere.Want("in/b", "2")
	subHere.Want("in/b", "2")

	// A topic that goes both ways arrives once on each side.
	pubHere.Publish("both/c", "3")
	pubThere.Publish("both/d", "4")
	for _, c := range []*try.Client{subHere, subThere} {
		seen := map[string]int{}
		for range 2 {
			seen[string(c.Message().Topic)]++
		}
		if seen["both/c"] != 1 || seen["both/d"] != 1 {
			t.Fatalf("what came is %v", seen)
		}
	}
	pubHere.Publish("last", "5")
	subHere.Want("last", "5") // and nothing before it

	// The other side is away, and comes back without its Sessions.
	remote.Close()
	pubHere.Publish("out/e", "6")
	p.Line(`msg="a bridge link has ended"`)
	startRemote(t, there)
	subThere = try.Connect(t, there, "sub")
	subThere.Subscribe("#", 1)
	p.Line(`msg="a bridge link is up"`)
	// What the other side has not acknowledged before it went comes again, and what waited may have
	// come before the subscription.
	for got := ""; got != "6"; {
		pubHere.Publish("out/f", "6")
		got = string(subThere.Message().Payload)
	}
	p.Stop()
}
