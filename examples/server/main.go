// Command server is a complete stand-alone broker made only of Dunlin's public API. By default it
// listens on 127.0.0.1:1883 and accepts anyone on this machine. Its flags set the fields of
// dunlin.Config.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/examples/server/mosquittoconf"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func main() {
	if err := command(os.Args[1:], os.Stdin, os.Stdout); err != nil && !errors.Is(err,
		flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// command runs the command that args begin with. Without one it is the broker.
func command(args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return run(args, out)
	}
	switch args[0] {
	case "passwd":
		return passwd(args[1:], in, out)
	case "check":
		return check(args[1:], out)
	case "health":
		return health(args[1:])
	case "top":
		return top(args[1:], out)
	case "version", "-version", "--version":
		fmt.Fprintln(out, "dunlin server", dunlin.Version)
		return nil
	case "help":
		args = []string{"-h"}
	}
	return run(args, out)
}

const usage = `usage: server [flags]     run the broker; without flags for this machine only, at port 1883
       server check      print how flags and a -config are understood, and all errors
       server passwd     create a file for -password-file, or change it
       server health     connect to a broker, to see whether it answers
       server top        show in a terminal what goes on in a server with -http
       server version    print the version

Each command says more with -h. The flags:
`

// list is a flag that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	*l = append(*l, s)
	return nil
}

// size is a flag of bytes, which may have a unit.
type size int

func (s *size) String() string { return strconv.Itoa(int(*s)) }

func (s *size) Set(text string) error {
	number, unit := text, 1
	for suffix, n := range map[string]int{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if x, ok := strings.CutSuffix(text, suffix); ok {
			number, unit = strings.TrimSpace(x), n
		}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n > math.MaxInt/unit || n < math.MinInt/unit {
		return errors.New("expected a number of bytes, as in 65536, 64KiB, 64MiB or 1GiB")
	}
	*s = size(n * unit)
	return nil
}

// options are the flags.
type options struct {
	access
	transport
	persistence
	connections
	limits
	logging
	desk             desk
	comings          comings
	denySubscribe    list
	payload          size
	maxPayload       atomic.Int64 // the same, where it may change
	maxQoS           string
	versions, config string
	clientPrefix     string // what Client Identifiers must begin with
	said             []mosquittoconf.Said
	perListener      bool // the listeners of the file have settings of their own only
	pprof            string
	cfg              dunlin.Config
	reloads          reloads
	args             []string // what it was called with
	settings         settings
	// packet prints a line with -v; serve sets it
	packet    func(format string, of ...any)
	listening func(net.Addr) // if not nil, is told each address that is listened on
}

func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("server", flag.ContinueOnError)
	c := &o.cfg
	o.transport.flags(fs)
	o.access.flags(fs)
	o.persistence.flags(fs)
	o.limits.flags(fs, c)
	o.logging.flags(fs)
	o.desk.flags(fs)
	o.comings.flags(fs)
	fs.IntVar(&c.ReceiveMaximum, "receive-maximum", 0,
		"unacknowledged QoS 1 and 2 publishes per client (default 1024)")
	fs.StringVar(&o.maxQoS, "max-qos", "2", "highest QoS that clients may use")
	fs.BoolVar(&c.DisableRetain, "no-retain", false, "do not accept retained messages")
	fs.BoolVar(&c.DisableWildcards, "no-wildcards", false,
		"do not accept wildcards in subscriptions")
	fs.BoolVar(&c.DisableShared, "no-shared", false, "do not accept shared subscriptions")
	fs.BoolVar(&c.DisableSubscriptionIDs, "no-subscription-ids", false,
		"do not accept Subscription Identifiers")
	fs.Var((*size)(&c.MaxPacketSize), "max-packet-size", "largest packet accepted, in bytes "+
		"(default 1 MiB)")
	fs.Var((*size)(&c.MaxConnectSize), "max-connect-size", "largest CONNECT accepted, with its "+
		"Will and password, in bytes (default 8 KiB)")
	fs.IntVar(&c.MaxTopicLevels, "max-topic-levels", 0, "most levels of a topic (default 128)")
	fs.Var(&o.payload, "max-payload", "largest payload accepted, in bytes; a larger one is "+
		"acknowledged with 0x97 and dropped (default none)")
	fs.DurationVar(&c.MaxKeepAlive, "server-keep-alive", 0,
		"longest Keep Alive, for instance 60s (default as clients ask)")
	fs.Float64Var(&c.SlowLinkRate, "slow-link-rate", 0,
		"bytes per second of an incomplete packet that count as life for the Keep Alive (default "+
			"only whole packets do)")
	fs.DurationVar(&c.MaxSessionExpiry, "max-session-expiry", 0,
		"longest that a session is kept for an absent client (default 168h)")
	fs.IntVar(&c.MaxConnections, "max-connections", 0, "most connections (default 100000)")
	fs.IntVar(&c.MaxSessions, "max-sessions", 0, "most sessions (default 1000000)")
	fs.IntVar(&c.TopicAliasMaximum, "topic-alias-maximum", 0,
		"highest Topic Alias (default 32, negative: 65535)")
	fs.StringVar(&o.versions, "versions", "3,4,5",
		"protocol versions accepted: 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0")
	fs.Var(&o.denySubscribe, "deny-subscribe",
		"Topic `filter` that may not be subscribed to, repeatable")
	fs.IntVar(&c.MaxInflight, "max-inflight", 0,
		"most QoS 1 and 2 deliveries on their way to one client, which begins with 256 "+
			"(default 8192)")
	fs.IntVar(&c.MaxQueuedMessages, "max-queued-messages", 0,
		"messages queued per session (default 16384)")
	fs.Var((*size)(&c.MaxQueuedBytes), "max-queued-bytes", "bytes queued per session (default 16 "+
		"MiB)")
	fs.Var((*size)(&c.MaxOutboundBytes), "max-outbound-bytes",
		"bytes that wait for one client's socket (default 2 MiB)")
	fs.DurationVar(&c.SysInterval, "sys-interval", 10*time.Second,
		"how often $SYS is published, 0 for never")
	fs.BoolVar(&c.QueueQoS0, "queue-qos0", false, "queue QoS 0 messages, too, for absent clients")
	fs.BoolVar(&c.CheckPayloadFormat, "check-payload-format", false,
		"refuse payloads that are said to be UTF-8 and are not")
	fs.BoolFunc("event-loops", "serve plain TCP and unix connections with event loops "+
		"(Linux; default true, but false with -v or other hooks that see each message), or with "+
		"a goroutine each", func(s string) error {
		on, err := strconv.ParseBool(s)
		if c.EventLoops = dunlin.EventLoopsOff; on {
			c.EventLoops = dunlin.EventLoopsOn
		}
		return err
	})
	fs.StringVar(&o.config, "config", "", "`file` of the form of mosquitto.conf; flags may stand "+
		"in it, too, as name value or name=value; flags given directly win")
	fs.StringVar(&o.config, "c", "", "`file`, the same as -config")
	fs.StringVar(&o.pprof, "pprof", "", "`address` for net/http/pprof (default none)")
	return fs
}

