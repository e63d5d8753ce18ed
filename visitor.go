package dunlin

import (
	"context"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is how the program lets in a client that comes by another way than MQTT, and asks what
// it may read. PublishAs is how such a client publishes.

// Authenticate asks Config.Authenticator about a client that comes by another way than MQTT, such
// as a request over HTTP. It does so as for a CONNECT: banned clients and addresses are refused, a
// failure counts in MaxAuthFailures and MaxAuthFailuresPerIP, the Authenticator has ConnectTimeout,
// and Observer.Refused is told of a refusal. A connection is not counted.
//
// r has the Client, without its Identity, and the Connect, whose fields agree with it. r.Grant may
// be nil. If the error is nil, r.Grant is filled in, and so are the Identity of r.Client and, if
// the Grant has one, its ID. The Grant's Subscriptions are for the caller to look at, or not.
//
// The error is ErrBrokerClosed or a *packets.Error.
func (b *Broker) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	if b.isClosed() {
		return ErrBrokerClosed
	}
	err := b.authenticateVisitor(ctx, r)
	if err == nil {
		return nil
	}
	code := packets.CodeOf(err)
	b.stats.refused[code].Add(1)
	if f := b.obs.Refused; f != nil {
		f(hooks.Refused{Client: r.Client, Code: code, Err: err})
	}
	b.log.Debug("a client that does not speak MQTT is refused", "remote", r.Client.RemoteAddr,
		"code", code, "err", err)
	return err
}

func (b *Broker) authenticateVisitor(ctx context.Context, r *hooks.ConnectRequest) error {
	c := r.Client
	if r.Grant == nil {
		r.Grant = new(hooks.Grant)
	}
	if err := b.barredVisitor(c, time.Now()); err != nil {
		return err
	}
	if d := b.cfg().ConnectTimeout; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	err := b.asks(c, b.whoIs(c), func(known bool) (decided bool, err error) {
		defer b.survive(c, &err)
		r.Known = known
		lock.NoneHeld("a decision of a hook")
		defer b.stats.hooks.Since(time.Now())
		err = b.cfg().Authenticator.Authenticate(ctx, r)
		return !claimed(r.Grant), err
	})
	if err != nil {
		return err
	}
	if err := b.checkGrant(r.Grant); err != nil {
		return b.refusal(err, "client", c.ID)
	}
	c.Identity = identityBy(r.Grant, c.Username)
	if r.Grant.ClientID != "" {
		c.ID = r.Grant.ClientID
	}
	return b.barredVisitor(c, time.Now())
}

// barredVisitor says which Ban keeps a client out that has no connection.
func (b *Broker) barredVisitor(c *hooks.Client, now time.Time) error {
	if !b.guard.Bans.Any() {
		return nil
	}
	key := signature(c.ID, c.Identity.Principal, b.names(c))
	switch {
	case b.guard.Bans.HasAddress(guard.RemoteIP(c.RemoteAddr), now):
		return errAddressBanned
	case b.banned(BanSession, key, now):
		return errBarred
	}
	return b.bars(c, now)
}

// MayRead says whether a client that Authenticate has let in may get the messages of a Topic
// Filter, as if it had subscribed to it at QoS 0: no Ban is in the way, the filter is within the
// limits of Config, Config.SubscribeInterceptor does not replace it, and Config.Authorizer allows
// it. A shared filter is treated as in a SUBSCRIBE. Observer.Denied is told of a refusal. The
// filter is without the mount point of the Grant, which may be nil. A DeliveryAuthorizer has to be
// asked about each topic as well: see MayReceive.
//
// What it says holds until RulesVersion returns another number, a Ban is made, or the Grant
// expires. The error is a *packets.Error with the Reason Code that a client of 5.0 would get.
func (b *Broker) MayRead(
	ctx context.Context, c *hooks.Client, g *hooks.Grant, filter string,
) error {
	if err := b.Barred(c); err != nil {
		return err
	}
	group, inner, err := b.splitFilter(filter)
	switch {
	case err != nil:
		return err
	case !packets.ValidTopicFilter(inner):
		return packets.Errorf(packets.TopicFilterInvalid, "%q is no Topic Filter",
			cut(filter, maxName))
	}
	if err := b.switchedOff(group, inner); err != nil {
		return err
	}
	if n := b.cfg().MinWildcardLevel; tooWide(inner, n) {
		return packets.Errorf(packets.NotAuthorized, "the first %d levels must not be wildcards", n)
	}
	wrote := packets.Subscription{Filter: filter}
	switch got, err := b.interceptSubscribeSafely(ctx, c, mountOf(g), &wrote); {
	case err != nil:
		return err
	case got.Filter != filter:
		return packets.Errorf(packets.NotAuthorized, "%q is allowed instead",
			cut(got.Filter, maxName))
	case b.authorizer == nil:
		return nil
	}
	r := hooks.AccessRequest{Client: c, Action: hooks.ActionSubscribe, Topic: inner, Group: group}
	return b.authorizeSafely(ctx, &r, mountOf(g))
}

// MayReceive says whether a client that MayRead has allowed a filter may get messages of one of its
// topics. Only a DeliveryAuthorizer is asked; without one it returns nil. The topic is without the
// mount point. The error is a *packets.Error.
func (b *Broker) MayReceive(
	ctx context.Context, c *hooks.Client, g *hooks.Grant, topic string,
) error {
	if b.rules.deliveries == nil {
		return nil
	}
	r := hooks.AccessRequest{Client: c, Action: hooks.ActionDeliver, Topic: topic}
	return b.authorizeDelivery(ctx, &r, mountOf(g))
}

// Barred says which Ban keeps out a client that Authenticate has let in before. Nil: there is none.
// It asks no hook.
func (b *Broker) Barred(c *hooks.Client) error { return b.barredVisitor(c, time.Now()) }

// RulesVersion returns another number each time that the rules of Config.Authorizer have changed
// (see hooks.Reloader). What MayRead and MayReceive have said before holds no more then.
func (b *Broker) RulesVersion() uint64 { return b.rules.epoch.Load() }

// mountOf returns the mount point of a Grant, which may be nil.
func mountOf(g *hooks.Grant) string {
	if g == nil {
		return ""
	}
	return g.MountPoint
}
