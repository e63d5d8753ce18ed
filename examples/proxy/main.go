// Command proxy stands in front of any MQTT broker. The first message of a connection, its CONNECT,
// is shown to an API over HTTP, which says whether the client may come in, and as whom, and which
// topics it may use; then packets go both ways through filters that may change, drop or answer
// them. It is built on package packets, and knows nothing of the broker behind it.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
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
	cert := fs.String("cert", "", "`file` with the certificate, for TLS")
	key := fs.String("key", "", "`file` with the key of the certificate")
	ws := fs.String("ws", "", "`address` for MQTT over WebSocket, at the path /mqtt")
	topic := fs.String("inband", "", "`topic` to which clients without a password publish theirs, "+
		"such as service/auth")
	fs.Parse(args)

	p := &proxy{upstream: *upstream, maxPacket: *maxPacket, admit: admitAll}
	if *topic != "" {
		p.inband = askedFor(*topic)
	}
	if *api != "" {
		p.admit = askAPI(*api)
	}
	// What every packet passes, in order. Those of a client's rules come first.
	p.fromServer = append(p.fromServer, withoutAliases)
	secret, err := certificate(*cert, *key)
	if err != nil {
		return err
	}
	l, err := listen(*addr, secret)
	if err != nil {
		return err
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintf(out, "listening on %v for the broker at %s\n", l.Addr(), *upstream)
	a := &acceptor{serve: p.serve, out: out, most: *most, mostPer: *mostPer}
	if *ws != "" {
		wl, err := listen(*ws, secret)
		if err != nil {
			return err
		}
		defer wl.Close()
		fmt.Fprintf(out, "for WebSocket on %v\n", wl.Addr())
		end := a.serveWebSocket(ctx, wl)
		defer end()
	}
	fmt.Fprintf(out, "now type, with a broker running there:\n  mosquitto_sub -p %s -t hello "+
		"-v\n  mosquitto_pub -p %s -t hello -m hi\n", port, port)
	return a.run(ctx, l)
}

// certificate returns what TLS needs, nil for no TLS.
func certificate(cert, key string) (*tls.Config, error) {
	if cert == "" && key == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	return &tls.Config{Certificates: []tls.Certificate{pair}}, err
}

func listen(addr string, secret *tls.Config) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err == nil && secret != nil {
		l = tls.NewListener(l, secret)
	}
	return l, err
}

// serveWebSocket serves what comes over WebSocket until ctx ends, or the function that it returns
// is called.
func (a *acceptor) serveWebSocket(ctx context.Context, l net.Listener) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	ws := websocket.New(websocket.Options{})
	mux := http.NewServeMux()
	mux.Handle("/mqtt", ws)
	srv := &http.Server{Handler: mux, ConnState: ws.ConnState, ReadHeaderTimeout: connectTimeout,
		MaxHeaderBytes: 16 << 10}
	var both sync.WaitGroup
	both.Go(func() { srv.Serve(l) })
	both.Go(func() { a.run(ctx, ws) })
	return func() {
		cancel()
		srv.Close()
		both.Wait()
	}
}