// finish checks the flags and sets what takes more than a variable. It returns all that is wrong.
func (o *options) finish(fs *flag.FlagSet) (errs []error) {
	fail := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	o.access.settle(fs, o.identity, len(o.more) > 0)
	flagged := len(o.listen)+len(o.tlsListen)+len(o.ports)+len(o.quic)+len(o.web.listen)+
		len(o.web.secure) > 0
	if o.perListener && !flagged && (o.passwordFile != "" || o.aclFile != "") {
		fail(errors.New("-password-file and -acl-file hold for no listener: with " +
			"per_listener_settings true, write password_file and acl_file below each listener"))
	}
	fail(o.transport.check(o.access.localOnly))
	fail(o.persistence.finish())
	fail(o.comings.open())
	fail(o.limits.set(&o.cfg))
	fail(o.setMaxQoS())
	fail(o.setVersions())
	fail(o.checkConnections())
	fs.Visit(func(f *flag.Flag) {
		if f.Name == "topic-alias-maximum" && o.cfg.TopicAliasMaximum == 0 {
			o.cfg.DisableTopicAlias = true
		}
	})
	fail(o.logging.finish())
	o.logTo(os.Stderr)
	if len(o.denySubscribe) > 0 {
		o.cfg.Authorizer = hooks.AuthorizerFunc(o.authorize)
	}
	o.reloads = reloads{}
	errs = append(errs, o.openEntries()...)
	errs = append(errs, o.openListenings()...)
	fail(o.desk.open(o.reloads))
	if o.maxPayload.Store(int64(o.payload)); o.payload > 0 {
		o.cfg.Interceptor = hooks.InterceptorFunc(o.intercept)
	}
	o.settings = o.settled(fs)
	return errs
}

// setMaxQoS reads -max-qos.
func (o *options) setMaxQoS() error {
	q, err := strconv.ParseUint(o.maxQoS, 10, 8)
	if err != nil || q > 2 {
		return fmt.Errorf("-max-qos %q is not 0, 1 or 2", o.maxQoS)
	}
	qos := packets.QoS(q)
	o.cfg.MaxQoS = &qos
	return nil
}

// setVersions reads -versions.
func (o *options) setVersions() error {
	for _, s := range strings.Split(o.versions, ",") {
		v, err := strconv.ParseUint(strings.TrimSpace(s), 10, 8)
		if err != nil || v < 3 || v > 5 {
			return fmt.Errorf("-versions %q: %q is not 3, 4 or 5", o.versions, s)
		}
		o.cfg.Versions = append(o.cfg.Versions, packets.Version(v))
	}
	return nil
}

func (o *options) logTo(standard io.Writer) { o.cfg.Logger = o.logger(standard) }

// intercept refuses what is larger than -max-payload. What comes over a bridge is dropped instead:
// the bridge would send it again and again.
func (o *options) intercept(_ context.Context, c *hooks.Client,
	m *packets.Message) (*packets.Message, error) {
	if most := o.maxPayload.Load(); most > 0 && int64(len(m.Payload)) > most {
		if isLink(c) {
			return nil, hooks.ErrDrop
		}
		err := packets.Errorf(packets.QuotaExceeded, "a payload of %d bytes, at most %d are "+
			"accepted", len(m.Payload), most)
		if o.packet != nil {
			o.packet("Denied PUBLISH from %s (%s): %v", c.ID, m.Topic, err)
		}
		return nil, err
	}
	return m, nil
}

// authorize refuses the filters of -deny-subscribe.
func (o *options) authorize(_ context.Context, r *hooks.AccessRequest) error {
	if r.Action == hooks.ActionSubscribe {
		for _, f := range o.denySubscribe {
			if f == r.Topic || packets.MatchTopic(f, r.Topic) {
				// 0x87 would say that another client may
				return packets.Errorf(packets.UnspecifiedError,
					"subscriptions to %q are not allowed", r.Topic)
			}
		}
	}
	return nil
}
