package webhook

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/turns"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// maxSeconds bounds times in answers: one year.
const maxSeconds = 365 * 24 * 3600

// An Authenticator asks a server which clients may connect.
type Authenticator struct{ asker *asker }

// NewAuthenticator returns an Authenticator. It fails if the Options are invalid.
func NewAuthenticator(o Options) (*Authenticator, error) {
	a, err := newAsker(o, packets.ServerUnavailable)
	if err != nil {
		return nil, err
	}
	return &Authenticator{a}, nil
}

// connectQuestion is the question about a CONNECT.
type connectQuestion struct {
	Action      string       `json:"action"`
	ClientID    string       `json:"client_id"`
	Username    *string      `json:"username,omitempty"`
	Password    *string      `json:"password,omitempty"`
	Binary      []byte       `json:"password_base64,omitempty"`
	Version     byte         `json:"version"`
	RemoteIP    string       `json:"remote_ip,omitempty"`
	Listener    string       `json:"listener,omitempty"`
	Certificate *certificate `json:"certificate,omitempty"`
}

type certificate struct {
	CommonName  string `json:"common_name"`
	Fingerprint string `json:"fingerprint"`
}

// Authenticate asks about r. It blocks until there is an answer or a failure, or ctx ends.
func (a *Authenticator) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	c := r.Client
	q := connectQuestion{Action: "connect", ClientID: c.ID, Version: byte(c.Version),
		RemoteIP: remoteIP(c)}
	if c.LocalAddr != nil {
		q.Listener = c.LocalAddr.String()
	}
	if r.Connect.HasUsername {
		q.Username = &r.Connect.Username
	}
	if r.Connect.HasPassword {
		if utf8.Valid(r.Connect.Password) {
			q.Password = new(string(r.Connect.Password))
		} else {
			q.Binary = r.Connect.Password
		}
	}
	if c.TLS != nil && len(c.TLS.VerifiedChains) > 0 {
		q.Certificate = describe(c.TLS.PeerCertificates[0])
	}
	x, err := a.asker.ask(ctx, connecting(r), &q)
	if err == nil {
		err = x.decide(packets.BadUserNameOrPassword)
	}
	if err == nil {
		x.to(r.Grant, x.at)
	}
	return err
}

// connecting returns the peer of a CONNECT.
func connecting(r *hooks.ConnectRequest) turns.Claim {
	c := turns.Claim{Peer: address(r.Client), Known: r.Known}
	if r.Known || c.Peer == "" {
		c.Peer += " " + r.Connect.Username
	}
	return c
}

// acting returns the peer of a publish or subscription.
func acting(c *hooks.Client) turns.Claim {
	if c.Identity.Principal != "" && !c.Identity.Unverified {
		return turns.Claim{Peer: "principal " + c.Identity.Principal}
	}
	return turns.Claim{Peer: address(c)}
}

func address(c *hooks.Client) string {
	ip, ok := c.Network()
	if !ok {
		return ""
	}
	return ip.String()
}

func describe(c *x509.Certificate) *certificate {
	return &certificate{c.Subject.CommonName, auth.Fingerprint(c)}
}

func remoteIP(c *hooks.Client) string {
	if c.RemoteAddr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(c.RemoteAddr.String())
	if err != nil {
		return ""
	}
	return host
}

// grant holds the settings of an answer for a connection.
type grant struct {
	Principal  string            `json:"principal"`
	Roles      []string          `json:"roles"`
	Tenant     string            `json:"tenant"`
	Attributes map[string]string `json:"attributes"`
	MountPoint string            `json:"mount_point"`
	Expires    float64           `json:"expires_seconds"`
	Limits     struct {
		ReceiveMaximum uint16  `json:"receive_maximum"`
		PacketSize     int     `json:"packet_size"`
		KeepAlive      float64 `json:"keep_alive_seconds"`
		SessionExpiry  float64 `json:"session_expiry_seconds"`
		QueuedMessages int     `json:"queued_messages"`
		QueuedBytes    int     `json:"queued_bytes"`
		PublishRate    float64 `json:"publish_rate"`
		PublishBytes   float64 `json:"publish_bytes"`
	} `json:"limits"`
}

