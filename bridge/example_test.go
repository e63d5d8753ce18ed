package bridge_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/bridge"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
)

// Two brokers in one process. Whatever is published at branch below sensors/ comes to head below
// branch/sensors/.
func Example() {
	ctx, quiet := context.Background(), slog.New(slog.DiscardHandler)
	head, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Logger: quiet})
	if err != nil {
		panic(err)
	}
	defer head.Close()
	door := listeners.NewMemory()
	go head.Serve(door) // ends with head

	node, err := bridge.New(bridge.Config{Name: "branch", Logger: quiet, Links: []bridge.Link{{
		Name: "head", Addresses: []string{"mqtt://head"},
		Dial: func(context.Context, string) (net.Conn, error) { return door.Dial() },
		Topics: []bridge.Topic{
			{Filter: "sensors/#", Direction: bridge.DirectionOut, QoS: 1, RemotePrefix: "branch/"},
		},
	}}})
	if err != nil {
		panic(err)
	}
	cfg := dunlin.Config{Authenticator: hooks.AllowAll, Logger: quiet}
	node.Install(&cfg)
	branch, err := dunlin.New(cfg)
	if err != nil {
		panic(err)
	}
	defer branch.Close()

	sub, err := head.Subscribe(ctx, "branch/#", &dunlin.SubscribeOptions{QoS: 1})
	if err != nil {
		panic(err)
	}
	if err := branch.Publish(ctx, &dunlin.Message{Topic: "sensors/1", Payload: []byte("21"),
		QoS: 1, Retain: true}); err != nil { // so that the link gets it when it subscribes
		panic(err)
	}
	if err := node.Start(branch); err != nil {
		panic(err)
	}
	defer node.Close() // before branch
	m, err := sub.Next(ctx)
	fmt.Println(m.Topic, string(m.Payload), err)
	// Output: branch/sensors/1 21 <nil>
}
