package dunlin

import (
	"cmp"
	"context"
	"errors"
	"time"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is how the program publishes on behalf of somebody else.

// A Publisher is who PublishAs publishes for.
type Publisher struct {
	// Client is what the hooks get. Its Identity says for whom the message counts. The ID may be
	// empty; it need not be that of a Session. A subscription with No Local knows it by the ID.
	Client *hooks.Client
	// Grant is what the Authenticator granted. Its MountPoint and the limits PublishRate,
	// PublishBytes, PacketSize and MaxQoS hold. Nil: those of the Config.
	Grant *hooks.Grant
	// Wait is how long PublishAs waits as PublishWait does, once the message is published. If that
	// is over first the Outcome is that of the moment, and it is no error. Negative: no limit but
	// that of the context. Zero: it does not wait, and of the Outcome only Matched is filled in.
	Wait time.Duration
}

// PublishAs publishes m as p could as a client: past the Bans, the rates, the Authorizer and the
// Interceptor, and within the limits of Config for clients. A rate that is exceeded refuses the
// message, whatever Config.OverRate is. What a client may not publish to is refused: topics that
// begin with "$", except those of Config.SystemTopics. A retained message counts for the principal.
// For the rest see Publish and PublishWait.
//
// The error is one of theirs, or a *packets.Error with the Reason Code that a client of 5.0 would
// get. A message that the Interceptor drops matches nobody, and is no error.
func (b *Broker) PublishAs(ctx context.Context, p Publisher, m *Message) (Outcome, error) {
	g := cmp.Or(p.Grant, new(hooks.Grant))
	if err := b.takes(&p, g, m); err != nil {
		return Outcome{}, err
	}
	out, err := b.decideFor(ctx, &p, g, m)
	switch {
	case errors.Is(err, hooks.ErrDrop):
		return Outcome{}, nil
	case err != nil:
		return Outcome{}, err
	}
	l := local{from: out.From, client: p.Client}
	if p.Client.MountPoint != g.MountPoint {
		c := *p.Client
		c.MountPoint, l.client = g.MountPoint, &c
	}
	if p.Wait != 0 {
		return b.publishWait(ctx, &out.Message, l, p.Wait)
	}
	matched, err := b.publishLocal(ctx, &out.Message, l)
	return Outcome{Matched: matched}, err
}

// takes says why a client like p could not publish m, whatever the hooks say.
func (b *Broker) takes(p *Publisher, g *hooks.Grant, m *Message) error {
	if err := b.checkGrant(g); err != nil {
		return packets.Errorf(packets.NotAuthorized, "%v", err)
	}
	if err := b.sound(m); err != nil {
		return err
	}
	cfg, now := b.cfg(), time.Now()
	most, size := cfg.maxQoS(), cfg.MaxPacketSize
	if l := g.Limits.MaxQoS; l != nil {
		most = min(most, *l)
	}
	if l := g.Limits.PacketSize; l > 0 {
		size = min(size, l)
	}
	w := wire{qos: m.QoS, version: packets.V5}
	n := publishSize(w, len(m.Topic), &message{Message: *m})
	c := p.Client
	ip := guard.RemoteIP(c.RemoteAddr)
	if err := b.barredVisitor(c, now); err != nil {
		return err
	}
	limits := packets.Limits{UserProperties: cfg.MaxUserProperties}
	if err := limits.Check(&packets.Publish{Properties: m.Properties}); err != nil {
		return err
	}
	switch {
	case m.QoS > most:
		return packets.Errorf(packets.QoSNotSupported, "QoS %d, at most %d is accepted", m.QoS,
			most)
	case m.Retain && cfg.DisableRetain:
		return packets.Errorf(packets.RetainNotSupported, "retained messages are not accepted")
	case n > size:
		return packets.Errorf(packets.PacketTooLarge, "%d bytes, at most %d are accepted", n, size)
	case b.reserved(m.Topic):
		q := hooks.AccessRequest{Client: c, Action: hooks.ActionPublish, Topic: m.Topic}
		b.denied(&q, g.MountPoint, errReserved)
		return errReserved
	case cfg.CheckPayloadFormat && saysText(m.Properties) && !utf8.Valid(m.Payload):
		return packets.Errorf(packets.PayloadFormatInvalid, "the payload is not UTF-8")
	}
	owner := "client " + c.ID
	switch {
	case b.names(c) && !cfg.open():
		owner = "principal " + c.Identity.Principal
	case c.ID == "":
		owner = "address " + guard.Network(ip).String()
	}
	if x := b.joinPace(owner, &g.Limits); x != nil {
		defer b.guard.Paces.Leave(x, now)
		if !x.Take(now.UnixNano(), n) {
			return errTooFast
		}
	}
	return nil
}

// decideFor asks the hooks about m, and returns what is to be published.
func (b *Broker) decideFor(
	ctx context.Context, p *Publisher, g *hooks.Grant, m *Message,
) (out *message, err error) {
	c := p.Client
	defer b.survive(c, &err)
	r := hooks.AccessRequest{Client: c, Action: hooks.ActionPublish, Topic: m.Topic, QoS: m.QoS,
		Retain: m.Retain}
	if b.authorizer != nil {
		if err := b.authorize(ctx, &r, g.MountPoint); err != nil {
			return nil, err
		}
	}
	out = &message{Message: *m, From: signature(c.ID, c.Identity.Principal, b.names(c))}
	out.Topic = g.MountPoint + m.Topic
	if b.cfg().Interceptor != nil {
		from := out.From
		if out, err = b.intercept(ctx, &r, c, g.MountPoint, out); err != nil {
			return nil, err
		}
		out = &message{Message: out.Message, From: from}
	}
	if !out.Retain && !b.cfg().SessionPerPrincipal {
		out.From = c.ID
	}
	return out, nil
}
