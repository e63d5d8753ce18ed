package dunlin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// Config configures a Broker. New copies it; later changes have no effect. See Broker.Reconfigure.
//
// For every limit, zero means the default that its comment gives and a negative value means no
// limit (of what the standard allows). Durations follow the same rule.
type Config struct {
	// Authenticator decides every CONNECT. Required: New fails without one. hooks.AllowAll accepts
	// everybody.
	Authenticator hooks.Authenticator
	// Authorizer decides every publish, Wills included, and each Topic Filter of every SUBSCRIBE.
	// If nil, a client that was accepted may publish and subscribe to everything. SystemTopics says
	// which topics that begin with "$" are publishable at all.
	Authorizer hooks.Authorizer
	// EnhancedAuth holds the Authentication Methods that clients may use, by name (4.12). Any other
	// is refused with Bad authentication method (0x8C).
	EnhancedAuth map[string]hooks.EnhancedAuthenticator
	// SessionPerPrincipal gives each principal Sessions of its own: two that use the same Client
	// Identifier do not meet. Without it a Client Identifier belongs to the first principal that
	// uses it, as long as there is a Session, and others are refused with Client Identifier not
	// valid (0x85). Clients without Principal and User Name count as one principal. Where nobody is
	// verified, with hooks.AllowAll and no EnhancedAuth, the other one gets a new Session instead,
	// and the former ends. So it does if the former belongs to a User Name that was only claimed
	// (Unverified of hooks.Identity).
	SessionPerPrincipal bool
	// Interceptor, if not nil, sees each Application Message before it is routed.
	Interceptor hooks.Interceptor
	// SubscribeInterceptor, if not nil, sees each Topic Filter of a SUBSCRIBE before the
	// Authorizer, and may replace it or lower its QoS.
	SubscribeInterceptor hooks.SubscribeInterceptor
	// DeliveryInterceptor, if not nil, sees each message before it is sent to a client, and may
	// replace it or drop it for this client. All messages then take the way through the queue of
	// their client, at QoS 0 as well, and count in MaxQueuedMessages and MaxQueuedBytes.
	DeliveryInterceptor hooks.DeliveryInterceptor
	// Observer, if not nil, is told what happens.
	Observer *hooks.Observer
	// Logger receives what concerns the broker at Info, Warn and Error, and what concerns one
	// client at Debug. If nil, slog.Default() is used. A slog.Handler that does not return at once
	// holds up clients, with event loops also others than the one that the line is about. One that
	// panics loses the line.
	Logger *slog.Logger
	// ConnContext, if not nil, derives the context that hooks get for a connection.
	ConnContext func(ctx context.Context, c net.Conn) context.Context
	// EventLoops says whether idle connections have goroutines. Zero: on Linux, plain sockets have
	// none. See the type.
	EventLoops EventLoops

	// Store keeps Sessions, their queues, and retained messages; see "Delivery guarantees" of the
	// package. New reads it, and Shutdown and Close close it; if New fails it is still the
	// caller's. It must not be used by anybody else, and not by two Brokers, meanwhile. Nil:
	// nothing survives the end of the process.
	Store store.Store
	// MaxUncommittedBytes is how much may wait for the Store, in all. A publisher that needs the
	// Store and finds no room waits, in turn: nothing is read from it meanwhile. So do SUBSCRIBE,
	// UNSUBSCRIBE, CONNECT and the retained messages for a new subscription of durable Sessions,
	// and Publish and Subscribe of the program. All others go on. After 30 s in vain the request is
	// refused with Quota exceeded (0x97), and a client before 5.0 that cannot be told is
	// disconnected. Default 8 MiB.
	MaxUncommittedBytes int

	// SystemTopics lists the beginnings of topics with "$" that clients may publish to where the
	// Authorizer allows it, such as "$aws/" and "$iothub/". A service below such a prefix, as
	// Mosquitto's $CONTROL, is an Interceptor: it does what the message asks for and returns
	// hooks.ErrDrop, or an error with the Reason Code that the client gets. All other topics that
	// begin with "$" belong to the server, and a PUBLISH to them is refused with Not authorized
	// (0x87). In any case a bridge may publish its state to $SYS/broker/connection/NAME/state,
	// which Mosquitto's does by default. Prefixes of $SYS/, $share/ and $local/ are an error.
	SystemTopics []string
	// ReceiptProperty is the name of a User Property (3.3.2.3.7). A message that has it, with a
	// value of 1 to 256 bytes, has a receipt: the broker calls Observer.Settled with that value for
	// each delivery of the message, when the client has the message or when it is lost, however
	// much later. See hooks.Settled. A retained message that a new subscription gets has no
	// receipt. Clients see the property, and can set it in messages of their own, unless an
	// Interceptor refuses that. It has no effect if Observer.Settled is nil. Default "receipt".
	ReceiptProperty string
	// MaxDelay is the longest delay of a message that a client publishes to $delayed/SECONDS/TOPIC.
	// The broker publishes it to TOPIC so many seconds later. The Authorizer is asked about a
	// publish to TOPIC, when the message comes and when it is due, the Interceptor when it is due.
	// With a Store, whatever the QoS, it is acknowledged when it is durable, and comes also after a
	// restart. Its Message Expiry Interval counts from its time. It counts as a Session for
	// MaxMemory. What is beyond a limit is refused with Quota exceeded (0x97), another form or a
	// longer delay with Topic Name invalid (0x90). Default and negative: nobody may delay.
	MaxDelay time.Duration
	// Versions lists the protocol versions that are accepted. Empty: all of 3.1, 3.1.1 and 5.0.
	Versions []packets.Version

	// ConnectTimeout is how long a connection may take from its beginning to the CONNACK. Hooks
	// that decide about the CONNECT share that time with the client, an exchange of AUTH packets
	// included: their contexts end with it. A re-authentication has as long. Default 10 s.
	ConnectTimeout time.Duration
	// WriteTimeout ends a connection whose client takes nothing for so long while there is
	// something to send. Default 30 s.
	WriteTimeout time.Duration
	// MaxKeepAlive is the longest Keep Alive. A 5.0 client that asks for more, or for none, is told
	// this one as Server Keep Alive (3.2.2.3.14); an older client is held to one and a half of it.
	// Whole seconds. Default and negative: as clients ask.
	MaxKeepAlive time.Duration
	// SlowLinkRate is for links so slow that a packet takes longer than one and a half Keep Alive,
	// in which no PINGREQ can come. Where it is positive, the bytes of a packet that is not
	// complete count as life if that many have come per second. The standard counts whole packets
	// only (3.1.2.10). Default and negative: as the standard says.
	SlowLinkRate float64

	// MaxConnections bounds the Network Connections. Another one is refused with Server busy
	// (0x89), unless it takes over that of the same client. Default 100,000.
	MaxConnections int
	// MaxConnecting bounds the connections whose CONNECT has not come or not been decided. Another
	// one is closed. An address, loopback addresses excepted, may hold as many as are free.
	// Together they take an eighth of MaxMemory at most. Default 32,768.
	MaxConnecting int

	// The next six hold for an address: an IPv4 address, or an IPv6 /64 network. Their defaults,
	// but not values that are set, leave out loopback addresses and connections without IP address.

	// MaxConnectionsPerIP bounds the connections from one address. Another one is closed before
	// anything is read. Default 10,000.
	MaxConnectionsPerIP int
	// ConnectRatePerIP is how many connections per second are taken up from one address,
	// ConnectRate how many in all; a second's worth may come at once. Others are closed before
	// anything is read. Defaults 1,000 and 50,000.
	ConnectRatePerIP, ConnectRate float64
	// MaxAuthFailures is how many authentications of one User Name from one address may fail in a
	// minute. (Where there is no User Name, the Client Identifier counts.) MaxAuthFailuresPerIP is
	// how many from one address may fail in all; it does not hold for a User Name that was accepted
	// from the address before. An authentication under way counts as failed until it has succeeded.
	// Beyond, until there is room again, the client is refused with Connection rate exceeded (0x9F)
	// and no hook is asked. Defaults 60, and 5 times MaxAuthFailures.
	MaxAuthFailures, MaxAuthFailuresPerIP int
	// MaxTakeovers is how often in a minute connections may take over the same Client Identifier
	// from each other. One that does it more often is banned (see Ban) for BanTime: the Client
	// Identifier, or with SessionPerPrincipal the one of that principal. If clients without a
	// verified name do it, the principals that are verified stay free to use the Client Identifier.
	// Defaults 60, and 5 minutes; either negative: nobody is.
	MaxTakeovers int
	BanTime      time.Duration

	// PublishRate and PublishBytes bound the PUBLISH packets, and their bytes, that one owner sends
	// per second; a second's worth may come at once. The owner is the principal, with all its
	// connections. Clients that nobody has verified, or that have no name, are told apart by Client
	// Identifier, and by address if they have none. What an owner has used up stays used up on its
	// next connection. An Authenticator may lower the rates (hooks.Limits); those of the connection
	// that came last hold. OverRate decides what happens beyond. Default and negative: no limit.
	PublishRate, PublishBytes float64
	OverRate                  OverRate
	// MaxSessions bounds the Sessions, connected or not. A new one is refused with Quota exceeded
	// (0x97). Default 1,000,000.
	MaxSessions int
	// The next eight bound what one principal makes the broker keep, over all its Sessions, so that
	// one user cannot fill what all share. An Authenticator can lower them (hooks.Limits). Where
	// all clients log in with one account, they are one principal, and these bounds, not the larger
	// ones for all, are theirs: set them to none (negative) there. All clients without Principal
	// and User Name count as one principal. So do all clients where nobody is verified, with
	// hooks.AllowAll and no EnhancedAuth, and the defaults are none. What is there after a restart
	// counts. A change that makes less of it is always taken.

	// MaxSessionsPerPrincipal bounds its Sessions, connected or not. A new one is refused with
	// Quota exceeded (0x97). Default: three quarters of MaxSessions.
	MaxSessionsPerPrincipal int
	// MaxConnectionsPerPrincipal bounds its accepted connections. Another one is refused with Quota
	// exceeded (0x97), unless it takes over from one of them. Default: three quarters of
	// MaxConnections.
	MaxConnectionsPerPrincipal int
	// MaxSubscriptionsPerPrincipal bounds its subscriptions. A subscription counts once more for
	// each 128 bytes of its filter, and for each 8 levels if the filter has wildcards. Another one
	// is refused in the SUBACK with Quota exceeded (0x97). Default: one for each 2 KiB of
	// MaxMemory.
	MaxSubscriptionsPerPrincipal int
	// MaxRetainedPerPrincipal and MaxRetainedBytesPerPrincipal bound the retained messages that it
	// has published. Beyond them the broker does what it does beyond MaxRetained and
	// MaxRetainedBytes. Defaults: three quarters of these.
	MaxRetainedPerPrincipal      int
	MaxRetainedBytesPerPrincipal int
	// MaxKeptBytesPerPrincipal bounds the memory of what stays until the principal or the program
	// gives it up: its retained messages, 176 bytes and their own, its subscriptions, 700 bytes as
	// they are counted above, its Sessions with all that they know (2 KiB and their names and
	// Wills), their connections (see MaxMemory), Topic Aliases, and what else of them counts there.
	// Beyond it the broker refuses with Quota exceeded (0x97). Sessions and connections get a sixth
	// more whatever the others take, and each principal can have one Session, so that a client can
	// come and give something up. Default: 37 % of MaxMemory, half of what all may take.
	MaxKeptBytesPerPrincipal int
	// MaxQueuedBytesPerPrincipal bounds what waits in its queues, and what its clients have not
	// acknowledged, together. A message counts in each queue that it is in, with 192 bytes besides
	// its own. Beyond the bound Overflow decides, as for MaxQueuedBytes. Default: half of
	// MaxMemory. A bound of half of MaxMemory or more holds only while half of MaxMemory is in use,
	// because a message that is in many queues takes memory once.
	MaxQueuedBytesPerPrincipal int
	// MaxDelayedPerPrincipal bounds its delayed messages (see MaxDelay) that wait. Their bytes
	// count for MaxKeptBytesPerPrincipal, each with 640 besides its own, and once for all those of
	// a connection what is known of the client. Default 10,000.
	MaxDelayedPerPrincipal int
	// MaxPacketSize is the largest packet accepted from a client, in bytes, fixed header included.
	// 5.0 clients are told. A larger one ends the connection with Packet too large (0x95). Default
	// 1 MiB; none: 256 MiB.
	MaxPacketSize int
	// MaxConnectSize is the same for everything before the client is accepted: it bounds the Will
	// and the password, and what somebody unknown makes the Broker hold. A larger CONNECT is
	// refused with 0x95. Default 8 KiB.
	MaxConnectSize int
	// MaxTopicLength bounds Topic Names and Filters in bytes, MaxTopicLevels in levels. A longer
	// name is refused with Topic Name invalid (0x90), a longer filter with Topic Filter invalid
	// (0x8F). Defaults 65,535 and 128.
	MaxTopicLength int
	MaxTopicLevels int
	// MaxWildcardLevels bounds the levels of Topic Filters with wildcards, each of which takes
	// memory of its own. A filter with more is refused with Topic Filter invalid (0x8F). Default
	// 32, at most MaxTopicLevels; none: that.
	MaxWildcardLevels int
	// MaxFilters is the most Topic Filters in one SUBSCRIBE or UNSUBSCRIBE, MaxUserProperties the
	// most User Properties in one packet. More end the connection with Quota exceeded (0x97).
	// Defaults 10,000 and 1,000.
	MaxFilters        int
	MaxUserProperties int
	// MaxSubscriptions bounds the subscriptions of one Session. Another one is refused in the
	// SUBACK with Quota exceeded (0x97). Default 100,000.
	MaxSubscriptions int
	// MaxOverlapping bounds how many subscriptions of one Session can match the same topic, and
	// so how many Subscription Identifiers come with a message, and how often a Session gets it
	// by shared subscriptions. Another one is refused with Quota exceeded (0x97). What counts is
	// where the wildcards of a filter stand: of a/+ and b/+ no topic matches both, so they count
	// as one, and so do all filters without wildcards. Default 256; none: MaxSubscriptions.
	MaxOverlapping int
	// MaxEnded is how many connections that ended the Broker remembers, and how many that it
	// refused, MaxDrops how many messages that were lost: see Ended and LastDrops. Each stands for
	// 512 bytes of memory, so fewer are remembered if their names are long. Default 1,024; none: 0.
	MaxEnded, MaxDrops int
	// MinWildcardLevel is how many levels of a Topic Filter must come before its first wildcard:
	// with 1, # and +/x are refused with Not authorized (0x87), a/# is not. Default and negative:
	// 0.
	MinWildcardLevel int
	// ReceiveMaximum is how many QoS 1 and 2 publishes of one client may be unacknowledged
	// (3.2.2.3.3). A 5.0 client that sends more is disconnected with Receive Maximum exceeded
	// (0x93). Default 1,024; none: 65,535.
	ReceiveMaximum int
	// TopicAliasMaximum is the highest Topic Alias that clients may use, and the highest that is
	// used towards clients which accept them (3.2.2.3.8). The topics of all aliases of a connection
	// may have 2 KiB for each that it may use, but at least MaxTopicLength. A client that goes
	// beyond is disconnected with Quota exceeded (0x97); towards clients, topics beyond get no
	// alias. Default 32; none: 65,535. See DisableTopicAlias.
	TopicAliasMaximum int
	// MaxInflight is how many QoS 1 and 2 deliveries to one client may be on their way at a time,
	// if the client's own Receive Maximum is not lower. A connection begins with at most 256. While
	// messages wait in the queue, and the client acknowledges as many of QoS 1 as may be on their
	// way within half a second, that number doubles, so that an able client is never waited for. A
	// bridge gets at most 20: Mosquitto's loses QoS 2 messages beyond its own limit, which it
	// cannot tell. Default 8,192; none: 65,535.
	MaxInflight int
	// MaxQueuedMessages and MaxQueuedBytes bound the queue of one Session: what waits for the
	// client to come back, or for room in its window. Overflow decides what happens beyond.
	// Defaults 16,384 messages and 16 MiB. MaxQueuedBytes bounds as well what a Session remembers
	// of new subscriptions whose retained messages are still to be sent, about 130 bytes and the
	// filter for each. A subscription beyond is refused in the SUBACK with Quota exceeded (0x97).
	MaxQueuedMessages int
	MaxQueuedBytes    int
	// Overflow is the policy for a full queue. Default: the oldest message makes room.
	Overflow Overflow
	// QueueQoS0 keeps QoS 0 messages, too, for Sessions whose client is away.
	QueueQoS0 bool
	// MaxOutboundBytes bounds what has been sent to one client but not yet taken by its socket. QoS
	// 0 messages beyond are dropped and counted, QoS 1 and 2 wait in the queue. Default 2 MiB.
	MaxOutboundBytes int
	// MaxSessionExpiry is the longest a Session is kept for an absent client (3.1.2.11.2), and how
	// long one without Clean Session of an older client is kept. Default 7 days; negative: for
	// ever.
	MaxSessionExpiry time.Duration
	// MaxMessageExpiry is the longest that a message waits in a queue, also where its publisher set
	// no limit. Default and negative: as publishers say. It adds no property to a message.
	MaxMessageExpiry time.Duration
	// MaxRetained and MaxRetainedBytes bound the retained messages. A publish that would exceed
	// them is refused with Quota exceeded (0x97), and a client before 5.0, which cannot be told, is
	// disconnected. A Will, and a message of QoS 0, are delivered, but not retained. Whatever makes
	// the retained messages smaller is always taken: a removal, and a message that is not larger
	// than the one in whose place it comes. Defaults 1,000,000 and 1 GiB. See MaxMemory for a third
	// bound.
	MaxRetained      int
	MaxRetainedBytes int
	// MaxMemory bounds the bytes that clients make the whole broker hold: messages in queues and in
	// flight (each once), retained messages, output that sockets have not taken, packets that have
	// come in part, what waits for the Store, subscriptions, connections (6 KiB each, 20 KiB if not
	// a plain socket), Sessions with all that they know, Topic Aliases, and the receivers of topics
	// and decisions about deliveries that are kept to save work. These last get an eighth of it,
	// are forgotten when a client does not publish for a while, and go first.
	//
	// Retained messages, subscriptions, Sessions and connections stay until somebody gives them up,
	// so they must leave room for other messages: each of the four gets half of it, and all
	// together three quarters. Sessions and connections get 6 % each whatever the others take, so
	// that clients can still come. Sessions that end with their connection get 2 % more, so that
	// Sessions of absent clients do not keep them out. A retained message beyond is refused
	// as by MaxRetainedBytes, a subscription, a Session and a QoS 2 message whose identifier finds
	// no room with Quota exceeded (0x97), a connection with Server busy (0x89). Connections that
	// are not accepted yet may take an eighth. At the limit a removal of a retained message is
	// still taken, and a smaller one in the place of another.
	//
	// Packets of more than 4 KiB that have come in part may take a quarter of it. A client whose
	// packet finds no room is not read meanwhile, and is disconnected with 0x97 after 30 s. While
	// others wait, the packet that has been under way for the longest, more than 10 s, ends its
	// connection.
	//
	// For the rest it gives way in this order. From 80 % on, QoS 0 messages are not kept for
	// clients whose sockets do not take them at once, or who are away. Above 90 % the Sessions of
	// absent clients lose messages, down to 85 %: the largest Sessions first, and the oldest
	// messages of each, also those that were sent and not acknowledged. So do Subscriptions of the
	// program that have not read theirs, unless they have a Name or OverflowBlock. If that is not
	// enough, the broker looks at the clients that have acknowledged nothing for 10 s, and
	// disconnects the one that holds the most with 0x97. At the limit each publish, retained or
	// not, is refused with Quota exceeded (0x97), and a client before 5.0 that cannot be told is
	// disconnected.
	//
	// Default: half of the runtime's memory limit (GOMEMLIMIT) if there is one, otherwise 4 GiB.
	MaxMemory int

	// MaxQoS is the highest QoS that clients may publish with; nil means 2. A lower one is
	// announced to 5.0 clients, granted QoS are lowered to it, and a publish above it ends the
	// connection with QoS not supported (0x9B).
	MaxQoS *packets.QoS
	// Switches for what clients may not use; 5.0 clients are told.
	DisableRetain          bool
	DisableWildcards       bool
	DisableShared          bool
	DisableSubscriptionIDs bool
	DisableTopicAlias      bool
	// Shared chooses the member of a shared subscription that gets a message. Default: round robin.
	Shared SharedStrategy
	// CheckPayloadFormat refuses, with Payload format invalid (0x99), publishes whose Payload
	// Format Indicator says UTF-8 and whose payload is not.
	CheckPayloadFormat bool
	// ResponseInformation is given to 5.0 clients that ask for it (3.2.2.3.15): what the topics of
	// responses begin with, so it must be the beginning of a Topic Name. Empty: none.
	ResponseInformation string
	// SysInterval is how often the $SYS topics are published. Zero or negative: never.
	SysInterval time.Duration
}

