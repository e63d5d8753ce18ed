package hooks

import (
	"context"
	"errors"
)

// A rule combines several decisions into one.
type rule byte

const (
	first rule = iota // the first opinion wins
	every             // every opinion must be to allow
	some              // one opinion to allow is enough
)

// decide asks n deciders in order, and stops as soon as the rule has its answer. If all abstain,
// the result is ErrAbstain, which refuses unless another hook decides.
func (how rule) decide(n int, ask func(i int) error) error {
	result := ErrAbstain
	for i := range n {
		err := ask(i)
		switch {
		case err == nil && how == every:
			result = nil
		case err == nil:
			return nil
		case errors.Is(err, ErrAbstain):
		case how != some:
			return err
		case result == ErrAbstain:
			result = err
		}
	}
	return result
}

// ChainAuthenticators asks the Authenticators in order. The first that does not abstain decides.
// Changes of the other members to the Grant are undone.
func ChainAuthenticators(of ...Authenticator) Authenticator { return authenticators{first, of} }

// AllAuthenticators accepts a client if at least one of the Authenticators accepts it and the
// others accept or abstain. It asks them in order. Each sees the Grant as the earlier ones left it,
// and the first refusal is the answer.
func AllAuthenticators(of ...Authenticator) Authenticator { return authenticators{every, of} }

// AnyAuthenticator accepts a client if one of the Authenticators does. It asks them in order and
// stops at the first that accepts, whose Grant holds. If none accepts, the first refusal is the
// answer.
func AnyAuthenticator(of ...Authenticator) Authenticator { return authenticators{some, of} }

type authenticators struct {
	rule rule
	of   []Authenticator
}

// HookMembers is for the broker, which refuses combinations that contain nil.
func (a authenticators) HookMembers() []any { return members(a.of) }

func members[T any](of []T) (all []any) {
	for _, x := range of {
		all = append(all, x)
	}
	return all
}

func (a authenticators) Authenticate(ctx context.Context, r *ConnectRequest) error {
	granted := *r.Grant
	err := a.rule.decide(len(a.of), func(i int) error {
		before := *r.Grant
		err := a.of[i].Authenticate(ctx, r)
		if err != nil {
			*r.Grant = before
		}
		return err
	})
	if err != nil {
		*r.Grant = granted
	}
	return err
}

// ChainAuthorizers asks the Authorizers in order. The first that does not abstain decides.
//
// The Authorizers of ChainAuthorizers, AllAuthorizers and AnyAuthorizer are also a [Reloader] for
// the members that are one, [Stable] if all members are, and a [DeliveryAuthorizer] if one member
// is. In the last case the same rule decides a delivery. It asks each DeliveryAuthorizer about the
// delivery, and each other member whether the client may subscribe to the topic of the message. So
// a delivery needs the rule's permission even if the subscription was allowed by a member that
// leaves the decision to the delivery. All members must then answer from memory. One that calls a
// server holds up the publisher, once per Session and topic.
func ChainAuthorizers(of ...Authorizer) Authorizer { return authorizers{first, of}.combined() }

// AllAuthorizers allows a request if at least one of the Authorizers allows it and the others allow
// or abstain. It asks them in order, and the first refusal is the answer.
func AllAuthorizers(of ...Authorizer) Authorizer { return authorizers{every, of}.combined() }

// AnyAuthorizer allows a request if one of the Authorizers allows it. It asks them in order and
// stops at the first that allows. If none does, the first refusal is the answer.
func AnyAuthorizer(of ...Authorizer) Authorizer { return authorizers{some, of}.combined() }

type authorizers struct {
	rule rule
	of   []Authorizer
}

// combined returns a, as a DeliveryAuthorizer if a member is one: the broker asks every hook with
// that method about deliveries.
func (a authorizers) combined() Authorizer {
	for _, x := range a.of {
		if _, ok := x.(DeliveryAuthorizer); ok {
			return deliveryAuthorizers{a}
		}
	}
	return a
}

type deliveryAuthorizers struct{ authorizers }

func (a deliveryAuthorizers) AuthorizeDelivery(ctx context.Context, r *AccessRequest) error {
	q := *r
	q.Action = ActionSubscribe // to the topic itself, for members without AuthorizeDelivery
	return a.rule.decide(len(a.of), func(i int) error {
		if d, ok := a.of[i].(DeliveryAuthorizer); ok {
			return d.AuthorizeDelivery(ctx, r)
		}
		return a.of[i].Authorize(ctx, &q)
	})
}

// HookMembers is for the broker, which refuses combinations that contain nil.
func (a authorizers) HookMembers() []any { return members(a.of) }

func (a authorizers) Authorize(ctx context.Context, r *AccessRequest) error {
	return a.rule.decide(len(a.of), func(i int) error { return a.of[i].Authorize(ctx, r) })
}

func (a authorizers) OnReload(f func()) (stop func()) {
	var stops []func()
	for _, x := range a.of {
		if x, ok := x.(Reloader); ok {
			stops = append(stops, x.OnReload(f))
		}
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

func (a authorizers) Stable() bool {
	for _, x := range a.of {
		if x, ok := x.(Stable); !ok || !x.Stable() {
			return false
		}
	}
	return true
}
