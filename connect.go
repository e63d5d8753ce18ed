package dunlin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/tap"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is CONNECT: what a client asks for, what it is granted, and the exchange of AUTH
// packets where it wants one (3.1, 3.2, 4.12).

// early handles what comes before the connection is accepted: CONNECT, then AUTH if an exchange is
// under way.
func (c *conn) early(t *turn, h packets.Header, raw []byte) error {
	c.deep = true
	if c.b.callsOut {
		c.handOver()
	}
	body := raw[h.Len:]
	if c.readExtra().exchange != nil {
		c.show(tap.In, t.now, raw)
		var a packets.Auth
		if h.Type != packets.TypeAuth {
			return c.refuse(packets.Errorf(packets.ProtocolError, "%v during authentication",
				h.Type))
		}
		if err := a.Decode(h, body, c.version); err != nil {
			return c.refuse(err)
		}
		return c.continueAuth(t, &a)
	}
	p := &t.connect
	err := p.Decode(h, body, 0)
	c.version = p.Version
	if err == nil {
		c.introduce(p)
	}
	c.show(tap.In, t.now, raw)
	if n, ok := p.Properties.Uint(packets.MaximumPacketSize); ok {
		c.maxPacket = int32(min(n, maxPacketSize))
	}
	if n, ok := p.Properties.Uint(packets.RequestProblemInformation); ok {
		c.noReasons = n == 0
	}
	switch {
	case packets.CodeOf(err) == packets.UnsupportedProtocolVersion, err == nil &&
		!c.b.cfg().accepts(p.Version):
		return c.refuse(packets.Errorf(packets.UnsupportedProtocolVersion,
			"protocol version %d is not accepted", p.Version))
	case err != nil && p.Version == packets.V5:
		return c.refuse(err)
	case err != nil:
		return err // older clients are told nothing [v3.1.1 MQTT-3.1.4-1]
	}
	c.opened(c.via.class(c.b, c.version))
	c.count(2 * len(body)) // what is kept of it until c is accepted
	limits := packets.Limits{UserProperties: c.b.cfg().MaxUserProperties}
	if err := limits.Check(p); err != nil {
		return c.refuse(err)
	}
	if err := c.acceptable(p); err != nil {
		return c.refuse(err)
	}
	return c.authenticate(t, p)
}

// mayReplace says whether a connection with a Client Identifier may take the place of one that is
// there. attach finds out whether it does. Nobody knows that before authentication with
// SessionPerPrincipal, or where an Authenticator grants Client Identifiers.
func (c *conn) mayReplace(id string) bool {
	b := c.b
	if b.cfg().SessionPerPrincipal || b.renames.Load() {
		return true
	}
	s := b.sessionAt(id)
	return s != nil && s.connected()
}

// acceptable checks what needs no hook.
func (c *conn) acceptable(p *packets.Connect) error {
	cfg := c.b.cfg()
	if d := c.b.closing.drain.Load(); d != nil {
		return d.why
	}
	if _, ok := p.Properties.Bytes(packets.AuthenticationData); ok &&
		!p.Properties.Has(packets.AuthenticationMethod) {
		return packets.Errorf(packets.ProtocolError,
			"Authentication Data without Authentication Method")
	}
	switch {
	case p.ClientID == "" && (p.Version == packets.V31 || p.Version == packets.V311 &&
		!p.CleanStart):
		return packets.Errorf(packets.ClientIdentifierNotValid,
			"an empty Client Identifier needs Clean Session")
	case strings.HasPrefix(p.ClientID, localPrefix):
		return packets.Errorf(packets.ClientIdentifierNotValid,
			"Client Identifiers that begin with %s belong to the server", localPrefix)
	case c.b.connections() >= cfg.MaxConnections && !c.mayReplace(p.ClientID):
		return packets.Errorf(packets.ServerBusy, "too many connections")
	}
	if w := p.Will; w != nil {
		switch {
		case w.QoS > cfg.maxQoS():
			return errWillQoS(w.QoS, cfg.maxQoS())
		case w.Retain && cfg.DisableRetain:
			return packets.Errorf(packets.RetainNotSupported, "retained messages are not accepted")
		case len(w.Topic) > cfg.MaxTopicLength || packets.Levels(w.Topic) > cfg.MaxTopicLevels:
			return packets.Errorf(packets.TopicNameInvalid,
				"the Will Topic has more bytes or levels than are accepted")
		case c.b.reserved(w.Topic):
			return errReserved
		case cfg.CheckPayloadFormat && saysText(w.Properties) && !utf8.Valid(w.Payload):
			return packets.Errorf(packets.PayloadFormatInvalid, "the Will Payload is not UTF-8")
		}
	}
	return nil
}

