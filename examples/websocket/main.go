// Command websocket is a broker and a web page on one HTTP port: the page connects to /mqtt with
// MQTT.js, which is served from here as well, and shows the topics as a tree and numbers as a
// chart, while they change.
package main

import (
	"context"
	"embed"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
)

//go:embed web
var web embed.FS

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("websocket", flag.ExitOnError)
	httpAddr := flags.String("http", "127.0.0.1:8080",
		"`address` of the page and of MQTT over WebSocket")
	tcpAddr := flags.String("listen", "127.0.0.1:1883", "`address` for clients over TCP")
	demo := flags.Duration("demo", 500*time.Millisecond,
		"how often to publish something to look at, 0 for never")
	flags.Parse(args)

	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		return err
	}
	defer b.Close()
	tcp, err := net.Listen("tcp", *tcpAddr)
	if err != nil {
		return err
	}
	go b.Serve(tcp) // ends with b
	// One value is both: a handler for the mux, and a listener for the broker. Only pages of the
	// same host may connect.
	ws := websocket.New(websocket.Options{Admit: b.Admits})
	go b.Serve(ws) // ends with b
	pages, err := fs.Sub(web, "web")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/mqtt", ws)
	mux.Handle("/", headers(http.FileServerFS(pages)))
	hl, err := net.Listen("tcp", *httpAddr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux, ConnState: ws.ConnState, ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if *demo > 0 {
		go publishDemo(ctx, b, *demo) // ends with ctx
	}
	_, port, _ := net.SplitHostPort(tcp.Addr().String())
	fmt.Fprintf(out, "listening on %v\nthe page is at http://%v/\n", tcp.Addr(), hl.Addr())
	fmt.Fprintf(out, "now open the page, and type:\n  mosquitto_pub -p %s -t hello -m 42\n", port)
	if err := srv.Serve(hl); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// headers lets the page load nothing from elsewhere.
func headers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// MQTT.js keeps its timers in a worker that it makes of a blob.
		w.Header().Set("Content-Security-Policy",
			"default-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		h.ServeHTTP(w, r)
	})
}

// publishDemo publishes what a house might.
func publishDemo(ctx context.Context, b *dunlin.Broker, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	start := time.Now()
	for n := 0; ; n++ {
		x := time.Since(start).Seconds()
		for _, m := range []struct {
			topic string
			value float64
		}{
			{"house/kitchen/temperature", 21 + 1.8*math.Sin(x/7) + 0.3*math.Sin(x*2.3)},
			{"house/kitchen/humidity", 48 + 6*math.Sin(x/11+1)},
			{"house/roof/wind", 5 + 3*math.Sin(x/5) + 1.5*math.Sin(x/1.7)},
			{"house/roof/light", 600 + 250*math.Sin(x/13)},
			{"garden/pump/pressure", 2.2 + 0.4*math.Sin(x/3)},
		} {
			b.Publish(ctx, &dunlin.Message{Topic: m.topic,
				Payload: fmt.Appendf(nil, "%.2f", m.value), Retain: true})
		}
		if n%10 == 0 {
			state := [2]string{"open", "closed"}[n/10%2]
			b.Publish(ctx, &dunlin.Message{Topic: "garden/gate", Payload: []byte(state),
				Retain: true})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
