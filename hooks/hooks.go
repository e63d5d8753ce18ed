// Package hooks holds the interfaces through which a program decides what a Dunlin broker allows,
// and learns what happens in it.
//
// Decisions are one-method interfaces with Func adapters. A decision is an error:
//
//   - nil allows.
//   - [ErrAbstain] (also wrapped) means no opinion. A combination asks its next member. If all
//     abstain, the broker refuses.
//   - A *packets.Error refuses with its Reason Code, in the packet that the standard has for it. If
//     that packet cannot have the code, or the code is below 0x80, the broker sends Not authorized
//     (0x87). Clients of 5.0 that ask for Problem Information receive the Reason: at most 1,024
//     bytes, as UTF-8 without control characters.
//   - Any other error is logged and refuses with Not authorized (0x87).
//
// PUBACK and PUBREC have no Reason Code before 5.0. In these versions the broker acknowledges a
// PUBLISH even if a hook refuses it with Not authorized (0x87), Topic Name invalid (0x90) or
// Payload format invalid (0x99). After any other code, or if the hook has failed, the broker closes
// the connection, so that the client sends the message again.
//
// Every call gets a context that ends with the Network Connection. The broker calls a hook on the
// goroutine that reads the connection: a slow decision delays that client and no other. A panic
// ends that one connection.
//
// The broker also asks some questions while no connection waits for the answer: about a Will that
// is due while its client is away, about subscriptions after the rules have changed, and about a
// delivery to another client. A panic refuses these requests. Each due Will is decided on a
// goroutine of its own, up to 256 at a time: a slow decision delays only that Will.
//
// A hook cannot wait for the end of the broker, because the broker waits for the hook. If a hook
// calls Close or Shutdown of the broker, they return an error with dunlin.ErrStillClosing at once,
// and the broker ends when the hook has returned. A hook must not wait for another goroutine that
// calls them, either.
//
// Events are the optional functions of an [Observer]. A panic in one of them affects no client.
//
// Every panic is counted (dunlin.Stats.Panics), logged with its stack, and reported to
// [Observer].Panicked.
package hooks

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// ErrAbstain is the decision of a hook that has no opinion.
var ErrAbstain = errors.New("hooks: no opinion")

// A Client describes the Network Connection and Session of a hook call. Hooks may keep it, but must
// not modify it. The program itself appears as a Client without addresses. Only an [Observer] sees
// that one: the broker does not ask other hooks about the program.
type Client struct {
	// ID is the Client Identifier, whether the client or the broker chose it.
	ID string
	// Username is the User Name of the CONNECT; HasUsername tells an absent one from an empty one.
	Username    string
	HasUsername bool
	// Version is the protocol version.
	Version packets.Version
	// Bridge is true for a bridge of Mosquitto, or another one that sets the bridge bit in the
	// Protocol Level of 3.1 or 3.1.1. All its subscriptions have No Local and Retain As Published,
	// so that a message does not come back to it.
	Bridge bool
	// CleanStart is the flag of the CONNECT (Clean Session before 5.0). KeepAlive is the Keep Alive
	// that the client asked for, in seconds.
	CleanStart bool
	KeepAlive  uint16
	// RemoteAddr and LocalAddr are the addresses of the net.Conn.
	RemoteAddr, LocalAddr net.Addr
	// TLS is the state of the handshake, nil if the net.Conn has no ConnectionState method.
	TLS *tls.ConnectionState
	// Listener describes the listener that accepted the connection: it is the pointer given to
	// ServeListener of the broker. It is nil if the program used Serve or ServeConn, and for a
	// client that has not connected since the broker started.
	Listener *Listener
	// Properties are the properties of the CONNECT packet (3.1.2.11), nil before MQTT 5.0.
	Properties packets.Properties
	// MountPoint is the MountPoint of the Grant, empty until there is one.
	MountPoint string
	// Identity is the result of the Authenticator.
	Identity Identity
}

