// Command inprocess takes part in its own broker: it reads what clients publish as Go values, and
// publishes what it makes of them. No connection is needed for that, and nothing is lost between
// the two.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// An order is what clients publish to orders/NUMBER.
type order struct {
	Item  string `json:"item"`
	Count int    `json:"count"`
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("inprocess", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	fs.Parse(args)

	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		return err
	}
	defer b.Close()
	// Subscribed before anybody can publish. Who publishes more than can be handled is slowed down,
	// and nothing is lost.
	orders, err := dunlin.SubscribeAs(ctx, b, "orders/+", dunlin.JSON[order],
		&dunlin.SubscribeOptions{
			QoS: 1, ManualAck: true, Overflow: dunlin.OverflowBlock,
		})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	go b.Serve(l) // ends with b
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "listening on", l.Addr())
	fmt.Fprintln(out, "now type in a second terminal, and in a third:")
	fmt.Fprintf(out, "  mosquitto_sub -p %s -t 'orders/#' -v\n", port)
	fmt.Fprintf(out, "  mosquitto_pub -p %s -q 1 -t orders/7 -m "+
		"'{\"item\":\"spade\",\"count\":2}'\n", port)

	for m := range orders.Messages() { // until ctx ends
		reply := "accepted"
		if m.Err != nil {
			reply = "refused: " + m.Err.Error()
		} else {
			fmt.Fprintf(out, "%s: %d of %s\n", m.Topic, m.Value.Count, m.Value.Item)
		}
		err := b.Publish(ctx, &dunlin.Message{Topic: m.Topic + "/state", Payload: []byte(reply),
			QoS: 1, Retain: true})
		if err != nil {
			return err
		}
		m.Ack()
	}
	return nil
}
