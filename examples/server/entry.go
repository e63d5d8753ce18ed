package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what holds for the clients of one listener and not of the others. The broker says
// which listener accepted a client (hooks.Client.Listener), and all decisions go by that.

// An entry is who may come in through a listener, and with which limits.
type entry struct {
	*gate
	// not nil: the name is in the certificate, and no password is asked for
	identity     func(*x509.Certificate) string
	usernameAsID bool
	versions     []packets.Version // nil: all
	clientPrefix string            // what Client Identifiers must begin with
	mount        string
	limits       hooks.Limits
}

// plain says that e asks and grants nothing but what its gate does.
func (e *entry) plain() bool {
	return e.identity == nil && !e.usernameAsID && e.versions == nil && e.clientPrefix == "" &&
		e.mount == "" &&
		e.limits == hooks.Limits{} && !e.noEmptyID && e.idPrefix == ""
}

// admits says in words who may connect.
func (e *entry) admits() string {
	if e.identity != nil {
		return "clients with a certificate"
	}
	return e.gate.admits()
}

// Authenticate decides a CONNECT.
func (e *entry) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	if err := e.may(r.Connect); err != nil {
		return err
	}
	users := e.users
	if e.identity != nil {
		users = auth.Certificate(e.identity)
	}
	if err := users.Authenticate(ctx, r); err != nil {
		return err
	}
	return e.grant(r)
}

// may says what is wrong with a CONNECT whoever sends it.
func (e *entry) may(p *packets.Connect) error {
	switch {
	case e.versions != nil && !slices.Contains(e.versions, p.Version):
		return packets.Errorf(packets.UnsupportedProtocolVersion,
			"protocol version %d is not accepted here", p.Version)
	case p.ClientID == "" && e.noEmptyID:
		return packets.Errorf(packets.ClientIdentifierNotValid,
			"a Client Identifier is needed here")
	case !strings.HasPrefix(p.ClientID, e.clientPrefix):
		return packets.Errorf(packets.ClientIdentifierNotValid,
			"a Client Identifier must begin with %s here", e.clientPrefix)
	}
	return nil
}

// grant gives a client that was accepted what holds here.
func (e *entry) grant(r *hooks.ConnectRequest) error {
	g := r.Grant
	g.MountPoint, g.Limits = e.mount, e.limits
	switch {
	case e.usernameAsID:
		if g.ClientID = g.Identity.Principal; g.ClientID == "" {
			g.ClientID = r.Connect.Username
		}
		if g.ClientID == "" {
			return packets.Errorf(packets.NotAuthorized, "the user name is the Client Identifier "+
				"here, and there is none")
		}
	case r.Connect.ClientID == "" && e.idPrefix != "":
		var random [12]byte
		_, _ = rand.Read(random[:]) // never fails
		g.ClientID = e.idPrefix + hex.EncodeToString(random[:])
	}
	return nil
}

// Start begins an exchange of SCRAM-SHA-256.
func (e *entry) Start(ctx context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
	if e.scram == nil || e.identity != nil {
		return nil, packets.Errorf(packets.BadAuthenticationMethod, "%s is not known here",
			auth.SCRAMSHA256)
	}
	if r.Connect == nil { // a client authenticates anew, and keeps what it was granted
		return e.scram.Start(ctx, r)
	}
	if err := e.may(r.Connect); err != nil {
		return nil, err
	}
	x, err := e.scram.Start(ctx, r)
	if err != nil {
		return nil, err
	}
	// The packet is valid only during the call.
	about := packets.Connect{ClientID: r.Connect.ClientID, Username: r.Connect.Username}
	return &granting{x, e, &hooks.ConnectRequest{Client: r.Client, Connect: &about,
		Grant: r.Grant}}, nil
}

// granting is an exchange at whose end the client is granted what its listener has for it.
type granting struct {
	hooks.Exchange
	entry   *entry
	request *hooks.ConnectRequest
}

func (x *granting) Next(ctx context.Context, data []byte) (reply []byte, done bool, err error) {
	if reply, done, err = x.Exchange.Next(ctx, data); done && err == nil {
		err = x.entry.grant(x.request)
	}
	return reply, done, err
}

// entries are those of all listeners.
type entries map[*hooks.Listener]*entry

var errNoEntry = errors.New("the client came through no listener that is known")

// Authenticate has the entry of the client's listener decide.
func (es entries) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	if e := es[r.Client.Listener]; e != nil {
		return e.Authenticate(ctx, r)
	}
	return errNoEntry
}

// Start is Authenticate for SCRAM-SHA-256.
func (es entries) Start(ctx context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
	if e := es[r.Client.Listener]; e != nil {
		return e.Start(ctx, r)
	}
	return nil, errNoEntry
}

