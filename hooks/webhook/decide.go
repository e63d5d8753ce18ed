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

// maxSeconds bounds the times in answers: a year.
const maxSeconds = 365 * 24 * 3600

// An Authenticator asks a server who may connect.
type Authenticator struct{ *asker }

// NewAuthenticator returns one. It fails if the Options make no sense.
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
	q := connectQuestion{Action: "connect", ClientID: c.ID, Version: byte(c.Version), RemoteIP: remoteIP(c)}
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
	x, err := a.ask(ctx, connecting(r), &q)
	if err == nil {
		err = x.decide(packets.BadUserNameOrPassword)
	}
	if err == nil {
		x.to(r.Grant, x.at)
	}
	return err
}

// connecting says for whom a CONNECT is decided.
func connecting(r *hooks.ConnectRequest) turns.Claim {
	c := turns.Claim{Peer: address(r.Client), Known: r.Known}
	if r.Known || c.Peer == "" {
		c.Peer += " " + r.Connect.Username
	}
	return c
}

// acting says for whom a publish or subscription is decided.
func acting(c *hooks.Client) turns.Claim {
	if c.Identity.Principal != "" {
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

// grant is what an answer may set for a connection.
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
	if min(g.Expires, l.KeepAlive, l.SessionExpiry, l.PublishRate, l.PublishBytes) < 0 || min(l.PacketSize, l.QueuedMessages, l.QueuedBytes) < 0 {
		return errors.New("an answer with a negative limit")
	}
	if g.MountPoint != "" && !packets.ValidTopicName(g.MountPoint) {
		return errors.New("an answer whose mount_point cannot begin a Topic Name")
	}
	return nil
}

// to sets the grant of an answer that came at a time.
func (g *grant) to(r *hooks.Grant, at time.Time) {
	r.Identity = hooks.Identity{Principal: g.Principal, Roles: g.Roles, Tenant: g.Tenant, Attributes: g.Attributes}
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

// seconds makes a Duration of what an answer says: at most a year, and 0 only of what is not
// positive, because a limit of 0 is none.
func seconds(s float64) time.Duration {
	if s <= 0 {
		return 0
	}
	return max(time.Duration(min(s, maxSeconds)*float64(time.Second)), 1)
}

// An Authorizer asks a server what clients may publish and subscribe to. Each question that no kept answer decides makes the client
// wait for the server: rules that are known to the broker (package acl) are better asked first.
type Authorizer struct{ *asker }

// NewAuthorizer returns one. It fails if the Options make no sense.
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
		Action: r.Action.String(), ClientID: c.ID, Roles: c.Identity.Roles, Tenant: c.Identity.Tenant, Attributes: c.Identity.Attributes,
		RemoteIP: remoteIP(c), Topic: r.Topic, Group: r.Group, QoS: r.QoS, Retain: r.Retain, Will: r.Will,
	}
	if user, ok := c.User(); ok {
		q.User = &user
	}
	x, err := a.ask(ctx, acting(c), &q)
	if err != nil {
		return err
	}
	return x.decide(packets.NotAuthorized)
}

var retryStatus = []int{408, 425, 429}

// retry says whether a status may be another one next time.
func retry(status int) bool { return status >= 500 || slices.Contains(retryStatus, status) }