func errWillQoS(got, most packets.QoS) error {
	return packets.Errorf(packets.QoSNotSupported, "Will QoS %d, at most %d is accepted", got, most)
}

// authenticate asks the hooks: the one for the Authentication Method if there is one, else the
// Authenticator.
func (c *conn) authenticate(t *turn, p *packets.Connect) error {
	if err := c.barred(t.now); err != nil {
		return c.refuse(err)
	}
	client := c.client
	method, ok := p.Properties.Text(packets.AuthenticationMethod)
	if !ok && c.b.cfg().Authenticator == hooks.Authenticator(hooks.AllowAll) {
		return c.accept(t, p, &openGrant, nil)
	}
	r := &hooks.ConnectRequest{Client: client, Connect: p, Grant: new(hooks.Grant)}
	if !ok {
		err := c.asks(func(known bool) (decided bool, err error) {
			r.Known = known
			err = c.decideConnect(r)
			return !claimed(r.Grant), err // a claim makes no name known
		})
		if err != nil {
			return c.refuse(err)
		}
		return c.accept(t, p, r.Grant, nil)
	}
	auth := c.b.cfg().EnhancedAuth[method]
	if auth == nil {
		return c.refuse(packets.Errorf(packets.BadAuthenticationMethod,
			"Authentication Method %q is not known", method))
	}
	err := c.begin(auth, r)
	if err != nil {
		return c.refuse(err)
	}
	own := c.makeExtra()
	own.method = method
	// the packet outlives the read buffer for as long as the exchange lasts
	own.exchange.connect = cloneConnect(p)
	data, _ := p.Properties.Bytes(packets.AuthenticationData)
	return c.step(t, data)
}

// decideConnect asks the Authenticator.
func (c *conn) decideConnect(r *hooks.ConnectRequest) error {
	ctx, cancel := c.decisionContext()
	defer cancel()
	lock.NoneHeld("a decision of a hook")
	defer c.b.stats.hooks.Since(time.Now())
	return c.b.cfg().Authenticator.Authenticate(ctx, r)
}

// decisionContext returns the context for a hook that decides who the client is and what it brings:
// it ends with the connection, and when ConnectTimeout is over. Until the CONNACK all decisions
// share that time, which began when the connection was taken up; a re-authentication has as long,
// from the call.
func (c *conn) decisionContext() (context.Context, context.CancelFunc) {
	d := c.b.cfg().ConnectTimeout
	if d <= 0 {
		return c.context(), func() {}
	}
	if c.accepted {
		return context.WithTimeout(c.context(), d)
	}
	return context.WithDeadline(c.context(), c.arrived().Add(d))
}

// arrived is when the connection was taken up. It is known until c is accepted.
func (c *conn) arrived() time.Time { return c.b.started.Add(c.lastPacket) }

// openGrant is what hooks.AllowAll grants. Read only.
var openGrant = hooks.Grant{Identity: hooks.Identity{Unverified: true}}

// identityBy is who a client with a User Name is that gets g.
func identityBy(g *hooks.Grant, username string) hooks.Identity {
	id := g.Identity
	id.Unverified = claimed(g)
	id.Principal = cmp.Or(id.Principal, username)
	return id
}

