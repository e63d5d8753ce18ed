// Command tcp is a broker on a TCP port that ends as it should when it is interrupted.
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
	"time"

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
	fs := flag.NewFlagSet("tcp", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	fs.Parse(args)

	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		return err
	}
	defer b.Close()
	// Every message is printed.
	sub, err := b.Subscribe(ctx, "#", &dunlin.SubscribeOptions{Overflow: dunlin.OverflowDropNewest})
	if err != nil {
		return err
	}
	go func() { // ends with b
		for m := range sub.Messages() {
			fmt.Fprintf(out, "%s: %s\n", m.Topic, m.Payload)
		}
	}()
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "listening on", l.Addr())
	fmt.Fprintln(out, "now type in a second terminal, and in a third:")
	fmt.Fprintf(out, "  mosquitto_sub -p %s -V 5 -t 'hello/#' -v\n", port)
	fmt.Fprintf(out, "  mosquitto_pub -p %s -V 5 -t hello/world -m hi\n", port)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }() // ends with b
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Clients of MQTT 5.0 are told, and what is on its way to them is sent.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return b.Shutdown(ctx)
}