// settings are a Config with its defaults filled in. They are immutable: Reconfigure puts others in
// their place.
type settings struct {
	Config
	strict strictness
}

// cfg returns the settings in force.
func (b *Broker) cfg() *settings { return b.config.Load() }

// OverRate says what happens to a client that publishes more than its PublishRate or PublishBytes.
type OverRate byte

const (
	// OverRatePauseReading decodes no PUBLISH of the owner that is beyond the rate before its time
	// has come. Nothing is lost; what a client has sent behind such a PUBLISH waits as well. A
	// client that does not publish is not paused.
	OverRatePauseReading OverRate = iota
	// OverRateRefusePublish acknowledges each PUBLISH beyond with Quota exceeded (0x97) and drops
	// it; one of QoS 0 is dropped in silence. A client before 5.0 cannot be told, and is
	// disconnected for a QoS 1 or 2 one.
	OverRateRefusePublish
)

// Overflow says what happens when a message finds the queue of a Session full.
type Overflow byte

const (
	// OverflowDropOldest removes messages from the front of the queue until the new one has room.
	OverflowDropOldest Overflow = iota
	// OverflowDropNewest drops the message that found the queue full.
	OverflowDropNewest
	// OverflowDisconnect drops it as well, and disconnects the client with Quota exceeded (0x97) if
	// it is there: one that cannot keep up is told so.
	OverflowDisconnect
	// OverflowBlock is for Subscriptions of the program only: the publisher is made to wait. See
	// SubscribeOptions.
	OverflowBlock
)