// claimed says whether the name of a client that gets g is no more than a claim.
func claimed(g *hooks.Grant) bool { return g.Identity.Unverified && g.Identity.Principal == "" }

// refusal makes a *packets.Error of what a hook returned; what is none is logged, and the client
// learns no more than Not authorized. An error with a code that stands for no failure refuses as
// one without, but its reason is told.
func (b *Broker) refusal(err error, args ...any) error {
	pe, ok := errors.AsType[*packets.Error](err)
	switch {
	case ok && pe == nil:
		err = errors.New(
			"a hook returned a nil *packets.Error, which is an error; nil is what allows")
	case ok && pe.Code.Failed():
		return err
	case ok && err == error(pe):
		return &packets.Error{Code: packets.NotAuthorized, Reason: pe.Reason, Err: pe.Err,
			UserProperties: pe.UserProperties}
	case ok:
		return &packets.Error{Code: packets.NotAuthorized, Reason: pe.Reason, Err: err,
			UserProperties: pe.UserProperties}
	}
	if !errors.Is(err, hooks.ErrAbstain) {
		for i := range args {
			if text, ok := args[i].(string); ok {
				args[i] = cut(text, maxText)
			}
		}
		b.log.Warn("a hook failed, and refused for that", append(args, "err", err)...)
		err = fmt.Errorf("%w: %w", errHookFailed, err)
	}
	return &packets.Error{Code: packets.NotAuthorized, Err: err}
}

// errHookFailed is in the chain of every refusal that no hook has decided: one has failed instead.
var errHookFailed = recent.Mark(hooks.EndHookFailed, errors.New("a hook failed"))

func cloneConnect(p *packets.Connect) *packets.Connect {
	q := *p
	q.Properties = append(packets.Properties(nil), p.Properties...)
	q.Password = append([]byte(nil), p.Password...)
	if p.Will != nil {
		w := *p.Will
		w.Payload = append([]byte(nil), w.Payload...)
		w.Properties = append(packets.Properties(nil), w.Properties...)
		q.Will = &w
	}
	return &q
}

// continueAuth handles AUTH during CONNECT.
func (c *conn) continueAuth(t *turn, a *packets.Auth) error {
	if err := c.checkAuth(a, packets.ContinueAuthentication); err != nil {
		return c.refuse(err)
	}
	data, _ := a.Properties.Bytes(packets.AuthenticationData)
	return c.step(t, data)
}

func (c *conn) checkAuth(a *packets.Auth, want packets.ReasonCode) error {
	switch m, ok := a.Properties.Text(packets.AuthenticationMethod); {
	case !ok || m != c.readExtra().method:
		return packets.Errorf(packets.ProtocolError,
			"AUTH with Authentication Method %q, the CONNECT had %q", m, c.readExtra().method)
	case a.Code != want:
		return packets.Errorf(packets.ProtocolError, "AUTH with Reason Code %v", a.Code)
	}
	return nil
}

// An exchange is an authentication of several steps that is under way.
type exchange struct {
	hooks.Exchange
	connect *packets.Connect // nil: the client is accepted, and authenticates anew
	grant   *hooks.Grant
	ctx     context.Context // of all its steps
	cancel  context.CancelFunc
}

// begin asks an EnhancedAuthenticator for the exchange that r wants. The error is a *packets.Error.
func (c *conn) begin(auth hooks.EnhancedAuthenticator, r *hooks.ConnectRequest) error {
	x := &exchange{grant: r.Grant}
	x.ctx, x.cancel = c.decisionContext()
	err := c.asks(func(known bool) (decided bool, err error) {
		r.Known = known
		lock.NoneHeld("a decision of a hook")
		defer c.b.stats.hooks.Since(time.Now())
		x.Exchange, err = auth.Start(x.ctx, r)
		return false, err
	})
	if err != nil {
		x.cancel()
		return err
	}
	c.makeExtra().exchange = x
	return nil
}