// A Listener describes one of several listeners of a broker, so that hooks can decide by it. See
// ServeListener of the broker. It must not be modified after that call.
type Listener struct {
	// Name is for hooks and logs. The broker does not look at it.
	Name string
	// MaxConnections bounds the open connections of the listener. The broker closes a connection
	// above the bound before it reads anything. Zero and negative: only the limits of the broker's
	// Config hold.
	MaxConnections int
}

// An Identity says who a client is, after authentication.
type Identity struct {
	// Principal owns the Sessions that this client creates: another principal can neither take them
	// over nor resume them. Empty: the User Name.
	Principal string
	// Unverified says that the Authenticator has not verified the User Name, which is then no more
	// than a claim. The broker ignores it if the Authenticator sets Principal. Otherwise the client
	// counts as one without a name for all limits, owns nothing of the principal of that name, and
	// its Session keeps nobody else from its Client Identifier. Rules see the name.
	Unverified bool
	// Roles and Tenant are for the Authorizer; the broker does not use them.
	Roles  []string
	Tenant string
	// Attributes are further facts, for instance the claims of a token.
	Attributes map[string]string
}

// A Grant holds the settings of an Authenticator for a connection that it accepts. The zero value
// changes nothing.
type Grant struct {
	Identity Identity
	// Limits lower (never raise) the limits of the broker's Config for this connection. Zero: as
	// configured.
	Limits Limits
	// MountPoint is put in front of every Topic Name and Topic Filter of the client, and removed
	// from topics sent to it. The client does not see it. End it with a slash, as in "tenants/7/":
	// without the slash the client's topic "0" would be in "tenants/70". It must be a Topic Name
	// that does not begin with "$", at most half as long as Config.MaxTopicLength; otherwise the
	// broker refuses the client. The broker does not change a Response Topic, which is a property.
	// Request and Respond of the Broker take the mount point into account; other in-process
	// subscribers see it without the mount point.
	MountPoint string
	// ClientID takes the place of the Client Identifier of the CONNECT. The client is not told,
	// unless its own was empty (3.2.2.3.7). It must be UTF-8 without U+0000, of at most 65,535
	// bytes, and must not begin with "$local/"; otherwise the client is refused. Empty: as the
	// client asks.
	ClientID string
	// Subscriptions are made for the Session by the server. Nil leaves those that an earlier
	// CONNECT has brought; otherwise they take the place of these. They last as long as the
	// Session, and do not count for the limits of the client. See also SubscribeClient of the
	// broker. A Topic Filter that is not valid, or too long for the Config, refuses the client.
	Subscriptions []Subscription
	// ConnackProperties go into the CONNACK for a client of 5.0, beside those of the broker. They
	// may be Response Information, which replaces that of Config, a Reason String, and User
	// Properties. With any other property the broker refuses the client: it sets those itself, by
	// Limits for instance. Response Information is sent only to a client that has asked for it
	// (3.1.2.11.6), and a Reason String only to a client that has not declined it (3.1.2.11.7). The
	// broker adds them in this order, and leaves out each one with which the packet would exceed
	// the client's Maximum Packet Size. They are not sent with a refusal: see UserProperties and
	// ServerReference of packets.Error. Nil: none.
	ConnackProperties packets.Properties
	// Expires is when the client has to authenticate anew (5.0, where an Authentication Method is
	// in use) or else is disconnected with Maximum connect time (0xA0). Zero: never.
	Expires time.Time
}

