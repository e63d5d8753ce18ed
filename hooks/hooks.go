// Package hooks holds the interfaces through which a program decides what a Dunlin broker allows, and is told what
// happens in it.
//
// Decisions are one-method interfaces with Func adapters. A decision is an error:
//
//   - nil allows.
//   - [ErrAbstain] (also wrapped) means no opinion; who combines decisions asks the next, and if all abstain the answer is no.
//   - a *packets.Error refuses with its Reason Code, which goes out in the packet that the standard has for it. A code that this packet
//     cannot have, or one below 0x80, which stands for no failure, goes out as Not authorized (0x87). Its Reason is told to clients of 5.0 that
//     want such: at most 1,024 bytes of it, made UTF-8 without control characters.
//   - any other error is logged and refuses with Not authorized (0x87).
//
// PUBACK and PUBREC have no Reason Code before 5.0. There, a PUBLISH that is refused with Not authorized (0x87), Topic Name
// invalid (0x90) or Payload format invalid (0x99) is acknowledged all the same. With any other code, and if the hook has failed,
// the connection ends, so that the client sends the message again.
//
// Every call gets a context that ends with the Network Connection. Calls are made on the goroutine that reads the
// connection: a slow decision delays that client and nobody else. A panic there ends that one
// connection.
//
// Some questions come up when no connection waits for the answer: about a Will that is due while
// its client is away, about subscriptions after the rules have changed, and about a delivery to
// another client. A panic refuses those. Wills that are due are decided on goroutines of their own,
// up to 256 at a time: a slow decision delays that Will alone.
//
// No hook can wait for the end of the broker, which waits for the hook. Close and Shutdown of the broker know when a hook calls them: they
// return an error with dunlin.ErrStillClosing at once, and the broker ends when the hook has returned. A hook must not wait for another
// goroutine that calls them, either.
//
// Events are the optional functions of an [Observer]. A panic of one of them changes nothing for any client.
//
// Every panic is counted (dunlin.Stats.Panics), logged with its stack, and told to [Observer].Panicked.
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

// A Client describes the Network Connection and Session that a hook is called for. Hooks must not modify it, and may
// keep it. The program itself is described by a Client without addresses: to an [Observer], as no other hook is asked about it.
type Client struct {
	// ID is the Client Identifier; one that the broker assigned included.
	ID string
	// Username is the User Name of the CONNECT; HasUsername tells an absent one from an empty one.
	Username    string
	HasUsername bool
	// Version is the protocol version.
	Version packets.Version
	// RemoteAddr and LocalAddr are those of the net.Conn.
	RemoteAddr, LocalAddr net.Addr
	// TLS is the state of the handshake, nil where the net.Conn has no ConnectionState method.
	TLS *tls.ConnectionState
	// Properties are those of the CONNECT packet (3.1.2.11), nil before MQTT 5.0.
	Properties packets.Properties
	// Identity is what the Authenticator made of the client.
	Identity Identity
}

// An Identity is who a client was found to be.
type Identity struct {
	// Principal owns the Sessions that this client makes: another principal neither takes them over nor resumes them.
	// Empty: the User Name.
	Principal string
	// Roles and Tenant are free for the Authorizer's use.
	Roles  []string
	Tenant string
	// Attributes are further facts, for instance the claims of a token.
	Attributes map[string]string
}

// A Grant is what an Authenticator may set for a connection that it accepts. The zero value changes nothing.
type Grant struct {
	Identity Identity
	// Limits lower (never raise) the limits of the broker's Config for this connection. Zero: as configured.
	Limits Limits
	// MountPoint is put in front of every Topic Name and Topic Filter of the client, and taken off what it is sent.
	// The client does not see it. For instance "tenants/7/", with the slash, or else the topic "0" would be in
	// "tenants/70". It must be a Topic Name that does not begin with "$", at most half as long as
	// Config.MaxTopicLength; otherwise the client is refused. A Response Topic is a property, and left as it is: Request and Respond of the
	// Broker know what a client with a mount point means by it, other in-process subscribers see it without the mount point.
	MountPoint string
	// Expires is when the client has to authenticate anew (5.0, where an Authentication Method is in use) or else is
	// disconnected with Maximum connect time (0xA0). Zero: never.
	Expires time.Time
}

// Limits of one connection. Zero, and a negative value, leaves each as the broker's Config has it. What is more than a packet of
// MQTT can say is taken for the most that one can. A rate that is no number, or infinite, refuses the client, as Config refuses it.
type Limits struct {
	// ReceiveMaximum is how many QoS 1 and 2 publishes of the client may be unacknowledged (3.2.2.3.3).
	ReceiveMaximum uint16
	// PacketSize is the largest packet accepted from the client, in bytes (3.2.2.3.6).
	PacketSize int
	// KeepAlive is the longest Keep Alive; a client that asks for more, or for none, gets this (3.2.2.3.14).
	KeepAlive time.Duration
	// SessionExpiry is the longest Session Expiry Interval (3.2.2.3.2).
	SessionExpiry time.Duration
	// QueuedMessages and QueuedBytes bound the Session's queue.
	QueuedMessages, QueuedBytes int
	// PublishRate and PublishBytes are the sustained Application Messages and their bytes per second; a second's
	// worth may come at once.
	PublishRate, PublishBytes float64
}

// A ConnectRequest is the question whether a client may connect.
type ConnectRequest struct {
	Client *Client
	// Connect is the packet, password included. It is valid only during the call.
	Connect *packets.Connect
	// Grant is for the Authenticator to fill in. Never nil.
	Grant *Grant
	// Known says that a client with the same User Name was accepted from the same address (see
	// Client.Network) before. It proves nothing. It is for Authenticators that must choose whom to
	// serve first. False where there is no User Name, and after a restart of the broker.
	Known bool
}