// next asks the Exchange for its next step, and refuses an answer that no packet can hold. The
// exchange is over if it is done, and after an error, which is a *packets.Error.
func (c *conn) next(data []byte) (reply []byte, done bool, err error) {
	x := c.makeExtra().exchange
	err = c.asks(func(bool) (decided bool, err error) {
		lock.NoneHeld("a decision of a hook")
		defer c.b.stats.hooks.Since(time.Now())
		reply, done, err = x.Next(x.ctx, data)
		if err == nil && len(reply) > math.MaxUint16 {
			err = fmt.Errorf(
				"the Exchange answered with %d bytes, Authentication Data has at most 65535",
				len(reply))
		}
		return done, err
	})
	if done || err != nil {
		x.cancel()
		c.makeExtra().exchange = nil
	}
	return reply, done, err
}

// step takes the exchange of the CONNECT one further.
func (c *conn) step(t *turn, data []byte) error {
	x := c.makeExtra().exchange
	reply, done, err := c.next(data)
	switch {
	case err != nil:
		return c.refuse(err)
	case done:
		return c.accept(t, x.connect, x.grant, reply)
	}
	return c.writeEarly(&packets.Auth{Code: packets.ContinueAuthentication,
		Properties: c.authProperties(reply)})
}

func (c *conn) authProperties(data []byte) packets.Properties {
	p := packets.Properties(nil).AppendText(packets.AuthenticationMethod, c.readExtra().method)
	if data != nil {
		p = p.AppendBytes(packets.AuthenticationData, data)
	}
	return p
}

// onAuth handles AUTH on an accepted connection: re-authentication (4.12.1).
func (c *conn) onAuth(t *turn, a *packets.Auth) error {
	own := c.makeExtra()
	if own.method == "" {
		return packets.Errorf(packets.ProtocolError,
			"AUTH without Authentication Method in the CONNECT")
	}
	want := packets.ReAuthenticate
	if own.exchange != nil {
		want = packets.ContinueAuthentication
	}
	if err := c.checkAuth(a, want); err != nil {
		return err
	}
	if own.exchange == nil {
		r := &hooks.ConnectRequest{Client: c.client, Grant: new(hooks.Grant)}
		if err := c.begin(c.b.cfg().EnhancedAuth[own.method], r); err != nil {
			return err
		}
	}
	grant := own.exchange.grant
	data, _ := a.Properties.Bytes(packets.AuthenticationData)
	reply, done, err := c.next(data)
	if err != nil {
		return err
	}
	out := packets.Auth{Code: packets.ContinueAuthentication, Properties: c.authProperties(reply)}
	if done {
		out.Code = packets.Success
	}
	if err := c.fits(&out); err != nil {
		return err
	}
	if done {
		if err := c.identify(&grant.Identity); err != nil {
			return err
		}
		c.b.expireAuth(c, grant.Expires)
	}
	return c.reply(t, &out)
}

// identify takes over what a re-authentication has found out: the same Principal, with what else is
// known of it. Then all decisions are due again.
func (c *conn) identify(id *hooks.Identity) error {
	s := c.sess
	switch {
	case id.Principal != "" && id.Principal != s.principal:
		return packets.Errorf(packets.NotAuthorized, "re-authentication as somebody else")
	case id.Principal == "" && id.Roles == nil && id.Tenant == "" && id.Attributes == nil:
		return nil
	}
	client := *c.client
	client.Identity = *id
	client.Identity.Principal = s.principal
	client.Identity.Unverified = c.client.Identity.Unverified
	s.mu.Lock()
	if s.conn == c {
		s.client = &client
		s.countLocked()
	}
	c.client = &client
	s.forgetReadingsLocked()
	s.mu.Unlock()
	c.dropRoutes()
	if c.b.authorizer != nil {
		c.b.reviewSession(s)
	}
	return nil
}

