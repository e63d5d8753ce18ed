package bridge

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/safelog"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Config configures a Node. New copies it.
type Config struct {
	// Name tells this broker from the others of the graph. Each needs a name of its own, of at most
	// 64 letters, digits, dots, underscores and hyphens.
	Name string
	// Links are the connections that this broker makes. A broker that only accepts connections of
	// others has none, and needs its Node all the same if the graph has a circle.
	Links []Link
	// Mark are Topic Filters of the messages that get a mark here, about 90 bytes of User
	// Properties. Name what is bridged, by links of this broker and of others. None: everything
	// except topics that begin with "$".
	Mark []string
	// Peer says whether a client is the link of another Node, whose marks are to be believed. A
	// client that is not a peer loses them: a message of it begins here. Nil believes every client
	// that says that it is a link, in a property of its CONNECT or with the bridge bit. Set it
	// where not everybody who may connect is trusted: a false mark can suppress somebody else's
	// message.
	Peer func(*hooks.Client) bool
	// Remember is how many messages the Node knows again at least when they come by a second way.
	// Each takes about 40 bytes. Zero: 131,072.
	Remember int
	// DisableMarks gives no marks, whatever Mark says. It suits a broker with links of 3.1.1 only,
	// over which marks do not go. Marks that messages of peers have stay.
	DisableMarks bool
	// MaxHops is how many brokers a message may have passed. Zero: 16.
	MaxHops int
	// Logger receives what happens to the links. Nil: slog.Default().
	Logger *slog.Logger
}

// A StartType says when a link connects.
type StartType byte

const (
	// StartAutomatic connects at once, and again whenever the connection has ended.
	StartAutomatic StartType = iota
	// StartOnce connects until it has succeeded once. When that connection ends the link stays
	// down.
	StartOnce
	// StartLazy connects when Threshold messages wait here, and disconnects when nothing was to be
	// carried for IdleTimeout. QoS 0 messages wait only with QueueQoS0 of the Config of the broker.
	StartLazy
)

// A Direction says which way the messages of a Topic go.
type Direction byte

const (
	DirectionOut  Direction = iota // from here to the remote broker
	DirectionIn                    // from the remote broker to here
	DirectionBoth                  // both
)

// A Topic says which messages a link carries, like a "topic" line of mosquitto.conf. With the
// Filter "a/#", LocalPrefix "here/" and RemotePrefix "there/", what is here/a/b here is there/a/b
// on the remote broker.
type Topic struct {
	// Filter is a Topic Filter without the prefixes. It may be empty if both prefixes are set: then
	// they are the two names of a single topic.
	Filter                    string
	Direction                 Direction
	QoS                       packets.QoS // the highest that messages are carried with
	LocalPrefix, RemotePrefix string
}

