// Command push is a push service: HTTP comes in, MQTT goes out. Every user has a private topic,
// users/NAME, and is in groups, groups/NAME. A backend posts a notification for a user or a group;
// the user's devices hold one MQTT connection each and get it at once, or, as long as their Session
// lives, when they come back. Devices publish nothing.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("push", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` for the devices")
	httpAddr := fs.String("http", "127.0.0.1:8883", "`address` for the backend")
	key := fs.String("key", os.Getenv("PUSH_KEY"),
		"what the backend shows as its bearer token (default $PUSH_KEY)")
	wait := fs.Duration("wait", 2*time.Second, "how long a post waits for devices to acknowledge")
	fs.Parse(args)
	if *key == "" {
		return fmt.Errorf("set -key or PUSH_KEY: whoever has it may push to everybody")
	}

	s := newService(*key, *wait)
	b, err := dunlin.New(dunlin.Config{
		Authenticator: s, Authorizer: s,
		MaxSessionExpiry:  30 * 24 * time.Hour, // a telephone may be off for a holiday
		MaxQueuedMessages: 100,                 // and then get what came last
	})
	if err != nil {
		return err
	}
	defer b.Close()
	s.broker = b
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	go b.Serve(l) // ends with b
	hl, err := net.Listen("tcp", *httpAddr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintf(out, "devices at %v\nbackend at http://%v\n", l.Addr(), hl.Addr())
	fmt.Fprintln(out, "now make a user, connect a device with the token that you get, and push "+
		"to it:")
	fmt.Fprintf(out, "  curl -X PUT  -H 'Authorization: Bearer KEY' -d "+
		"'{\"groups\":[\"birds\"]}' http://%v/users/ann\n", hl.Addr())
	fmt.Fprintf(out, "  mosquitto_sub -p %s -V 5 -i phone -c -x 3600 -q 1 -u ann -P TOKEN -t "+
		"users/ann -t groups/birds -v\n", port)
	fmt.Fprintf(out, "  curl -X POST -H 'Authorization: Bearer KEY' -d hello "+
		"http://%v/groups/birds/messages\n", hl.Addr())
	if err := srv.Serve(hl); err != http.ErrServerClosed {
		return err
	}
	return nil
}