// refuse answers the CONNECT with a Reason Code, or, where the version has none that fits, with
// silence, and returns err.
func (c *conn) refuse(err error) error {
	code := fitting(packets.CodeOf(err), packets.TypeConnack)
	if c.version != packets.V5 {
		v := c.version
		if c.version = packets.V311; code.ReturnCode() != 0 {
			c.answered = c.writeEarly(&packets.Connack{Code: code}) == nil
		}
		c.version = v
		return err
	}
	a := packets.Connack{Code: code}
	var pe *packets.Error
	if errors.As(err, &pe) {
		a.Properties = c.farewell(pe, code, 5)
	}
	c.answered = c.writeEarly(&a) == nil
	return err
}

// refuseLarge refuses a CONNECT that is not read. If what has come of it is from a 5.0 client,
// there is a Reason Code for that.
func (c *conn) refuseLarge(body []byte, err error) error {
	if !bytes.HasPrefix(body, []byte("\x00\x04MQTT\x05")) {
		return err
	}
	c.version = packets.V5
	return c.refuse(err)
}

// accept gives the client its session and its CONNACK.
func (c *conn) accept(t *turn, p *packets.Connect, g *hooks.Grant, authData []byte) error {
	b := c.b
	c.client.Identity = identityBy(g, p.Username)
	if err := b.checkGrant(g); err != nil {
		return c.refuse(b.refusal(err, "client", c.client.ID))
	}
	if g.ClientID != "" && g.ClientID != c.client.ID {
		c.client.ID = g.ClientID
		b.renames.Store(true)
	}
	if err := c.barredAs(t.now); err != nil {
		return c.refuse(err)
	}
	if x := b.paceOf(c, p, &g.Limits); x != nil {
		c.makeExtra().pace, c.makeExtra().wake = x, make(chan struct{}, 1)
	}
	if g.MountPoint != "" {
		c.makeExtra().mount, c.client.MountPoint = g.MountPoint, g.MountPoint
		b.mounts.Store(true)
	}
	if b.authorizer != nil {
		c.context() // so that it is there for decisions that others ask for
	}
	if !g.Expires.IsZero() {
		c.makeExtra() // has the deadline
	}
	c.lower(&g.Limits)
	if p.Will != nil && p.Will.QoS > c.maxQoS {
		return c.refuse(errWillQoS(p.Will.QoS, c.maxQoS))
	}
	w, err := c.newWill(t, p)
	if err != nil {
		return c.refuse(err)
	}
	expiry := min(askedExpiry(p), b.cfg().maxExpiry())
	if most := wholeSeconds(g.Limits.SessionExpiry); most > 0 {
		expiry, c.makeExtra().expiry = min(expiry, most), most
	}
	c.limitOutput(p)
	keepAlive := c.negotiateKeepAlive(p, g)

	a := packets.Connack{Properties: c.connackProperties(p, expiry, keepAlive, authData)}
	if err := c.fits(&a); err != nil {
		return c.refuse(err)
	}
	a.Properties = c.addGranted(a.Properties, p, g)
	c.count(0) // the Session counts what is kept of the CONNECT
	a.SessionPresent, err = b.attach(t, c, attachment{clean: p.CleanStart, expiry: expiry, will: w,
		quota:  b.queueLimits(&g.Limits),
		limits: b.ownerLimits(&g.Limits), connack: &a, given: g.Subscriptions})
	if err != nil {
		return c.refuse(err)
	}
	c.accepted, c.answered = true, true
	// banned this moment, and missed then
	if c.barredAs(t.now) != nil || b.guard.Bans.HasAddress(guard.RemoteIP(c.client.RemoteAddr),
		t.now) {
		b.endConn(c, errBanned)
	}
	c.lastPacket = t.now.Sub(b.started)
	b.expireAuth(c, g.Expires)
	if c.keepAlive > 0 {
		err = c.setReadDeadline(t.now.Add(c.keepAlive))
	} else {
		c.probe()
		err = c.setReadDeadline(time.Time{})
	}
	if f := b.obs.Connected; f != nil {
		f(hooks.Connected{
			Client: c.client, SessionPresent: a.SessionPresent, At: b.started.Add(c.at),
		})
	}
	b.given.Announce(c.sess, a.SessionPresent, g.Subscriptions)
	b.log.Debug("connected", "client", c.client.ID, "remote", c.client.RemoteAddr, "version",
		c.version, "resumed", a.SessionPresent)
	return err
}