func (g *grant) check() error {
	l := &g.Limits
	if min(g.Expires, l.KeepAlive, l.SessionExpiry, l.PublishRate, l.PublishBytes) < 0 ||
		min(l.PacketSize, l.QueuedMessages, l.QueuedBytes) < 0 {
		return errors.New("an answer with a negative limit")
	}
	if g.MountPoint != "" && !packets.ValidTopicName(g.MountPoint) {
		return errors.New("an answer whose mount_point cannot begin a Topic Name")
	}
	return nil
}

// to copies the settings of an answer, which arrived at the given time, to a Grant.
func (g *grant) to(r *hooks.Grant, at time.Time) {
	r.Identity = hooks.Identity{Principal: g.Principal, Roles: g.Roles, Tenant: g.Tenant,
		Attributes: g.Attributes}
	r.MountPoint = g.MountPoint
	if g.Expires > 0 {
		r.Expires = at.Add(seconds(g.Expires))
	}
	r.Limits = hooks.Limits{
		ReceiveMaximum: g.Limits.ReceiveMaximum, PacketSize: g.Limits.PacketSize,
		KeepAlive: seconds(g.Limits.KeepAlive), SessionExpiry: seconds(g.Limits.SessionExpiry),
		QueuedMessages: g.Limits.QueuedMessages, QueuedBytes: g.Limits.QueuedBytes,
		PublishRate: g.Limits.PublishRate, PublishBytes: g.Limits.PublishBytes,
	}
}

// seconds converts the seconds of an answer to a Duration of at most a year. Only a value that is
// not positive gives 0, because a limit of 0 means no limit.
func seconds(s float64) time.Duration {
	if s <= 0 {
		return 0
	}
	return max(time.Duration(min(s, maxSeconds)*float64(time.Second)), 1)
}

// An Authorizer asks a server what clients may publish and subscribe to. If no cached answer
// decides a question, the client waits for the server. If the broker can know the rules itself
// (package acl), let it check them first.
type Authorizer struct{ asker *asker }

// NewAuthorizer returns an Authorizer. It fails if the Options are invalid.
func NewAuthorizer(o Options) (*Authorizer, error) {
	a, err := newAsker(o, packets.ImplementationSpecificError)
	if err != nil {
		return nil, err
	}
	return &Authorizer{a}, nil
}

// accessQuestion is the question about a publish or subscription.
type accessQuestion struct {
	Action     string            `json:"action"`
	ClientID   string            `json:"client_id"`
	User       *string           `json:"user,omitempty"`
	Roles      []string          `json:"roles,omitempty"`
	Tenant     string            `json:"tenant,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	RemoteIP   string            `json:"remote_ip,omitempty"`
	Topic      string            `json:"topic"`
	Group      string            `json:"group,omitempty"`
	QoS        packets.QoS       `json:"qos"`
	Retain     bool              `json:"retain,omitempty"`
	Will       bool              `json:"will,omitempty"`
}

// Authorize asks about r. It blocks until there is an answer or a failure, or ctx ends.
func (a *Authorizer) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	c := r.Client
	q := accessQuestion{
		Action: r.Action.String(), ClientID: c.ID, Roles: c.Identity.Roles,
		Tenant: c.Identity.Tenant, Attributes: c.Identity.Attributes,
		RemoteIP: remoteIP(c), Topic: r.Topic, Group: r.Group, QoS: r.QoS, Retain: r.Retain,
		Will: r.Will,
	}
	if user, ok := c.User(); ok {
		q.User = &user
	}
	x, err := a.asker.ask(ctx, acting(c), &q)
	if err != nil {
		return err
	}
	return x.decide(packets.NotAuthorized)
}

var retryStatus = []int{408, 425, 429}

// retry says whether another attempt may get a different status.
func retry(status int) bool { return status >= 500 || slices.Contains(retryStatus, status) }
