// Command metrics shows what goes on in a broker, as Prometheus reads it and as JSON: counters that
// an Observer keeps, and what Stats says. It needs no library for that.
package main

import (
	"context"
	"expvar"
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
	"github.com/dunlin-mqtt/dunlin/hooks"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// metrics are what the Observer counts, by name and label. An expvar.Map may be used by several
// goroutines at a time.
type metrics struct {
	connected, refused, disconnected, published, unheard, denied, dropped expvar.Map
}

// observer counts. It is called for every message, with a lock of the broker held, so it does no
// more than that.
func (m *metrics) observer() *hooks.Observer {
	return &hooks.Observer{
		Connected:    func(e hooks.Connected) { m.connected.Add(e.Client.Version.String(), 1) },
		Refused:      func(e hooks.Refused) { m.refused.Add(e.Code.String(), 1) },
		Disconnected: func(e hooks.Disconnected) { m.disconnected.Add(e.Code.String(), 1) },
		Denied:       func(e hooks.Denied) { m.denied.Add(e.Action.String(), 1) },
		Published: func(e hooks.Published) {
			qos := fmt.Sprint(e.Message.QoS)
			m.published.Add(qos, 1)
			if e.Matched == 0 {
				m.unheard.Add(qos, 1)
			}
		},
		Dropped: func(e hooks.Dropped) { m.dropped.Add(e.Reason.String(), 1) },
	}
}

// write writes everything in the text format of Prometheus.
func (m *metrics) write(w io.Writer, st dunlin.Stats) {
	for _, g := range []struct {
		name, help string
		value      any
	}{
		{"mqtt_connections", "Network Connections now.", st.Connections},
		{"mqtt_sessions", "Sessions now, connected or not.", st.Sessions},
		{"mqtt_subscriptions", "Subscriptions now.", st.Subscriptions},
		{"mqtt_retained_messages", "Retained messages now.", st.Retained},
		{"mqtt_queued_messages", "Messages that wait in queues now.", st.Queued},
		{"mqtt_inflight_messages", "Messages that are sent and not acknowledged now.", st.Inflight},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n%s %v\n", g.name, g.help, g.name, g.name,
			g.value)
	}
	for _, c := range []struct {
		name, help, label string
		values            *expvar.Map
	}{
		{"mqtt_connected_total", "CONNECT packets accepted.", "version", &m.connected},
		{"mqtt_refused_total", "CONNECT packets refused.", "code", &m.refused},
		{"mqtt_disconnected_total", "Connections ended.", "code", &m.disconnected},
		{"mqtt_published_total", "Messages published, by clients and by this program.", "qos",
			&m.published},
		{"mqtt_unheard_total", "Those that nobody subscribes to.", "qos", &m.unheard},
		{"mqtt_denied_total", "What the Authorizer refused.", "action", &m.denied},
		{"mqtt_dropped_total", "Messages that did not reach a Session.", "why", &m.dropped},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s counter\n", c.name, c.help, c.name)
		c.values.Do(func(kv expvar.KeyValue) {
			fmt.Fprintf(w, "%s{%s=%q} %v\n", c.name, c.label, kv.Key, kv.Value)
		})
	}
	fmt.Fprintf(w, "# HELP mqtt_bytes_total Bytes on the wire.\n# TYPE mqtt_bytes_total counter\n")
	fmt.Fprintf(w, "mqtt_bytes_total{direction=\"in\"} %d\nmqtt_bytes_total{direction=\"out\"} "+
		"%d\n", st.BytesReceived, st.BytesSent)
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("metrics", flag.ExitOnError)
	addr := fs.String("listen", "127.0.0.1:1883", "`address` to listen on")
	httpAddr := fs.String("http", "127.0.0.1:9883", "`address` of the metrics")
	fs.Parse(args)

	var m metrics
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Observer: m.observer()})
	if err != nil {
		return err
	}
	defer b.Close()
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	go b.Serve(l) // ends with b
	hl, err := net.Listen("tcp", *httpAddr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(out, "the metrics are read")
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		m.write(w, b.Stats())
	})
	mux.HandleFunc("GET /vars", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"connected": %s, "published": %s, "dropped": %s}`+"\n", &m.connected,
			&m.published, &m.dropped)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Fprintf(out, "listening on %v\nmetrics at http://%v/metrics and /vars\n", l.Addr(),
		hl.Addr())
	fmt.Fprintf(out, "now type:\n  mosquitto_pub -p %s -t hello -m hi\n  curl -s http://%v/vars\n",
		port, hl.Addr())
	if err := srv.Serve(hl); err != http.ErrServerClosed {
		return err
	}
	return nil
}
