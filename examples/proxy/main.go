// Command proxy stands in front of any MQTT broker. The first message of a connection, its CONNECT,
// is shown to an API over HTTP, which says whether the client may come in, and as whom, and which
// topics it may use; then packets go both ways through filters that may change, drop or answer
// them. It is built on package packets, and knows nothing of the broker behind it.
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
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("proxy", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1884", "`address` to listen on")
	upstream := fs.String("upstream", "127.0.0.1:1883", "`address` of the broker")
	api := fs.String("api", "",
		"`URL` that decides about clients; empty: everybody may do everything")
	maxPacket := fs.Int("max-packet-size", 1<<20,
		"largest packet accepted from a client, in `bytes`")
	most := fs.Int("max-connections", 10_000, "most connections")
	mostPer := fs.Int("max-connections-ip", 1000, "most connections from one address")
	fs.Parse(args)

	p := &proxy{upstream: *upstream, maxPacket: *maxPacket, admit: admitAll}
	if *api != "" {
		p.admit = askAPI(*api)
	}
	// What every packet passes, in order. Those of a client's rules come first.
	p.fromServer = append(p.fromServer, withoutAliases)
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintf(out, "listening on %v for the broker at %s\n", l.Addr(), *upstream)
	fmt.Fprintf(out, "now type, with a broker running there:\n  mosquitto_sub -p %s -t hello "+
		"-v\n  mosquitto_pub -p %s -t hello -m hi\n", port, port)
	a := &acceptor{serve: p.serve, out: out, most: *most, mostPer: *mostPer}
	return a.run(ctx, l)
}
