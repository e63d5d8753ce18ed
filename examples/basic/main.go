// Command basic is the smallest complete broker.
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

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("basic", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	fs.Parse(args)

	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		return err
	}
	defer b.Close()
	// The program sees every message, too.
	sub, err := b.Subscribe(ctx, "#", &dunlin.SubscribeOptions{Overflow: dunlin.OverflowDropNewest})
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
	fmt.Fprintf(out, "  mosquitto_sub -p %s -V 5 -q 1 -t 'hello/#' -v\n", port)
	fmt.Fprintf(out, "  mosquitto_pub -p %s -V 5 -q 1 -t hello/world -m hi\n", port)
	for m := range sub.Messages() { // until ctx ends
		fmt.Fprintf(out, "%s: %s\n", m.Topic, m.Payload)
	}
	return nil
}
