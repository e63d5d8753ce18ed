// Command server is a complete stand-alone broker made only of Dunlin's public API. By default it listens on 127.0.0.1:1883 and
// accepts anyone on this machine. Its flags set the fields of dunlin.Config.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" // served only with -pprof
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	*l = append(*l, s)
	return nil
}

// options are the flags.
type options struct {
	access
	transport
	persistence
	limits
	denySubscribe    list
	maxPayload       int
	maxQoS, logLevel string
	level            slog.Level
	versions, config string
	pprof            string
	cfg              dunlin.Config
	reloads          reloads
	listening        func(net.Addr) // if not nil, is told each address that is listened on
}

func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("server", flag.ContinueOnError)
	c := &o.cfg
	o.transport.flags(fs)
	o.access.flags(fs)
	o.persistence.flags(fs)
	o.limits.flags(fs, c)
	fs.IntVar(&c.ReceiveMaximum, "receive-maximum", 0, "unacknowledged QoS 1 and 2 publishes per client (default 1024)")
	fs.StringVar(&o.maxQoS, "max-qos", "2", "highest QoS that clients may use")
	fs.BoolVar(&c.DisableRetain, "no-retain", false, "do not accept retained messages")
	fs.BoolVar(&c.DisableWildcards, "no-wildcards", false, "do not accept wildcards in subscriptions")
	fs.BoolVar(&c.DisableShared, "no-shared", false, "do not accept shared subscriptions")
	fs.BoolVar(&c.DisableSubscriptionIDs, "no-subscription-ids", false, "do not accept Subscription Identifiers")
	fs.IntVar(&c.MaxPacketSize, "max-packet-size", 0, "largest packet accepted, in bytes (default 1 MiB)")
	fs.IntVar(&c.MaxConnectSize, "max-connect-size", 0, "largest CONNECT accepted, with its Will and password, in bytes (default 8 KiB)")
	fs.IntVar(&c.MaxTopicLevels, "max-topic-levels", 0, "most levels of a topic (default 128)")
	fs.IntVar(&o.maxPayload, "max-payload", 0, "largest payload accepted, in bytes; a larger one is acknowledged with 0x97 and dropped (default none)")
	fs.DurationVar(&c.MaxKeepAlive, "server-keep-alive", 0, "longest Keep Alive, for instance 60s (default as clients ask)")
	fs.Float64Var(&c.SlowLinkRate, "slow-link-rate", 0, "bytes per second of an incomplete packet that count as life for the Keep Alive (default only whole packets do)")
	fs.DurationVar(&c.MaxSessionExpiry, "max-session-expiry", 0, "longest that a session is kept for an absent client (default 168h)")
	fs.IntVar(&c.MaxConnections, "max-connections", 0, "most connections (default 100000)")
	fs.IntVar(&c.MaxSessions, "max-sessions", 0, "most sessions (default 1000000)")
	fs.IntVar(&c.TopicAliasMaximum, "topic-alias-maximum", 0, "highest Topic Alias (default 32, negative: 65535)")
	fs.StringVar(&o.versions, "versions", "3,4,5", "protocol versions accepted: 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0")
	fs.Var(&o.denySubscribe, "deny-subscribe", "Topic `filter` that may not be subscribed to, repeatable")
	fs.IntVar(&c.MaxInflight, "max-inflight", 0, "QoS 1 and 2 deliveries on their way to one client (default 256)")
	fs.IntVar(&c.MaxQueuedMessages, "max-queued-messages", 0, "messages queued per session (default 16384)")
	fs.IntVar(&c.MaxQueuedBytes, "max-queued-bytes", 0, "bytes queued per session (default 16 MiB)")
	fs.IntVar(&c.MaxOutboundBytes, "max-outbound-bytes", 0, "bytes that wait for one client's socket (default 2 MiB)")
	fs.DurationVar(&c.SysInterval, "sys-interval", 10*time.Second, "how often $SYS is published, 0 for never")
	fs.BoolVar(&c.QueueQoS0, "queue-qos0", false, "queue QoS 0 messages, too, for absent clients")
	fs.BoolVar(&c.CheckPayloadFormat, "check-payload-format", false, "refuse payloads that are said to be UTF-8 and are not")
	fs.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&o.config, "config", "", "`file` with one flag per line, as name value or name=value; flags given directly win")
	fs.StringVar(&o.pprof, "pprof", "", "`address` for net/http/pprof (default none)")
	return fs
}

// parse reads the flags, those of the config file first.
func parse(args []string) (*options, error) {
	var o options
	fs := o.flags()
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.config != "" {
		fromFile, err := readConfig(o.config)
		if err != nil {
			return nil, err
		}
		o = options{}
		fs = o.flags()
		if err := fs.Parse(append(fromFile, args...)); err != nil {
			return nil, err
		}
	}
	return &o, o.finish(fs)
}