// SharedStrategy chooses which member of a shared subscription gets a message (4.8.2). With each of
// them a member that is away or full is passed over while there is another one.
type SharedStrategy byte

const (
	// SharedRoundRobin takes the members in turn.
	SharedRoundRobin SharedStrategy = iota
	// SharedSticky stays with one member as long as it can take messages.
	SharedSticky
	// SharedHashTopic sends equal topics to the same member.
	SharedHashTopic
	// SharedHashClient sends all messages of one publisher to the same member.
	SharedHashClient
)

const (
	maxPacketSize = 268435460 // what the Remaining Length can say, fixed header included
	noExpiry      = math.MaxUint32
)

// limit gives *n its default, or the largest value that makes sense where it is negative.
func limit(n *int, def, most int) {
	if *n == 0 {
		*n = def
	}
	if *n < 0 || *n > most {
		*n = most
	}
}

// limitCount and limitRate leave 0 for no limit.
func limitCount(n *int, def int) {
	if *n == 0 {
		*n = def
	}
	*n = max(*n, 0)
}

func limitRate(r *float64, def float64) {
	if *r == 0 {
		*r = def
	}
	*r = max(*r, 0)
}

func limitDuration(d *time.Duration, def time.Duration) {
	if *d == 0 {
		*d = def
	}
	if *d < 0 {
		*d = 0
	}
}