// Limits are the limits of one connection. A field that is zero or negative leaves the limit of the
// broker's Config. A value above the largest that MQTT can express counts as that largest value. A
// rate that is NaN or infinite refuses the client, as Config refuses it.
type Limits struct {
	// ReceiveMaximum is how many QoS 1 and 2 publishes of the client may be unacknowledged
	// (3.2.2.3.3).
	ReceiveMaximum uint16
	// PacketSize is the largest packet accepted from the client, in bytes (3.2.2.3.6).
	PacketSize int
	// KeepAlive is the longest Keep Alive; a client that asks for more, or for none, gets this
	// (3.2.2.3.14).
	KeepAlive time.Duration
	// SessionExpiry is the longest Session Expiry Interval (3.2.2.3.2).
	SessionExpiry time.Duration
	// QueuedMessages and QueuedBytes bound the Session's queue.
	QueuedMessages, QueuedBytes int
	// PublishRate and PublishBytes are the sustained Application Messages and their bytes per
	// second; a second's worth may come at once.
	PublishRate, PublishBytes float64
	// MaxQoS is the highest QoS that the client may publish with and is granted (3.2.2.3.4). Nil
	// leaves it as Config has it.
	MaxQoS *packets.QoS
	// TopicAliasMaximum is the highest Topic Alias, in both directions (3.2.2.3.8).
	// DisableTopicAlias allows none.
	TopicAliasMaximum uint16
	DisableTopicAlias bool

	// The next seven bound the principal, over all its Sessions. They lower the fields of Config
	// whose names end in PerPrincipal. The grant of the most recent connection holds for all.

	// Sessions is how many Sessions the principal may have, connected or not.
	Sessions int
	// Connections is how many accepted connections the principal may have.
	Connections int
	// Subscriptions is how many subscriptions the principal may have. A subscription counts once
	// more for each 128 bytes of its filter, and for each 8 levels if the filter has wildcards.
	Subscriptions int
	// Retained and RetainedBytes bound the retained messages that the principal has published.
	Retained, RetainedBytes int
	// AllQueuedBytes bounds the messages in the queues of all its Sessions together, including
	// those that its clients have not acknowledged.
	AllQueuedBytes int
	// KeptBytes bounds the memory that the retained messages, the subscriptions, the Sessions and
	// the connections of the principal take together.
	KeptBytes int
}

// A ConnectRequest asks whether a client may connect.
type ConnectRequest struct {
	Client *Client
	// Connect is the packet, password included. It is valid only during the call.
	Connect *packets.Connect
	// Grant is for the Authenticator to fill in. It is never nil.
	Grant *Grant
	// Known is true if a client with the same User Name was accepted from the same address (see
	// Client.Network) before. It proves nothing. It helps an Authenticator that must choose which
	// client to serve first. It is false without a User Name, and after a restart of the broker.
	Known bool
}

// An Authenticator decides a CONNECT. If it returns nil, the broker accepts the connection with the
// contents of r.Grant.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type Authenticator interface {
	Authenticate(ctx context.Context, r *ConnectRequest) error
}

// AuthenticatorFunc makes a function an Authenticator.
type AuthenticatorFunc func(ctx context.Context, r *ConnectRequest) error

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(ctx context.Context, r *ConnectRequest) error {
	return f(ctx, r)
}

type allowAll struct{}

func (allowAll) Authenticate(_ context.Context, r *ConnectRequest) error {
	if r.Grant != nil {
		r.Grant.Identity.Unverified = true
	}
	return nil
}

func (allowAll) Authorize(context.Context, *AccessRequest) error { return nil }

// AllowAll accepts every client and allows every publish and subscription. It is both an
// Authenticator and an Authorizer. It grants an Unverified Identity.
var AllowAll interface {
	Authenticator
	Authorizer
	Stable
} = allowAll{}

// An EnhancedAuthenticator runs the exchange of one Authentication Method (4.12): at CONNECT, and
// again whenever the client re-authenticates. On re-authentication r.Connect is nil and the
// identity must stay that of r.Client. Of the Grant only Identity and Expires count then; the rest
// stays as it was.
//
// Start and each Next of one exchange get the same context. It also ends after ConnectTimeout of
// the broker's Config, which counts from the start of the connection or of the re-authentication.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type EnhancedAuthenticator interface {
	Start(ctx context.Context, r *ConnectRequest) (Exchange, error)
}

