// Command sensor is a broker with a sensor in it, as small boards have one: temperature and
// humidity every two seconds at QoS 0, on ESP32/TEM and ESP32/HUM, for anybody to watch.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
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

// measure returns what a room of an old house might have at a time of the day.
func measure(at time.Time) (celsius, percent float64) {
	day := 2 * math.Pi * float64(at.Unix()%86400) / 86400
	celsius = 20 - 3*math.Cos(day) + rand.NormFloat64()/10
	return celsius, 60 - 2*(celsius-20) + rand.NormFloat64()
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("sensor", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	every := fs.Duration("every", 2*time.Second, "how often to measure")
	fs.Parse(args)

	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		return err
	}
	defer b.Close()
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	go b.Serve(l) // ends with b
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintln(out, "listening on", l.Addr())
	fmt.Fprintf(out, "now watch with:\n  mosquitto_sub -p %s -t 'ESP32/#' -v\n", port)

	tick := time.NewTicker(*every)
	defer tick.Stop()
	for {
		select {
		case at := <-tick.C:
			celsius, percent := measure(at)
			for _, m := range []dunlin.Message{
				{Topic: "ESP32/TEM", Payload: fmt.Appendf(nil, "%.2f", celsius)},
				{Topic: "ESP32/HUM", Payload: fmt.Appendf(nil, "%.1f", percent)},
			} {
				if err := b.Publish(ctx, &m); err != nil && ctx.Err() == nil {
					return err
				}
			}
		case <-ctx.Done():
			return nil
		}
	}
}