// An Authenticator decides a CONNECT. On nil the connection is accepted with what was put into r.Grant.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type Authenticator interface {
	Authenticate(ctx context.Context, r *ConnectRequest) error
}

// AuthenticatorFunc is a function that is an Authenticator.
type AuthenticatorFunc func(ctx context.Context, r *ConnectRequest) error

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(ctx context.Context, r *ConnectRequest) error {
	return f(ctx, r)
}

type allowAll struct{}

func (allowAll) Authenticate(context.Context, *ConnectRequest) error { return nil }
func (allowAll) Authorize(context.Context, *AccessRequest) error     { return nil }

// AllowAll accepts every client and allows every publish and subscription. It is both an Authenticator and an
// Authorizer.
var AllowAll = allowAll{}

// An EnhancedAuthenticator runs the exchange of one Authentication Method (4.12): at CONNECT, and again whenever the
// client re-authenticates. On re-authentication r.Connect is nil and the identity must stay that of r.Client; of the Grant its
// Identity and Expires count, and the rest stays as it was.
//
// The context of Start and of each Next is one for the whole exchange. It also ends when ConnectTimeout of the broker's Config is over,
// which counts from the beginning of the connection, or from the beginning of the re-authentication.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type EnhancedAuthenticator interface {
	Start(ctx context.Context, r *ConnectRequest) (Exchange, error)
}

// EnhancedAuthenticatorFunc is a function that is an EnhancedAuthenticator.
type EnhancedAuthenticatorFunc func(ctx context.Context, r *ConnectRequest) (Exchange, error)

// Start calls f.
func (f EnhancedAuthenticatorFunc) Start(ctx context.Context, r *ConnectRequest) (Exchange, error) {
	return f(ctx, r)
}

// An Exchange is one authentication under way. Next is called with the Authentication Data of the CONNECT (nil if it had
// none) and of each AUTH that follows. Until done, the reply goes to the client in an AUTH packet; with done, in the
// CONNACK or the closing AUTH. The data is valid only during the call. An error refuses the client.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type Exchange interface {
	Next(ctx context.Context, data []byte) (reply []byte, done bool, err error)
}

// Action is what an Authorizer is asked about.
type Action byte

const (
	// Publish: AccessRequest.Topic is a Topic Name.
	Publish Action = iota + 1
	// Subscribe: AccessRequest.Topic is a Topic Filter, of a shared subscription the inner one.
	Subscribe
	// Deliver: AccessRequest.Topic is a Topic Name. Only a DeliveryAuthorizer is asked about it.
	Deliver
)

// String returns "publish", "subscribe" or "deliver".
func (a Action) String() string {
	switch a {
	case Subscribe:
		return "subscribe"
	case Deliver:
		return "deliver"
	}
	return "publish"
}

// An AccessRequest is the question whether a client may publish to a topic or subscribe to a filter. It is valid only
// during the call. Topics are as the client wrote them, aliases resolved, without the mount point.
type AccessRequest struct {
	Client *Client
	Action Action
	Topic  string
	// Group is the ShareName of a shared subscription, empty otherwise.
	Group string
	QoS   packets.QoS
	// Retain and Will tell, for a publish, that the message is to be retained and that it is a Will.
	Retain, Will bool
}

// An Authorizer decides each publish and each Topic Filter of a SUBSCRIBE. A filter must be allowed only if every topic that
// it can match may be read: deliveries are not asked about again.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type Authorizer interface {
	Authorize(ctx context.Context, r *AccessRequest) error
}

// A DeliveryAuthorizer is an Authorizer that decides each delivery as well: for rules that Topic Filters cannot be held
// against. The broker asks before it sends a message to a client, retained and queued ones included, and keeps the decision for that
// Session and topic until the client connects anew, authenticates anew, or the rules change (see [Reloader]). What is refused is dropped
// with DropNotAuthorized; of a shared subscription another member gets it.
//
// AuthorizeDelivery is called on the goroutine of whoever publishes, with Action Deliver and no QoS or Retain: it must answer from
// memory. A panic of it refuses.
//
// Combinations of Authorizers are DeliveryAuthorizers if one of theirs is: see [ChainAuthorizers]. An Authorizer of your own around another
// one must have the method as well, or what the other one left to the delivery is decided by nobody.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type DeliveryAuthorizer interface {
	Authorizer
	AuthorizeDelivery(ctx context.Context, r *AccessRequest) error
}

// AuthorizerFunc is a function that is an Authorizer.
type AuthorizerFunc func(ctx context.Context, r *AccessRequest) error

// Authorize calls f.
func (f AuthorizerFunc) Authorize(ctx context.Context, r *AccessRequest) error { return f(ctx, r) }

// ErrDrop is returned by an Interceptor that takes a message out of the broker without telling its publisher, who gets
// the acknowledgement of success.
var ErrDrop = errors.New("hooks: message dropped")

// An Interceptor sees each Application Message, Wills included, before it is routed or retained. It returns m, another
// message in its place, or an error that refuses it: the publisher is told in the packet that its QoS has for that. It must
// not modify m. Topics are with the mount point, under which they must stay. What it returns is checked, may not begin with "$", and is
// authorized again if its topic or Retain differs.
//
// It cannot wait for Close or Shutdown of the broker: see the package.
type Interceptor interface {
	Intercept(ctx context.Context, c *Client, m *packets.Message) (*packets.Message, error)
}

// InterceptorFunc is a function that is an Interceptor.
type InterceptorFunc func(ctx context.Context, c *Client, m *packets.Message) (*packets.Message, error)

// Intercept calls f.
func (f InterceptorFunc) Intercept(ctx context.Context, c *Client, m *packets.Message) (*packets.Message, error) {
	return f(ctx, c, m)
}