// EnhancedAuthenticatorFunc makes a function an EnhancedAuthenticator.
type EnhancedAuthenticatorFunc func(ctx context.Context, r *ConnectRequest) (Exchange, error)

// Start calls f.
func (f EnhancedAuthenticatorFunc) Start(ctx context.Context, r *ConnectRequest) (Exchange, error) {
	return f(ctx, r)
}

// An Exchange is one authentication in progress. The broker calls Next with the Authentication Data
// of the CONNECT (nil if it had none) and of each AUTH that follows. While done is false, the reply
// goes to the client in an AUTH packet. With done, it goes in the CONNACK or in the last AUTH. The
// data is valid only during the call. An error refuses the client.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type Exchange interface {
	Next(ctx context.Context, data []byte) (reply []byte, done bool, err error)
}

// Action is the action in an AccessRequest.
type Action byte

const (
	// ActionPublish: AccessRequest.Topic is a Topic Name.
	ActionPublish Action = iota + 1
	// ActionSubscribe: AccessRequest.Topic is a Topic Filter. For a shared subscription it is the
	// filter after the Share Name.
	ActionSubscribe
	// ActionDeliver: AccessRequest.Topic is a Topic Name. The broker asks only a DeliveryAuthorizer
	// about it.
	ActionDeliver
)

// String returns "publish", "subscribe" or "deliver".
func (a Action) String() string {
	switch a {
	case ActionSubscribe:
		return "subscribe"
	case ActionDeliver:
		return "deliver"
	}
	return "publish"
}

// An AccessRequest asks whether a client may publish to a topic or subscribe to a filter. It is
// valid only during the call. Topics are as the client wrote them, with aliases resolved and
// without the mount point.
type AccessRequest struct {
	Client *Client
	Action Action
	Topic  string
	// Group is the ShareName of a shared subscription, otherwise empty.
	Group string
	QoS   packets.QoS
	// For a publish, Retain is true if the message is to be retained, and Will is true if it is a
	// Will.
	Retain, Will bool
}

// An Authorizer decides each publish and each Topic Filter of a SUBSCRIBE. It should allow a filter
// only if the client may read every topic that the filter can match: the broker does not ask again
// about deliveries.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type Authorizer interface {
	Authorize(ctx context.Context, r *AccessRequest) error
}

// A DeliveryAuthorizer is an Authorizer that also decides each delivery. It serves rules that
// cannot be compared with Topic Filters. The broker asks before it sends a message to a client;
// this includes retained and queued messages. It keeps the decision for that Session and topic
// until the client connects again, authenticates again, or the rules change (see [Reloader]). A
// refused message is dropped with DropNotAuthorized; a shared subscription gives it to another
// member.
//
// The broker calls AuthorizeDelivery with ActionDeliver and no QoS or Retain. For the members of a
// shared subscription it calls it on the publisher's goroutine, which waits. For others it uses a
// goroutine of its own: only what waits for the one client is held up. It should answer from
// memory. A panic refuses.
//
// A combination of Authorizers is a DeliveryAuthorizer if one of its members is: see
// [ChainAuthorizers]. If your own Authorizer wraps a DeliveryAuthorizer, it must have the method as
// well. Otherwise nothing decides the deliveries that the wrapped one wanted to check.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type DeliveryAuthorizer interface {
	Authorizer
	AuthorizeDelivery(ctx context.Context, r *AccessRequest) error
}

// AuthorizerFunc makes a function an Authorizer.
type AuthorizerFunc func(ctx context.Context, r *AccessRequest) error

// Authorize calls f.
func (f AuthorizerFunc) Authorize(ctx context.Context, r *AccessRequest) error { return f(ctx, r) }

// ErrDrop is the error of an Interceptor that drops a message silently: the publisher gets the
// acknowledgement of success. From a DeliveryInterceptor it drops the message for one client.
var ErrDrop = errors.New("hooks: message dropped")

