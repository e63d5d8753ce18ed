// Command ownstore is a broker with a Store of its own making: sessions, queues and retained
// messages are rows of a SQLite database, which the sqlite3 shell can look into when the broker
// does not run.
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
	fs := flag.NewFlagSet("ownstore", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	file := fs.String("db", "broker.db", "`file` of the database, made if it is not there")
	fs.Parse(args)

	s, err := OpenStore(*file)
	if err != nil {
		return err
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Store: s})
	if err != nil {
		s.Close()
		return err
	}
	defer b.Close() // it closes the store, too
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
	go b.Serve(l) // ends with b
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "listening on", l.Addr())
	fmt.Fprintln(out, "now type this, end the broker with Control-C, and look into the database:")
	fmt.Fprintf(out, "  mosquitto_pub -p %s -V 5 -q 1 -r -t hello -m hi\n", port)
	fmt.Fprintf(out, "  sqlite3 %s 'SELECT topic, payload FROM retained JOIN messages USING "+
		"(message)'\n", *file)
	<-ctx.Done()
	return nil
}
