// Package acl decides what clients may publish and subscribe to by a list of rules, which come from code ([Rules]), from a file
// in a form of its own ([Parse]) or from an acl_file of Mosquitto ([ParseMosquitto]).
//
// # Decisions
//
// A publish, a Will included, is decided by the first rule that applies to the client and matches the Topic Name. If there is
// none it is refused.
//
// A subscription is decided by its Topic Filter, that of a shared subscription by the inner one, so that no delivery has to be
// decided: it is allowed if one rule allows everything that the filter can match ([Contains]), and no rule before that one
// denies anything that it can match. A client that may read a/b and a/c is therefore refused a/#, and also a/+.
//
// # Names in rules
//
// In the filter of a rule %u stands for the client's name (hooks.Client.User: what the Authenticator verified, or else the
// User Name) and %c for the Client Identifier, wherever in a level they stand. Before anything else % is a character like others, as it is in
// topics: %x means %x. A rule with %u does not apply to a client
// without a name, and a name that is empty is none. One that holds one of + # / or NUL is never put into a filter: a rule that allows does not
// match then, and one that denies matches whatever there is from the place of the name on. Topics that begin with $ are matched only by filters
// that begin with $ themselves, not through a name.
//
// # Speed
//
// The decision of a publish follows the levels of the topic through an index of the rules and allocates nothing. Its cost does not depend
// on how many rules there are for other topics and other users, so that decisions need no cache.
package acl

import (
	"context"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/hooks"
)

// An ACL is an Authorizer that decides by a List. It is also a hooks.Reloader and hooks.Stable.
//
// The zero value has no rules: it refuses everything. An ACL must not be copied.
type ACL struct {
	hooks.Reloads
	// Abstain makes the ACL abstain, instead of refuse, where no rule applies, so that in a chain the next Authorizer
	// decides. To be set before the first decision.
	Abstain bool

	list atomic.Pointer[List]
}

// New returns an ACL that decides by l. Nil is a List without rules.
func New(l *List) *ACL {
	a := new(ACL)
	a.list.Store(l)
	return a
}

// Set puts the rules of l in force, in place of those before, and has the functions called that OnReload was given.
func (a *ACL) Set(l *List) {
	a.list.Store(l)
	a.Reloaded()
}

// Authorize decides r, which must be a publish to a valid Topic Name or a subscription to a valid Topic Filter. The error is
// nil, hooks.ErrAbstain, or a *packets.Error with Not authorized (0x87) that wraps one which names the rule.
func (a *ACL) Authorize(_ context.Context, r *hooks.AccessRequest) error {
	err := a.list.Load().decide(r)
	if err == errNoRule && a.Abstain {
		return hooks.ErrAbstain
	}
	return err
}

// Stable reports true: a decision depends on the Client, the Action, the Topic and the rules.
func (a *ACL) Stable() bool { return true }

// AtDelivery returns an Authorizer that goes by the rules of a in the way that Mosquitto does: it allows every subscription, and
// decides each delivery by its Topic Name. A client that may read a/b, and subscribes to a/#, then gets a/b and nothing else,
// where a itself refuses the subscription. The price is a decision for each Session and topic, which the broker keeps. In a
// combination (hooks.ChainAuthorizers) its decisions count at each delivery as well; with Abstain the next one decides there where no rule
// applies.
func (a *ACL) AtDelivery() hooks.DeliveryAuthorizer { return atDelivery{a} }

type atDelivery struct{ *ACL }

func (a atDelivery) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	if r.Action == hooks.Subscribe {
		return nil
	}
	return a.ACL.Authorize(ctx, r)
}

func (a atDelivery) AuthorizeDelivery(ctx context.Context, r *hooks.AccessRequest) error {
	q := *r
	q.Action = hooks.Subscribe
	return a.ACL.Authorize(ctx, &q)
}
