package presence_test

import (
	"context"
	"log"
	"net"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/presence"
)

// A broker that publishes who comes and goes: mosquitto_sub -v -t '$SYS/broker/clients/#' shows it.
func ExampleNew() {
	seen := presence.New(presence.Options{})
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Observer: seen.Observer()})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go seen.Run(ctx, b) // ends with ctx
	l, err := net.Listen("tcp", "127.0.0.1:1883")
	if err != nil {
		log.Fatal(err)
	}
	log.Print(b.Serve(l))
}