// A Link is a connection to a remote broker, like a "connection" of mosquitto.conf.
type Link struct {
	// Name tells the link from the others of the Node: 1 to 200 bytes of UTF-8. The Session that is
	// its queue belongs to the name.
	Name string
	// Addresses are those of the remote broker: mqtt://host:port, mqtts://host:port for TLS, or
	// unix:///path. The first one is used while it can be reached; the others stand in for it.
	Addresses []string
	// RoundRobin makes all Addresses equal: each new connection uses the next one.
	RoundRobin bool
	// PrimaryCheck is how often a link that uses another address tries whether the first one can be
	// reached again. Zero: 30 s. Not with RoundRobin.
	PrimaryCheck time.Duration
	// Version is that of the protocol, packets.V5 or packets.V311. Zero: 5.0.
	Version packets.Version
	Topics  []Topic

	// ClientID is the Client Identifier at the remote broker. Empty: Config.Name, a dot, and Name.
	ClientID           string
	Username, Password string
	// TLS is for mqtts. Nil: the system's certificates. ServerName is set to the host if it is
	// empty.
	TLS *tls.Config
	// LocalAddress is the address of this machine that TCP connections come from, without a port.
	// Empty: the system chooses.
	LocalAddress string
	// Dial, if not nil, makes the connections in place of the network. TLS is not added to them.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// CleanStart keeps nothing at the remote broker between two connections, CleanStartHere nothing
	// at the broker here.
	CleanStart, CleanStartHere bool
	// SessionExpiry is how long the remote broker (5.0) keeps the Session of an absent link. Zero:
	// as long as it will.
	SessionExpiry time.Duration
	// Remote is the Name of the Node at the other end, or any name for a broker without one. The
	// link then does not send there what has been there.
	Remote string
	// Transit is for links of 3.1.1, which carry no marks. A message that came over such a link, of
	// this broker or another one, is not sent on over another link. Transit of the link by which it
	// would leave permits it. Set it only where the graph has no circle.
	Transit bool
	// DisableBridgeBit connects over 3.1.1 as any client does. Otherwise the link leaves the bridge
	// bit out only for a remote broker that does not know it. Without it, that broker sends back
	// what it gets, if a Topic of DirectionBoth matches, and does not say of new messages that they
	// are retained.
	DisableBridgeBit bool
	// DisableRetain clears RETAIN of what goes to the remote broker. One of 5.0 that says that it
	// keeps no retained messages needs no such setting.
	DisableRetain bool
	// Unsubscribe ends subscriptions that the remote broker may have of an earlier setting, when
	// topics that now go out came in.
	Unsubscribe bool

	Start StartType
	// Threshold and IdleTimeout are for StartLazy. Zero: 10 messages and 60 s.
	Threshold   int
	IdleTimeout time.Duration
	// DisableNotifications publishes no state. Otherwise StateTopic is 1 while the link is up and 0
	// when it is not, retained, at both brokers. LocalNotifications publishes it here only.
	DisableNotifications, LocalNotifications bool
	// StateTopic is $SYS/broker/connection/ID/state if it is empty, where ID is the ClientID.
	StateTopic string

	// Window is how many QoS 1 and 2 messages may be under way at a time, each way. The throughput
	// is at most Window for each round trip. The limits of both brokers hold as well: here
	// MaxInflight and ReceiveMaximum of the Config. Zero: 20, which is that of Mosquitto.
	Window int
	// MaxPacketSize is the largest packet taken from the remote broker. With what the prefixes add
	// it must not be larger than MaxPacketSize of the broker here. Zero: 1 MiB with it.
	MaxPacketSize int
	// MaxSentSize is the largest packet sent to the remote broker. A message that needs a larger
	// one is dropped. Zero: only the limit that the remote broker tells (5.0).
	MaxSentSize int
	// KeepAlive is in whole seconds, at least 4 s. Zero: 60 s.
	KeepAlive time.Duration
	// Timeout is how long it may take to connect, and how long the remote broker may take nothing.
	// Zero: 20 s. AckTimeout is how long it may leave the oldest message without an
	// acknowledgement. Zero: 60 s.
	Timeout, AckTimeout time.Duration
	// MinBackoff and MaxBackoff bound the pause before the next attempt to connect. It is random,
	// and grows. Zero: 1 s and 30 s.
	MinBackoff, MaxBackoff time.Duration
}

var validName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// complete checks c and fills in the defaults.
func (c *Config) complete() error {
	if !validName.MatchString(c.Name) {
		return fmt.Errorf("bridge: Config.Name: expected 1 to 64 letters, digits, dots, "+
			"underscores and hyphens, got %q", c.Name)
	}
	if c.Remember < 0 || c.MaxHops < 0 {
		return errors.New("bridge: Remember and MaxHops must not be negative")
	}
	c.Remember = cmp.Or(c.Remember, 131_072)
	c.MaxHops = cmp.Or(c.MaxHops, 16)
	c.Logger = safelog.Logger(c.Logger)
	c.Mark, c.Links = slices.Clone(c.Mark), slices.Clone(c.Links)
	for _, f := range c.Mark {
		if !packets.ValidTopicFilter(f) {
			return fmt.Errorf("bridge: Config.Mark: %q is not a valid Topic Filter", f)
		}
	}
	seen := map[string]bool{}
	for i := range c.Links {
		l := &c.Links[i]
		if err := l.complete(c.Name); err != nil {
			return fmt.Errorf("bridge: link %q: %w", l.Name, err)
		}
		if seen[l.Name] {
			return fmt.Errorf("bridge: there are two links %q", l.Name)
		}
		seen[l.Name] = true
		l.Topics = slices.Clone(l.Topics)
		l.Addresses = slices.Clone(l.Addresses)
	}
	return nil
}