// readConfig turns a file into arguments.
func readConfig(name string) (args []string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			key, value, ok = strings.Cut(line, " ")
		}
		if key = strings.TrimSpace(key); key == "config" {
			return nil, fmt.Errorf("%s:%d: a config file cannot name another one", name, n)
		}
		if ok {
			args = append(args, "-"+key+"="+strings.TrimSpace(value))
		} else {
			args = append(args, "-"+key)
		}
	}
	return args, sc.Err()
}

// finish checks the flags and sets what takes more than a variable.
func (o *options) finish(fs *flag.FlagSet) error {
	o.access.settle(fs, o.identity)
	if err := o.transport.check(o.access.localOnly); err != nil {
		return err
	}
	if err := o.persistence.finish(); err != nil {
		return err
	}
	if err := o.limits.set(&o.cfg); err != nil {
		return err
	}
	q, err := strconv.ParseUint(o.maxQoS, 10, 8)
	if err != nil || q > 2 {
		return fmt.Errorf("-max-qos %q is not 0, 1 or 2", o.maxQoS)
	}
	qos := packets.QoS(q)
	o.cfg.MaxQoS = &qos
	for _, s := range strings.Split(o.versions, ",") {
		v, err := strconv.ParseUint(strings.TrimSpace(s), 10, 8)
		if err != nil || v < 3 || v > 5 {
			return fmt.Errorf("-versions %q: %q is not 3, 4 or 5", o.versions, s)
		}
		o.cfg.Versions = append(o.cfg.Versions, packets.Version(v))
	}
	fs.Visit(func(f *flag.Flag) {
		if f.Name == "topic-alias-maximum" && o.cfg.TopicAliasMaximum == 0 {
			o.cfg.DisableTopicAlias = true
		}
	})
	if err := o.level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("-log-level %q is not debug, info, warn or error", o.logLevel)
	}
	o.logTo(os.Stderr)
	if len(o.denySubscribe) > 0 {
		o.cfg.Authorizer = hooks.AuthorizerFunc(o.authorize)
	}
	o.reloads = reloads{}
	if err := o.access.set(&o.cfg, o.identity, o.reloads); err != nil {
		return err
	}
	if o.maxPayload > 0 {
		o.cfg.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client, m *packets.Message) (*packets.Message, error) {
			if len(m.Payload) > o.maxPayload {
				return nil, packets.Errorf(packets.QuotaExceeded, "a payload of %d bytes, at most %d are accepted", len(m.Payload), o.maxPayload)
			}
			return m, nil
		})
	}
	return nil
}

func (o *options) logTo(w io.Writer) {
	o.cfg.Logger = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: o.level}))
}

// authorize refuses the filters of -deny-subscribe.
func (o *options) authorize(_ context.Context, r *hooks.AccessRequest) error {
	if r.Action == hooks.Subscribe {
		for _, f := range o.denySubscribe {
			if f == r.Topic || packets.MatchTopic(f, r.Topic) {
				return packets.Errorf(packets.UnspecifiedError, "subscriptions to %q are not allowed", r.Topic) // 0x87 would say that another client may
			}
		}
	}
	return nil
}

func listen(addr string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return net.Listen("unix", path)
	}
	noProbes := net.ListenConfig{KeepAlive: -1} // MQTT has its own Keep Alive; the broker turns TCP's on for clients without
	return noProbes.Listen(context.Background(), "tcp", addr)
}

func run(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return o.serve(ctx)
}

// serve is the broker until ctx ends.
func (o *options) serve(ctx context.Context) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	trail, end, err := o.openTrail(&o.cfg)
	if err != nil {
		return err
	}
	defer end()
	st, err := o.persistence.open(o.cfg.Logger)
	if err != nil {
		return err
	}
	o.cfg.Store = st
	b, err := dunlin.New(o.cfg)
	if err != nil {
		if st != nil {
			st.Close()
		}
		return err
	}
	defer b.Close() // it closes the store, too
	if err := o.limits.ban(b); err != nil {
		return err
	}
	listeners, err := o.transport.open(o.reloads, o.cfg.Logger, b.Admits)
	if err != nil {
		return err
	}
	o.cfg.Logger.Info("started", "version", dunlin.Version, "admits", o.access.admits(o.identity))
	errs := make(chan error, len(listeners))
	for _, l := range listeners {
		o.cfg.Logger.Info("listening", "addr", l.Addr().String())
		go func() { errs <- b.Serve(l) }() // ends with b
		if o.listening != nil {
			o.listening(l.Addr())
		}
	}
	watching.Go(func() { o.reloads.run(ctx, hangup, o.cfg.Logger, trail) }) // ends with ctx; waited for above
	if o.pprof != "" {
		profiles, err := net.Listen("tcp", o.pprof)
		if err != nil {
			return fmt.Errorf("-pprof: %w", err)
		}
		srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute} // the handler is http.DefaultServeMux
		defer srv.Close()
		go srv.Serve(profiles) // ends with srv
	}
	select {
	case err := <-errs:
		return err
	case <-ctx.Done():
	}
	o.cfg.Logger.Info("shutting down")
	patient, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := b.Shutdown(patient); err != nil {
		o.cfg.Logger.Warn("clients were cut off", "err", err)
	}
	return nil
}
