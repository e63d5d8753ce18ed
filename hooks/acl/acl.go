// Package acl decides what clients may publish and subscribe to by a list of rules. The rules come
// from code ([Rules]), from a file in the package's own format ([Parse]) or from an acl_file of
// Mosquitto ([ParseMosquitto]).
//
// # Decisions
//
// A publish (also a Will) is decided by the first rule that applies to the client and matches the
// Topic Name. If no rule matches, it is refused.
//
// A subscription is decided by its Topic Filter; for a shared subscription, by the filter after the
// Share Name. It is allowed if one rule allows everything that the filter can match ([Contains]),
// and no earlier rule denies anything that it can match. Deliveries then need no decision. A client
// that may read a/b and a/c is therefore refused a/#, and also a/+.
//
// # Names in rules
//
// In the filter of a rule %u stands for the client's name, %c for the Client Identifier, and
// ${region} for the attribute region of the client's Identity, anywhere in a level. The client's
// name is hooks.Client.User: the name that the Authenticator verified, or else the User Name.
// Before any other character % is an ordinary character: %x means %x. A ${ always begins the name
// of an attribute, which is not empty and contains no /, +, # or }. Files of Mosquitto have no
// attributes: there ${region} means ${region}.
//
// A rule with %u does not apply to a client without a name; an empty name counts as no name. A name
// or an attribute that contains +, #, / or NUL is never put into a filter. Neither is an attribute
// that is empty, or that the client does not have. A rule that allows does not match then. A rule
// that denies then matches every topic below the levels before the name. A topic that begins with $
// is matched only by a filter that was written with this $: a $ from a name does not count.
//
// # Speed
//
// The decision of a publish follows the levels of the topic through an index of the rules and
// allocates nothing. Its cost does not depend on the number of rules for other topics and other
// users, so decisions need no cache.
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
	// Abstain makes the ACL abstain instead of refuse if no rule applies, so that the next
	// Authorizer of a chain decides. Set it before the first decision.
	Abstain bool

	list atomic.Pointer[List]
}

// New returns an ACL that decides by l. Nil is a List without rules.
func New(l *List) *ACL {
	a := new(ACL)
	a.list.Store(l)
	return a
}

// Set replaces the rules with those of l, and calls the functions that OnReload was given.
func (a *ACL) Set(l *List) {
	a.list.Store(l)
	a.Reloaded()
}

// Authorize decides r, which must be a publish to a valid Topic Name or a subscription to a valid
// Topic Filter. The error is nil, hooks.ErrAbstain, or a *packets.Error with Not authorized (0x87)
// that wraps an error naming the rule.
func (a *ACL) Authorize(_ context.Context, r *hooks.AccessRequest) error {
	return a.decide(r, 1<<r.QoS)
}

// decide decides r. qos has the bit 1 << QoS of the request; 0: the request has no QoS.
func (a *ACL) decide(r *hooks.AccessRequest, qos byte) error {
	err := a.list.Load().decide(r, qos)
	if err == errNoRule && a.Abstain {
		return hooks.ErrAbstain
	}
	return err
}

// Stable reports true: a decision depends on the Client, the Action, the Topic, the QoS, Retain and
// the rules.
func (a *ACL) Stable() bool { return true }

// AtDelivery returns an Authorizer that applies the rules of a as Mosquitto does: it allows every
// subscription, and decides each delivery by its Topic Name. A client that may read a/b and
// subscribes to a/# then gets only a/b, where a itself refuses the subscription. The price is a
// decision for each Session and topic, which the broker keeps. In a combination
// (hooks.ChainAuthorizers) its decisions count at each delivery as well; with Abstain the next
// member decides if no rule applies. Here a delivery has no QoS: a rule that allows some QoS allows
// no delivery, and a rule that denies some QoS denies each delivery that it would deny with one of
// them.
func (a *ACL) AtDelivery() hooks.DeliveryAuthorizer { return atDelivery{a} }

type atDelivery struct{ *ACL }

func (a atDelivery) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	if r.Action == hooks.ActionSubscribe {
		return nil
	}
	return a.ACL.Authorize(ctx, r)
}

func (a atDelivery) AuthorizeDelivery(_ context.Context, r *hooks.AccessRequest) error {
	q := *r
	q.Action = hooks.ActionSubscribe
	return a.decide(&q, 0)
}