// limitOutput takes over what the client accepts: how many messages in flight, and Topic Aliases.
func (c *conn) limitOutput(p *packets.Connect) {
	c.window = uint16(c.b.cfg().MaxInflight)
	if p.Bridge {
		c.window = min(c.window, bridgeInflight)
	}
	if n, ok := p.Properties.Uint(packets.ReceiveMaximum); ok {
		c.window = uint16(min(uint32(c.window), n))
	}
	if n, ok := p.Properties.Uint(packets.TopicAliasMaximum); ok && n > 0 && c.aliasesIn > 0 {
		most := min(int(n), int(c.aliasesIn))
		c.makeExtra().outAliases = &outAliases{of: make(map[string]uint16), most: most}
	}
}

// connackProperties says every limit that is in force and is not what its absence would mean
// (3.2.2.3).
func (c *conn) connackProperties(
	p *packets.Connect, expiry uint32, keepAlive uint16, authData []byte,
) (q packets.Properties) {
	if c.version != packets.V5 {
		return nil
	}
	cfg := c.b.cfg()
	if expiry != askedExpiry(p) {
		q = q.AppendUint(packets.SessionExpiryInterval, expiry)
	}
	if c.receiveMaximum < 65535 {
		q = q.AppendUint(packets.ReceiveMaximum, uint32(c.receiveMaximum))
	}
	if c.maxQoS < packets.QoS2 {
		q = q.AppendUint(packets.MaximumQoS, uint32(c.maxQoS))
	}
	if c.packetSize <= maxSaid {
		q = q.AppendUint(packets.MaximumPacketSize, uint32(c.packetSize))
	}
	if p.ClientID == "" {
		q = q.AppendText(packets.AssignedClientIdentifier, c.client.ID)
	}
	if c.aliasesIn > 0 {
		q = q.AppendUint(packets.TopicAliasMaximum, uint32(c.aliasesIn))
	}
	for _, f := range [...]struct {
		off bool
		id  packets.Property
	}{
		{cfg.DisableRetain, packets.RetainAvailable},
		{cfg.DisableWildcards, packets.WildcardSubscriptionAvailable},
		{cfg.DisableSubscriptionIDs, packets.SubscriptionIdentifierAvailable},
		{cfg.DisableShared, packets.SharedSubscriptionAvailable},
	} {
		if f.off {
			q = q.AppendUint(f.id, 0)
		}
	}
	if keepAlive != p.KeepAlive {
		q = q.AppendUint(packets.ServerKeepAlive, uint32(keepAlive))
	}
	if c.readExtra().method != "" {
		q = append(q, c.authProperties(authData)...)
	}
	return q
}

// probe makes TCP itself find out whether the client's machine is still there: nothing else would
// for a client without Keep Alive. Elsewhere it is not needed, so that a listener may leave it off.
func (c *conn) probe() {
	nc := c.nc.NetConn()
	for x, ok := nc.(below); ok; x, ok = nc.(below) { // TLS, and what tells of it
		nc = x.NetConn()
	}
	// a system that cannot do it leaves the client as it is
	switch tcp := nc.(type) {
	case *net.TCPConn:
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true})
	case interface{ Probe() error }:
		_ = tcp.Probe()
	}
}

