package trace_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/trace"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// The packets of one client are written to a file and read again.
func Example() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	dir, err := os.MkdirTemp("", "trace")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	r := trace.New(b, trace.Options{Dir: dir})
	defer r.Close()
	t, err := r.Start(context.Background(), "sensor-7", trace.FormatJSON,
		hooks.TapOptions{ClientID: "sensor-7"})
	if err != nil {
		log.Fatal(err)
	}
	comeAndGo(b, "sensor-7")
	t.Stop() // from here on the file is complete

	f, err := os.Open(t.Files()[0])
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	for p, err := range trace.Read(f) {
		if err != nil {
			log.Fatal(err)
		}
		q, err := p.Packet()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(p.Incoming, q.Type())
	}
	// Output:
	// true CONNECT
	// false CONNACK
	// true DISCONNECT
}

// comeAndGo is a client that connects and disconnects.
func comeAndGo(b *dunlin.Broker, id string) {
	client, server := net.Pipe()
	ended := make(chan error)
	go func() { ended <- b.ServeConn(context.Background(), server) }()
	send := func(p packets.Packet) {
		x, err := p.Append(nil, packets.V5)
		if err == nil {
			_, err = client.Write(x)
		}
		if err != nil {
			log.Fatal(err)
		}
	}
	send(&packets.Connect{Version: packets.V5, ClientID: id, CleanStart: true})
	answers := packets.NewReader(client, packets.Limits{})
	answers.SetVersion(packets.V5)
	if _, err := answers.ReadPacket(); err != nil {
		log.Fatal(err)
	}
	send(&packets.Disconnect{})
	if err := <-ended; err != nil {
		log.Fatal(err)
	}
}
