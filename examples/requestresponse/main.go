// Command requestresponse answers requests as MQTT 5.0 has them: a request names the topic of its
// answer and data to know it by. The broker answers clients with the time in a zone, and asks
// clients in turn, under ask/NAME.
package main

import (
	"context"
	"errors"
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

// timeIn answers with the time in the zone that the payload names.
func timeIn(_ context.Context, m *dunlin.Incoming) (*dunlin.Message, error) {
	zone, err := time.LoadLocation(string(m.Payload))
	if err != nil {
		return nil, fmt.Errorf("%q is no time zone", m.Payload)
	}
	return &dunlin.Message{Payload: []byte(time.Now().In(zone).Format(time.RFC3339)), QoS: 1}, nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("requestresponse", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	every := fs.Duration("every", 5*time.Second,
		"how often to ask the clients that subscribe to ask/thermometer")
	fs.Parse(args)

	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := b.Respond(ctx, "time", timeIn); err != nil {
		return err
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	go b.Serve(l) // ends with b
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "listening on", l.Addr())
	fmt.Fprintln(out, "now ask for the time, and be asked:")
	fmt.Fprintf(out, "  mosquitto_rr -p %s -V 5 -t time -e my/reply -m Europe/Berlin\n", port)
	fmt.Fprintf(out, "  mosquitto_sub -p %s -V 5 -t ask/thermometer -F '%%t wants its answer at "+
		"%%R'\n", port)

	tick := time.NewTicker(*every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		reply, err := ask(ctx, b)
		switch {
		case err == nil:
			fmt.Fprintf(out, "the thermometer says %s\n", reply.Payload)
		case !errors.Is(err, dunlin.ErrNoResponder):
			fmt.Fprintln(out, "no answer:", err)
		}
	}
}

func ask(ctx context.Context, b *dunlin.Broker) (*dunlin.Incoming, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return b.Request(ctx, "ask/thermometer", nil)
}
