// Command push is a push service: HTTP comes in, MQTT goes out. A backend makes users, groups and
// devices, and posts messages to them. A user's phone holds one connection and needs one
// subscription at most, however many groups the user is in. It gets a message at once, or when it
// comes back. A page in the browser does what a phone does.
package main

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/bridge"
	"github.com/dunlin-mqtt/dunlin/examples/internal/inband"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/httpgw"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
	"github.com/dunlin-mqtt/dunlin/store/segment"
)

//go:embed web
var web embed.FS

//go:embed openapi.json
var openAPI []byte

// What the broker takes from a client.
const (
	maxConnect     = 4 << 10
	maxPacket      = maxPayload + 4<<10
	maxProperties  = 20
	receiveMaximum = 64
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

type options struct {
	listen, inband, http, key, dir, database, name, peer string
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("push", flag.ExitOnError)
	flags.StringVar(&o.listen, "listen", "127.0.0.1:1883", "`address` for phones and devices")
	flags.StringVar(&o.inband, "inband", "", "`address` for clients that publish their token to "+
		authTopic+"; none if it is empty")
	flags.StringVar(&o.http, "http", "127.0.0.1:8883", "`address` for the backend and the page")
	flags.StringVar(&o.key, "key", os.Getenv("PUSH_KEY"), "the bearer token of the backend "+
		"(default $PUSH_KEY)")
	flags.StringVar(&o.dir, "dir", "push-data", "`directory` of what the broker keeps")
	flags.StringVar(&o.database, "db", "", "`file` of the database; instances on one machine "+
		"share it (default push.db in -dir)")
	flags.StringVar(&o.name, "name", "one", "`name` of this instance")
	flags.StringVar(&o.peer, "peer", "", "`address` for phones of another instance, to be joined "+
		"with it")
	flags.Parse(args)
	if len(o.key) < 6 {
		return fmt.Errorf("set -key or PUSH_KEY to at least 6 characters: whoever has it may push " +
			"to everybody")
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	db, err := openDatabase(cmp.Or(o.database, filepath.Join(o.dir, "push.db")))
	if err != nil {
		return err
	}
	defer db.sql.Close()
	s := newService(db, o.key)
	node, err := s.open(&o)
	if err != nil {
		return err
	}
	defer s.broker.Close()
	defer node.Close() // before the broker
	return s.serve(ctx, &o, node, out)
}

// open makes the broker of the service, and the node of its bridge.
func (s *service) open(o *options) (*bridge.Node, error) {
	kept, err := segment.Open(filepath.Join(o.dir, "broker"), segment.Options{})
	if err != nil {
		return nil, err
	}
	warnings := &slog.HandlerOptions{Level: slog.LevelWarn}
	cfg := dunlin.Config{
		Authenticator: s, Authorizer: s, Interceptor: s, Observer: s.observer(), Store: kept,
		ReceiptProperty:   receiptProperty,
		Logger:            slog.New(slog.NewTextHandler(os.Stderr, warnings)),
		MaxSessionExpiry:  maxTTL, // a phone may be off for a holiday
		MaxMessageExpiry:  maxTTL,
		MaxQueuedMessages: 1000, // and then get what came last
		MaxConnectSize:    maxConnect, MaxPacketSize: maxPacket, MaxUserProperties: maxProperties,
		ReceiveMaximum: receiveMaximum, MaxTopicLength: 512, MaxTopicLevels: 8,
		DisableRetain: true, DisableShared: true, OverRate: dunlin.OverRateRefusePublish,
		CheckPayloadFormat: true,
	}
	node, err := bridge.New(s.bridged(o))
	if err == nil {
		node.Install(&cfg)
		s.broker, err = dunlin.New(cfg)
	}
	if err != nil {
		return nil, errors.Join(err, kept.Close())
	}
	return node, nil
}

// bridged is how this instance is joined with another one. Its messages go both ways over one link.
func (s *service) bridged(o *options) bridge.Config {
	cfg := bridge.Config{Name: o.name, Peer: func(c *hooks.Client) bool {
		who, _ := c.User()
		return who == peer
	}}
	if o.peer == "" {
		return cfg
	}
	link := bridge.Link{Name: "peer", Addresses: []string{"mqtt://" + o.peer}, Username: peer,
		Password: o.key, Window: 1000, MaxPacketSize: maxPacket, DisableNotifications: true,
		MaxBackoff: 2 * time.Second}
	for _, filter := range []string{"users/#", "groups/#", "devices/#", changedTopic} {
		link.Topics = append(link.Topics, bridge.Topic{Filter: filter, QoS: 2,
			Direction: bridge.DirectionBoth})
	}
	cfg.Links = append(cfg.Links, link)
	return cfg
}

// serve serves until ctx ends.
func (s *service) serve(
	whole context.Context, o *options, node *bridge.Node, out io.Writer,
) error {
	var doors [3]net.Listener // for devices, HTTP, and clients that publish their token
	for i, addr := range []string{o.listen, o.http, o.inband} {
		if addr == "" {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		defer l.Close()
		doors[i] = l
	}
	g, ctx := errgroup.WithContext(whole)
	if err := s.restore(ctx); err != nil {
		return err
	}
	if err := node.Start(s.broker); err != nil {
		return err
	}
	ws := websocket.New(websocket.Options{Admit: s.broker.Admits})
	gateway, err := httpgw.New(s.broker, httpgw.Options{MaxBody: maxPayload})
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: s.handler(ws, gateway), ConnState: ws.ConnState,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	closers := []io.Closer{srv, gateway, ws, doors[0]}
	g.Go(func() error { return s.deliver(ctx) })
	g.Go(func() error { return s.follow(ctx) })
	g.Go(func() error { return s.sweep(ctx) })
	g.Go(func() error { return s.broker.Serve(doors[0]) })
	g.Go(func() error { return s.broker.Serve(ws) })
	g.Go(func() error { return srv.Serve(doors[1]) })
	explain(out, doors[0].Addr(), doors[1].Addr())
	if doors[2] != nil {
		l := inband.Listen(doors[2], s.inband())
		closers = append(closers, l)
		g.Go(func() error { return s.broker.ServeListener(l, &inbandClients) })
		fmt.Fprintf(out, "in-band at %v\n", l.Addr())
	}
	g.Go(func() error {
		<-ctx.Done()
		for _, c := range closers {
			c.Close()
		}
		node.Close() // before the broker
		return s.broker.Close()
	})
	if err := g.Wait(); whole.Err() == nil {
		return err
	}
	return nil
}

// policy lets the page load nothing from elsewhere, and make no HTML of a text.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
	"connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; " +
	"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types worker"

// handler serves everything over HTTP.
func (s *service) handler(ws, gateway http.Handler) http.Handler {
	pages, _ := fs.Sub(web, "web") // it is there
	mux := http.NewServeMux()
	mux.Handle("/v1/", s.api())
	mux.Handle("/mqtt", ws)
	mux.Handle("/gateway/", http.StripPrefix("/gateway", gateway))
	files := http.FileServerFS(pages)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		files.ServeHTTP(w, r)
	})
	return mux
}

// explain says what to type.
func explain(out io.Writer, devices, backend net.Addr) {
	_, port, _ := net.SplitHostPort(devices.String())
	fmt.Fprintf(out, `devices at %[1]v
backend at http://%[2]v
now make a user, a member of a group, and a session for a phone:
  curl -X PUT  -H 'Authorization: Bearer KEY' http://%[2]v/v1/users/ann
  curl -X PUT  -H 'Authorization: Bearer KEY' http://%[2]v/v1/groups/birds/members/ann
  curl -X POST -H 'Authorization: Bearer KEY' http://%[2]v/v1/users/ann/sessions
connect the phone with the token that you get, and push to it:
  mosquitto_sub -p %[3]s -V 5 -i phone -c -x 3600 -q 1 -u ann -P TOKEN -t users/ann -v
  curl -X POST -H 'Authorization: Bearer KEY' -d '{"to":"groups/birds","body":"hello"}' http://%[2]v/v1/push
or sign in with the token in a browser: http://%[2]v/
`, devices, backend, port)
}