// newWill makes the Will of a CONNECT, past the Authorizer.
func (c *conn) newWill(t *turn, p *packets.Connect) (*will, error) {
	w := p.Will
	if w == nil {
		return nil, nil
	}
	if c.b.authorizer != nil {
		t.access = hooks.AccessRequest{Client: c.client, Action: hooks.ActionPublish,
			Topic: w.Topic, QoS: w.QoS, Retain: w.Retain, Will: true}
		ctx, cancel := c.decisionContext()
		defer cancel()
		if err := c.b.authorize(ctx, &t.access, c.readExtra().mount); err != nil {
			return nil, err
		}
	}
	from := c.sessionKey()
	if w.Retain {
		from = signature(c.client.ID, c.client.Identity.Principal, c.named())
	}
	m := &message{From: from, Message: packets.Message{
		Topic: c.readExtra().mount + w.Topic, QoS: w.QoS, Retain: w.Retain,
		Payload: append([]byte(nil), w.Payload...),
	}}
	delay, _ := w.Properties.Uint(packets.WillDelayInterval)
	if len(w.Properties) > 0 {
		m.Properties = w.Properties.Without(nil, packets.WillDelayInterval)
	}
	return &will{msg: m, mount: c.readExtra().mount, delay: time.Duration(delay) * time.Second,
		client: c.client}, nil
}

// authorize asks the Authorizer; a refusal is reported and comes back as a *packets.Error. mount is
// the mount point of the client.
func (b *Broker) authorize(ctx context.Context, r *hooks.AccessRequest, mount string) error {
	lock.NoneHeld("a decision of a hook")
	defer b.stats.hooks.Since(time.Now())
	return b.judge(r, mount, b.authorizer.Authorize(ctx, r))
}

// judge is authorize with what the Authorizer said.
func (b *Broker) judge(r *hooks.AccessRequest, mount string, err error) error {
	if err == nil {
		return nil
	}
	err = b.refusal(err, "client", r.Client.ID, "action", r.Action, "topic", r.Topic)
	b.denied(r, mount, err)
	return err
}

// denied tells the Observer that a request was refused.
func (b *Broker) denied(r *hooks.AccessRequest, mount string, err error) {
	if f := b.obs.Denied; f != nil {
		f(hooks.Denied{
			Client: r.Client, Action: r.Action, Topic: r.Topic, MountedTopic: mount + r.Topic,
			Group: r.Group, Err: err,
		})
	}
}

// intercept asks the Interceptor, and checks and authorizes what comes back if its topic is another
// one.
func (b *Broker) intercept(ctx context.Context, r *hooks.AccessRequest, c *hooks.Client,
	mount string, m *message) (*message, error) {
	lock.NoneHeld("a decision of a hook")
	began := time.Now()
	pm, err := b.cfg().Interceptor.Intercept(ctx, c, &m.Message)
	b.stats.hooks.Since(began)
	switch {
	case errors.Is(err, hooks.ErrDrop):
		return nil, err
	case err != nil:
		return nil, b.refusal(err, "client", c.ID, "topic", m.Topic)
	case pm == &m.Message:
		return m, nil
	case pm == nil:
		return nil, b.refusal(errors.New("the Interceptor returned neither a message nor an error"),
			"client", c.ID, "topic", m.Topic)
	}
	if err := b.sound(pm); err != nil {
		return nil, b.refusal(fmt.Errorf("the Interceptor returned no valid message: %v", err),
			"client", c.ID, "topic", m.Topic)
	}
	out := &message{Message: *pm, Expires: m.Expires, From: m.From}
	topic, inside := strings.CutPrefix(pm.Topic, mount)
	switch {
	case !inside || topic == "":
		return nil, b.refusal(errors.New("the Interceptor took the message out of the mount point"),
			"client", c.ID, "topic", pm.Topic)
	case b.reserved(topic):
		q := hooks.AccessRequest{Client: c, Action: hooks.ActionPublish, Topic: topic}
		b.denied(&q, mount, errReserved)
		return nil, errReserved
	}
	if (pm.Topic != m.Topic || pm.Retain != m.Retain) && b.authorizer != nil {
		*r = hooks.AccessRequest{Client: c, Action: hooks.ActionPublish, Topic: topic, QoS: pm.QoS,
			Retain: pm.Retain}
		if err := b.authorize(ctx, r, mount); err != nil {
			return nil, err
		}
	}
	return out, nil
}