// authorizer has the rules of the client's listener decide. A client that has not connected since
// the broker started is known to none: it may do what all rules allow. Nil: there are no rules. As
// in Mosquitto, rules are about topics with the mount point.
func (es entries) authorizer() hooks.Authorizer {
	var of, all []hooks.Authorizer
	gates, mounted := map[*gate]bool{}, false
	for l, e := range es {
		rules := e.rules
		if rules == nil {
			rules = hooks.AllowAll
		} else if !gates[e.gate] {
			all = append(all, rules)
		}
		gates[e.gate], mounted = true, mounted || e.mount != ""
		of = append(of, behind{rules, l, e.mount}.combined())
	}
	if len(all) == 0 {
		return nil
	}
	if len(gates) == 1 && !mounted {
		return all[0] // the same for everybody
	}
	of = append(of, behind{hooks.AllAuthorizers(all...), nil, ""}.combined())
	return hooks.ChainAuthorizers(of...)
}

// behind are the rules for clients of one listener. It abstains from others.
type behind struct {
	hooks.Authorizer
	listener *hooks.Listener
	mount    string
}

// mounts returns r with the mount point in front of its topic.
func (b behind) mounts(r *hooks.AccessRequest) *hooks.AccessRequest {
	if b.mount == "" {
		return r
	}
	whole := *r
	whole.Topic = b.mount + r.Topic
	return &whole
}

// behindAtDelivery is behind for rules that decide about deliveries.
type behindAtDelivery struct{ behind }

// combined returns b, as a DeliveryAuthorizer if its rules are one.
func (b behind) combined() hooks.Authorizer {
	if _, ok := b.Authorizer.(hooks.DeliveryAuthorizer); ok {
		return behindAtDelivery{b}
	}
	return b
}

func (b behind) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	if r.Client.Listener != b.listener {
		return hooks.ErrAbstain
	}
	return b.Authorizer.Authorize(ctx, b.mounts(r))
}

func (b behindAtDelivery) AuthorizeDelivery(ctx context.Context, r *hooks.AccessRequest) error {
	if r.Client.Listener != b.listener {
		return hooks.ErrAbstain
	}
	return b.Authorizer.(hooks.DeliveryAuthorizer).AuthorizeDelivery(ctx, b.mounts(r))
}

// OnReload is that of the rules.
func (b behind) OnReload(f func()) (stop func()) {
	if r, ok := b.Authorizer.(hooks.Reloader); ok {
		return r.OnReload(f)
	}
	return func() {}
}

// Stable is that of the rules.
func (b behind) Stable() bool {
	s, ok := b.Authorizer.(hooks.Stable)
	return ok && s.Stable()
}

// setEntries sets what decides in cfg. Where all listeners have the same rules, and none of its
// own, the broker need not tell them apart.
func setEntries(cfg *dunlin.Config, listenings []*listening, shared *entry, identity bool) {
	same := true
	for _, x := range listenings {
		if x.entry == nil {
			x.entry = shared
		}
		alike := x.entry.gate == shared.gate && x.entry.plain()
		same = same && alike && (x.as == nil || x.as.MaxConnections == 0)
	}
	rules, scram := shared.rules, shared.scram
	if same && !identity { // where certificates name clients, neither passwords nor SCRAM may
		cfg.Authenticator = shared.users
		for _, x := range listenings {
			x.as = nil
		}
	} else {
		es := newEntries(listenings, shared, identity)
		cfg.Authenticator, rules, scram = es, es.authorizer(), es.scram()
	}
	if scram != nil {
		cfg.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{auth.SCRAMSHA256: scram}
	}
	if rules != nil && cfg.Authorizer != nil {
		rules = hooks.AllAuthorizers(cfg.Authorizer, rules)
	}
	if rules != nil {
		cfg.Authorizer = rules
	}
}

// newEntries gives each listener a description, by which hooks know it. identity holds for all
// listeners of TLS but those with settings of their own.
func newEntries(listenings []*listening, shared *entry, identity bool) entries {
	es := entries{}
	for _, x := range listenings {
		if x.as == nil {
			x.as = &hooks.Listener{Name: x.protocol + " " + x.addr}
		}
		e := x.entry
		if identity && x.secure && e.gate == shared.gate && e.identity == nil {
			own := *e
			own.identity = auth.CommonName
			e, x.entry = &own, &own
		}
		es[x.as] = e
	}
	return es
}

// scram is what decides by SCRAM-SHA-256, nil if no listener has it.
func (es entries) scram() hooks.EnhancedAuthenticator {
	for _, e := range es {
		if e.gate.scram != nil {
			return es
		}
	}
	return nil
}