func (l *Link) complete(node string) error {
	if l.Name == "" || len(l.Name) > 200 || !packets.ValidUTF8(l.Name) {
		return errors.New("expected a Name of 1 to 200 bytes in UTF-8")
	}
	if len(l.Addresses) == 0 {
		return errors.New("expected at least one of Addresses")
	}
	for _, a := range l.Addresses {
		if _, err := parseAddress(a); err != nil {
			return err
		}
	}
	l.Version = cmp.Or(l.Version, packets.V5)
	if l.Version != packets.V5 && l.Version != packets.V311 {
		return fmt.Errorf("expected Version 5.0 or 3.1.1, got %v", l.Version)
	}
	if l.Remote != "" && !validName.MatchString(l.Remote) {
		return fmt.Errorf("expected Remote in the form of a Name, got %q", l.Remote)
	}
	l.ClientID = cmp.Or(l.ClientID, node+"."+l.Name)
	if !packets.ValidUTF8(l.ClientID) || len(l.ClientID) > 1000 {
		return fmt.Errorf("expected a ClientID of at most 1000 bytes in UTF-8, got %.100q",
			l.ClientID)
	}
	l.StateTopic = cmp.Or(l.StateTopic, "$SYS/broker/connection/"+l.ClientID+"/state")
	if !l.DisableNotifications && !packets.ValidTopicName(l.StateTopic) {
		return fmt.Errorf("the state cannot be published to %.100q, which is not a valid Topic "+
			"Name: set StateTopic or DisableNotifications", l.StateTopic)
	}
	if l.LocalAddress != "" && net.ParseIP(l.LocalAddress) == nil {
		return fmt.Errorf("expected an IP address as LocalAddress, got %q", l.LocalAddress)
	}
	if len(l.Username) > 65535 || len(l.Password) > 65535 || !packets.ValidUTF8(l.Username) {
		return errors.New(
			"expected a Username in UTF-8, and at most 65,535 bytes in it and in Password")
	}
	if len(l.Topics) == 0 {
		return errors.New("expected at least one of Topics")
	}
	for i := range l.Topics {
		if err := l.Topics[i].Check(); err != nil {
			return err
		}
	}
	return l.limits()
}

// limits fills in the defaults of what is a number.
func (l *Link) limits() error {
	for _, d := range []time.Duration{l.PrimaryCheck, l.SessionExpiry, l.KeepAlive, l.Timeout,
		l.AckTimeout, l.MinBackoff, l.MaxBackoff, l.IdleTimeout} {
		if d < 0 {
			return fmt.Errorf("%v is negative", d)
		}
	}
	l.KeepAlive = cmp.Or(l.KeepAlive, time.Minute)
	l.Window = cmp.Or(l.Window, 20)
	l.MaxPacketSize = cmp.Or(l.MaxPacketSize, 1<<20-l.growth(true))
	l.PrimaryCheck = cmp.Or(l.PrimaryCheck, 30*time.Second)
	l.Threshold = cmp.Or(l.Threshold, 10)
	l.IdleTimeout = cmp.Or(l.IdleTimeout, time.Minute)
	l.Timeout = cmp.Or(l.Timeout, 20*time.Second)
	l.AckTimeout = cmp.Or(l.AckTimeout, time.Minute)
	l.MinBackoff = cmp.Or(l.MinBackoff, time.Second)
	l.MaxBackoff = max(cmp.Or(l.MaxBackoff, 30*time.Second), l.MinBackoff)
	switch {
	case l.Window < 1 || l.Window > 65535:
		return fmt.Errorf("expected a Window of 1 to 65,535, got %d", l.Window)
	case l.MaxPacketSize < 128 || l.MaxPacketSize > 256<<20:
		return fmt.Errorf("expected a MaxPacketSize of 128 to 256 MiB, got %d", l.MaxPacketSize)
	case l.KeepAlive < 4*time.Second || l.KeepAlive > 65535*time.Second:
		return fmt.Errorf("expected a KeepAlive of 4 to 65,535 s, got %v", l.KeepAlive)
	case l.Start > StartLazy:
		return fmt.Errorf("%d is not a StartType", l.Start)
	case l.Start == StartLazy && (l.CleanStartHere || len(l.filters(false, 0)) == 0):
		return errors.New("StartLazy needs a Topic that goes out, and a queue: no CleanStartHere")
	case l.Threshold < 1:
		return fmt.Errorf("expected a Threshold of at least 1, got %d", l.Threshold)
	case l.MaxSentSize != 0 && l.MaxSentSize < 128:
		return fmt.Errorf("expected a MaxSentSize of at least 128, got %d", l.MaxSentSize)
	}
	l.KeepAlive = l.KeepAlive.Truncate(time.Second)
	return nil
}

// An address is one of Link.Addresses, taken apart.
type address struct {
	network, host string
	name          string // for the certificate
	tls           bool
}

func parseAddress(s string) (a address, err error) {
	text := s
	if !strings.Contains(s, "://") {
		text = "mqtt://" + s
	}
	u, err := url.Parse(text)
	if err != nil {
		return a, fmt.Errorf("address %q: %w", s, err)
	}
	a = address{network: "tcp", name: u.Hostname()}
	port := "1883"
	switch u.Scheme {
	case "mqtt", "tcp":
	case "mqtts", "ssl", "tls":
		a.tls, port = true, "8883"
	case "unix":
		return address{network: "unix", host: u.Path}, nil
	default:
		return a, fmt.Errorf("address %q: expected mqtt, mqtts or unix, got %q", s, u.Scheme)
	}
	if a.name == "" || u.User != nil || u.Path != "" && u.Path != "/" {
		return a, fmt.Errorf("address %q: expected a host and a port, and nothing else",
			u.Redacted())
	}
	a.host = net.JoinHostPort(a.name, cmp.Or(u.Port(), port))
	return a, nil
}