// detach makes copies of what the caller could change later.
func (c *Config) detach() {
	c.Versions, c.EnhancedAuth = slices.Clone(c.Versions), maps.Clone(c.EnhancedAuth)
	c.SystemTopics = slices.Clone(c.SystemTopics)
	if c.MaxQoS != nil {
		c.MaxQoS = new(*c.MaxQoS)
	}
}

// check fills in the defaults and reports what makes no sense.
func (c *Config) check() error {
	if c.Authenticator == nil {
		return errors.New(
			"dunlin: Config.Authenticator is nil: name one, or hooks.AllowAll to accept everybody")
	}
	if err := c.checkHooks(); err != nil {
		return err
	}
	for _, v := range c.Versions {
		if v < packets.V31 || v > packets.V5 {
			return fmt.Errorf(
				"dunlin: Config.Versions: %d is not a protocol version, use packets.V31, V311 "+
					"and V5", v)
		}
	}
	if err := c.checkSystemTopics(); err != nil {
		return err
	}
	if c.MaxQoS != nil && *c.MaxQoS > packets.QoS2 {
		return fmt.Errorf("dunlin: Config.MaxQoS: %d is not a QoS", *c.MaxQoS)
	}
	for _, x := range [...]struct {
		name string
		rate float64
	}{{"ConnectRate", c.ConnectRate}, {"ConnectRatePerIP", c.ConnectRatePerIP},
		{"PublishRate", c.PublishRate}, {"PublishBytes", c.PublishBytes},
		{"SlowLinkRate", c.SlowLinkRate}} {
		if math.IsNaN(x.rate) || math.IsInf(x.rate, 0) {
			return fmt.Errorf("dunlin: Config.%s is %v, which is no rate; negative: no limit",
				x.name, x.rate)
		}
	}
	switch {
	case c.Overflow > OverflowDisconnect:
		return fmt.Errorf("dunlin: Config.Overflow is %d, use OverflowDropOldest, "+
			"OverflowDropNewest or OverflowDisconnect", c.Overflow)
	case c.Shared > SharedHashClient:
		return fmt.Errorf("dunlin: Config.Shared is %d, use SharedRoundRobin, SharedSticky, "+
			"SharedHashTopic or SharedHashClient", c.Shared)
	case c.OverRate > OverRateRefusePublish:
		return fmt.Errorf(
			"dunlin: Config.OverRate is %d, use OverRatePauseReading or OverRateRefusePublish",
			c.OverRate)
	case c.EventLoops > EventLoopsOff:
		return fmt.Errorf(
			"dunlin: Config.EventLoops is %d, use EventLoopsAuto, EventLoopsOn or EventLoopsOff",
			c.EventLoops)
	case c.MaxKeepAlive > 65535*time.Second:
		return fmt.Errorf(
			"dunlin: Config.MaxKeepAlive is %v, the most that a Keep Alive can say is 65535 s",
			c.MaxKeepAlive)
	case c.MaxKeepAlive > 0 && c.MaxKeepAlive%time.Second != 0:
		return fmt.Errorf("dunlin: Config.MaxKeepAlive is %v, a Keep Alive is in whole seconds",
			c.MaxKeepAlive)
	}
	c.fill()
	return c.checkResponses()
}

