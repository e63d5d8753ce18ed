// Command persistence is a broker that forgets nothing: sessions, queued messages and retained
// messages are on disk before they are acknowledged, and are there again after the program was
// killed or the power cut.
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
	"github.com/dunlin-mqtt/dunlin/store/segment"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("persistence", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	data := fs.String("data", "data", "`directory` of the store, made if it is not there")
	backup := fs.String("backup", "",
		"`directory` to copy the store to once the broker listens (default none)")
	fs.Parse(args)

	s, err := segment.Open(*data, segment.Options{})
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
	fmt.Fprintln(out, "now subscribe and leave, publish, and subscribe again; kill the broker at "+
		"any time in between:")
	fmt.Fprintf(out, "  mosquitto_sub -p %s -V 5 -c -x 3600 -i home -q 1 -t 'hello/#' -E\n", port)
	fmt.Fprintf(out, "  mosquitto_pub -p %s -V 5 -q 1 -t hello/world -m 'you were away'\n", port)
	fmt.Fprintf(out, "  mosquitto_sub -p %s -V 5 -c -x 3600 -i home -q 1 -t 'hello/#' -v\n", port)
	if *backup != "" {
		if err := s.Backup(ctx, *backup); err != nil {
			return err
		}
		fmt.Fprintln(out, "copied to", *backup)
	}
	<-ctx.Done()
	return nil
}