// An Interceptor sees each Application Message, Wills included, before it is routed or retained. It
// returns m, another message in its place, or an error. An error refuses the message, and the
// publisher is told in the packet of its QoS. The Interceptor must not modify m. Topics include the
// mount point, and must stay under it. The broker checks the returned message: its topic must not
// begin with "$". If its topic or Retain differs, the message is authorized again.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type Interceptor interface {
	Intercept(ctx context.Context, c *Client, m *packets.Message) (*packets.Message, error)
}

// A SubscribeInterceptor sees each subscription of a SUBSCRIBE before the Authorizer. It returns s,
// another subscription in its place, or an error, which refuses this subscription in the SUBACK. It
// must not modify s. The filter is as the client wrote it: without the mount point, and with
// "$share/" and the ShareName. The returned filter has the same form, and must be a valid Topic
// Filter within the limits of the broker's Config. The returned QoS must not be higher than the
// client has asked for. Otherwise the broker refuses the subscription with Not authorized (0x87).
//
// The Authorizer then decides about the returned subscription, and the Session gets that one: see
// "Subscriptions that a hook changes" in docs/hooks.md. The broker calls the SubscribeInterceptor
// for a SUBSCRIBE and for Broker.MayRead. It does not call it for subscriptions of the server or of
// the program, or when a Session is resumed or the rules change.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type SubscribeInterceptor interface {
	InterceptSubscribe(ctx context.Context, c *Client,
		s *packets.Subscription) (*packets.Subscription, error)
}

// SubscribeInterceptorFunc makes a function a SubscribeInterceptor.
type SubscribeInterceptorFunc func(ctx context.Context, c *Client,
	s *packets.Subscription) (*packets.Subscription, error)

// InterceptSubscribe calls f.
func (f SubscribeInterceptorFunc) InterceptSubscribe(ctx context.Context, c *Client,
	s *packets.Subscription) (*packets.Subscription, error) {
	return f(ctx, c, s)
}

// A DeliveryInterceptor sees each Application Message before it is sent to a client: live, queued
// and retained messages, Wills, and messages that are sent again. It returns m, another message in
// its place, or an error. An error drops the message for this client alone, with DropIntercepted;
// any error other than [ErrDrop] is logged. The returned message must have the Topic, QoS and
// Retain of m: only its Payload and Properties may differ. It must not have a Topic Alias or
// Subscription Identifier. What is left of the Message Expiry Interval is that of m.
//
// The interceptor must not modify m, which all receivers share. The broker keeps what it returns.
// The topic includes the mount point.
//
// The broker calls it on a goroutine of its own, for one client one call after the other. So a slow
// interceptor holds up only what waits for this client, in its queue and within the limits of the
// queue. The context ends with the connection; then the broker throws away what the call returns,
// and asks again on the next connection. A message at QoS 1 or 2 may therefore be seen several
// times. A panic drops the message.
//
// It is not called for the program's own Subscriptions, such as those of a bridge.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type DeliveryInterceptor interface {
	InterceptDelivery(ctx context.Context, c *Client, m *packets.Message) (*packets.Message, error)
}

// DeliveryInterceptorFunc makes a function a DeliveryInterceptor.
type DeliveryInterceptorFunc func(ctx context.Context, c *Client,
	m *packets.Message) (*packets.Message, error)

// InterceptDelivery calls f.
func (f DeliveryInterceptorFunc) InterceptDelivery(ctx context.Context, c *Client,
	m *packets.Message) (*packets.Message, error) {
	return f(ctx, c, m)
}

// InterceptorFunc makes a function an Interceptor.
type InterceptorFunc func(ctx context.Context, c *Client, m *packets.Message) (*packets.Message,
	error)

// Intercept calls f.
func (f InterceptorFunc) Intercept(ctx context.Context, c *Client,
	m *packets.Message) (*packets.Message, error) {
	return f(ctx, c, m)
}