// checkHooks says which hook is nil where none may be.
func (c *Config) checkHooks() error {
	for _, x := range [...]struct {
		name string
		hook any
	}{{"Authenticator", c.Authenticator}, {"Authorizer", c.Authorizer},
		{"Interceptor", c.Interceptor}, {"SubscribeInterceptor", c.SubscribeInterceptor},
		{"DeliveryInterceptor", c.DeliveryInterceptor}} {
		if x.hook == nil {
			continue // the one that must be there has been looked at
		}
		if err := present(x.name, x.hook); err != nil {
			return err
		}
	}
	for method, x := range c.EnhancedAuth {
		if method == "" || len(method) > math.MaxUint16 || !packets.ValidUTF8(method) {
			return fmt.Errorf(
				"dunlin: Config.EnhancedAuth: %q is no Authentication Method: it must be UTF-8 "+
					"without U+0000, of 1 to 65535 bytes",
				cut(method, maxName))
		}
		if err := present(fmt.Sprintf("EnhancedAuth[%q]", method), x); err != nil {
			return err
		}
	}
	return nil
}

// present says that hook is nil, or a nil function, or a combination of package hooks with such a
// member.
func present(name string, hook any) error {
	if v := reflect.ValueOf(hook); !v.IsValid() || v.Kind() == reflect.Func && v.IsNil() {
		return fmt.Errorf("dunlin: Config.%s is nil", name)
	}
	if x, ok := hook.(interface{ HookMembers() []any }); ok {
		for i, m := range x.HookMembers() {
			if err := present(fmt.Sprintf("%s: member %d", name, i), m); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill fills in the defaults.
func (c *Config) fill() {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Observer == nil {
		c.Observer = new(hooks.Observer)
	}
	c.ReceiptProperty = cmp.Or(c.ReceiptProperty, "receipt")
	limitDuration(&c.ConnectTimeout, 10*time.Second)
	limitDuration(&c.WriteTimeout, 30*time.Second)
	limitDuration(&c.MaxKeepAlive, 0)
	limitRate(&c.SlowLinkRate, 0)
	limitDuration(&c.MaxSessionExpiry, 7*24*time.Hour)
	limitDuration(&c.MaxMessageExpiry, 0)
	limitDuration(&c.SysInterval, 0)
	limitDuration(&c.MaxDelay, 0)
	limitDuration(&c.BanTime, 5*time.Minute)
	limitRate(&c.ConnectRate, 50_000)
	limitRate(&c.ConnectRatePerIP, 1_000)
	limit(&c.MaxConnections, 100_000, math.MaxInt32)
	limit(&c.MaxConnecting, 32_768, math.MaxInt32)
	limit(&c.MaxConnectionsPerIP, 10_000, math.MaxInt32)
	limitCount(&c.MaxAuthFailures, 60)
	limitCount(&c.MaxAuthFailuresPerIP, 5*min(c.MaxAuthFailures, math.MaxInt32/5))
	limitCount(&c.MaxTakeovers, 60)
	limit(&c.MaxSessions, 1_000_000, math.MaxInt32)
	limit(&c.MaxPacketSize, 1<<20, maxPacketSize)
	limit(&c.MaxConnectSize, 8<<10, c.MaxPacketSize)
	limit(&c.MaxTopicLength, math.MaxUint16, math.MaxUint16)
	limit(&c.MaxTopicLevels, 128, math.MaxUint16+1)
	limit(&c.MaxWildcardLevels, min(32, c.MaxTopicLevels), c.MaxTopicLevels)
	limit(&c.MaxFilters, 10_000, math.MaxInt32)
	limit(&c.MaxUserProperties, 1_000, math.MaxInt32)
	limit(&c.MaxSubscriptions, 100_000, math.MaxInt32)
	limit(&c.MaxOverlapping, 256, math.MaxInt32)
	limit(&c.ReceiveMaximum, 1024, math.MaxUint16)
	limit(&c.TopicAliasMaximum, 32, math.MaxUint16)
	limit(&c.MaxInflight, 8192, math.MaxUint16)
	limit(&c.MaxQueuedMessages, 16_384, math.MaxInt32)
	limit(&c.MaxQueuedBytes, 16<<20, math.MaxInt)
	limit(&c.MaxOutboundBytes, 2<<20, math.MaxInt)
	limit(&c.MaxUncommittedBytes, 8<<20, math.MaxInt)
	c.MaxEnded, c.MaxDrops = cmp.Or(c.MaxEnded, 1024), cmp.Or(c.MaxDrops, 1024) // negative: none
	limit(&c.MaxRetained, 1_000_000, math.MaxInt32)
	limit(&c.MaxRetainedBytes, 1<<30, math.MaxInt)
	limit(&c.MaxMemory, int(min(defaultMemory(), math.MaxInt)), math.MaxInt)
	c.fillShares()
	if c.DisableTopicAlias {
		c.TopicAliasMaximum = 0
	}
}

// fillShares fills in what one principal may have of what all share.
func (c *Config) fillShares() {
	share := func(n *int, def int) {
		if c.open() {
			def = math.MaxInt
		}
		limit(n, max(def, 1), math.MaxInt)
	}
	share(&c.MaxSessionsPerPrincipal, c.MaxSessions-c.MaxSessions/4)
	share(&c.MaxConnectionsPerPrincipal, c.MaxConnections-c.MaxConnections/4)
	share(&c.MaxSubscriptionsPerPrincipal, c.MaxMemory/2048)
	share(&c.MaxRetainedPerPrincipal, c.MaxRetained-c.MaxRetained/4)
	share(&c.MaxRetainedBytesPerPrincipal, c.MaxRetainedBytes-c.MaxRetainedBytes/4)
	share(&c.MaxQueuedBytesPerPrincipal, c.queuedShare())
	share(&c.MaxDelayedPerPrincipal, 10_000)
	share(&c.MaxKeptBytesPerPrincipal, c.MaxMemory/100*37)
}

// defaultMemory is half of what the runtime has been told to keep within (GOMEMLIMIT), and
// otherwise 4 GiB.
func defaultMemory() int64 {
	if n := debug.SetMemoryLimit(-1); n != math.MaxInt64 {
		return n / 2
	}
	return 4 << 30
}

// queuedPercent is queuedShare in percent of MaxMemory.
const queuedPercent = 50

// queuedShare is how much of MaxMemory the queues of one principal may take.
func (c *Config) queuedShare() int { return c.MaxMemory / 2 }

// open says whether nobody is verified, so that a name is no more than a claim and keeps nobody
// from a Client Identifier.
func (c *Config) open() bool {
	return c.Authenticator == hooks.Authenticator(hooks.AllowAll) && len(c.EnhancedAuth) == 0
}

// checkResponses reports a ResponseInformation with which no topic of a response can begin, the
// limits being known.
func (c *Config) checkResponses() error {
	r := c.ResponseInformation
	const more = 1 + 26 // what Request adds: a level of 26 bytes
	switch {
	case r == "":
		return nil
	case !packets.ValidUTF8(r):
		return errors.New("dunlin: Config.ResponseInformation is not UTF-8, or contains U+0000")
	case strings.ContainsAny(r, "+#"):
		return fmt.Errorf(
			"dunlin: Config.ResponseInformation is %q: topics of responses begin with it, so it "+
				"must have no wildcard", cut(r, maxName))
	case len(r)+more > c.MaxTopicLength:
		return fmt.Errorf(
			"dunlin: Config.ResponseInformation has %d bytes: at most %d leave room for the rest "+
				"of a topic", len(r), c.MaxTopicLength-more)
	case packets.Levels(strings.TrimSuffix(r, "/"))+1 > c.MaxTopicLevels:
		return fmt.Errorf(
			"dunlin: Config.ResponseInformation has so many levels that its topics have more "+
				"than MaxTopicLevels, %d", c.MaxTopicLevels)
	}
	return nil
}

// accepts says whether clients may speak v.
func (c *Config) accepts(v packets.Version) bool {
	if len(c.Versions) == 0 {
		return true
	}
	for _, x := range c.Versions {
		if x == v {
			return true
		}
	}
	return false
}

// maxQoS is the highest QoS that clients may use.
func (c *Config) maxQoS() packets.QoS {
	if c.MaxQoS == nil {
		return packets.QoS2
	}
	return *c.MaxQoS
}

// wholeSeconds returns d, if it is positive, as a Session Expiry Interval: a part of a second
// counts as a whole one, and what the interval cannot say is for ever.
func wholeSeconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(min((d-1)/time.Second+1, noExpiry))
}

// maxExpiry is MaxSessionExpiry as a Session Expiry Interval.
func (c *Config) maxExpiry() uint32 {
	return cmp.Or(wholeSeconds(c.MaxSessionExpiry), noExpiry)
}
