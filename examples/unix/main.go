// Command unix is a broker on a unix socket that only its owner may connect to, and that knows its
// clients by the file system's rights.
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
	"path/filepath"
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
	fs := flag.NewFlagSet("unix", flag.ExitOnError)
	path := fs.String("listen", filepath.Join(os.TempDir(), fmt.Sprintf("dunlin-%d", os.Getuid()),
		"mqtt.sock"), "`path` of the socket")
	fs.Parse(args)

	// The rights of the directory decide who may connect.
	if err := os.MkdirAll(filepath.Dir(*path), 0o700); err != nil {
		return err
	}
	// A socket that a killed process has left would be in the way; one that is served is not
	// touched.
	if c, err := net.Dial("unix", *path); err == nil {
		c.Close()
		return fmt.Errorf("%s is being served", *path)
	}
	os.Remove(*path)
	l, err := net.Listen("unix", *path)
	if err != nil {
		return err
	}
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
	stop := context.AfterFunc(ctx, func() { b.Shutdown(context.Background()) })
	defer stop()
	fmt.Fprintln(out, "listening on", *path)
	fmt.Fprintln(out, "now type in a second terminal, and in a third:")
	fmt.Fprintf(out, "  mosquitto_sub --unix %s -t '#' -v\n", *path)
	fmt.Fprintf(out, "  mosquitto_pub --unix %s -t hello -m hi\n", *path)
	if err := b.Serve(l); err != dunlin.ErrBrokerClosed {
		return err
	}
	return nil
}
