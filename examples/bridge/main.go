// Command bridge is a broker that is bridged to another one: what is published here under the
// topics of -out goes there, and what is published there under those of -in comes here. While the
// other broker is away, messages of QoS 1 and 2 wait, on both sides.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/bridge"
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
	fs := flag.NewFlagSet("bridge", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1884", "`address` to listen on")
	remote := fs.String("remote", "mqtt://127.0.0.1:1883", "`URL` of the other broker")
	id := fs.String("id", "dunlin-bridge", "Client Identifier there")
	outbound := fs.String("out", "out/#", "Topic `filters` of what goes there, separated by commas")
	inbound := fs.String("in", "in/#", "Topic `filters` of what comes here")
	retry := fs.Duration("retry", time.Second, "the shortest pause between attempts to connect")
	fs.Parse(args)

	there := bridge.Link{Name: "there", ClientID: *id, Addresses: []string{*remote},
		MinBackoff: *retry, MaxBackoff: 10 * *retry}
	for _, f := range strings.Split(*outbound, ",") {
		t := bridge.Topic{Filter: f, QoS: 2, Direction: bridge.DirectionOut}
		there.Topics = append(there.Topics, t)
	}
	for _, f := range strings.Split(*inbound, ",") {
		t := bridge.Topic{Filter: f, QoS: 2, Direction: bridge.DirectionIn}
		there.Topics = append(there.Topics, t)
	}
	node, err := bridge.New(bridge.Config{Name: "here", Links: []bridge.Link{there},
		Logger: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: noTime}))})
	if err != nil {
		return err
	}
	cfg := dunlin.Config{Authenticator: hooks.AllowAll}
	node.Install(&cfg)
	b, err := dunlin.New(cfg)
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
	fmt.Fprintln(out, "now subscribe there and publish here:")
	fmt.Fprintf(out, "  mosquitto_sub -L %s/out/# -v\n", *remote)
	fmt.Fprintf(out, "  mosquitto_pub -p %s -t out/hello -m hi\n", port)
	if err := node.Start(b); err != nil {
		return err
	}
	defer node.Close() // before b
	<-ctx.Done()
	return nil
}

// noTime leaves out the time of a line of the log.
func noTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
		return slog.Attr{}
	}
	return a
}
