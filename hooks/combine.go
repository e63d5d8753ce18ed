package hooks

import (
	"context"
	"errors"
)

// A rule says how several decisions become one.
type rule byte

const (
	first rule = iota // the first opinion wins
	every             // every opinion must be to allow
	some              // one opinion to allow is enough
)

// decide asks n deciders in order, no more of them than the rule needs. If none has an opinion the result is ErrAbstain,
// which refuses unless somebody else decides.
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

// ChainAuthenticators asks the Authenticators in order. The first that does not abstain decides. What others wrote into the
// Grant is undone.
func ChainAuthenticators(of ...Authenticator) Authenticator { return authenticators{first, of} }

// AllAuthenticators accepts a client if at least one of the Authenticators accepts it and the others accept or abstain. They
// are asked in order, each sees the Grant as those before it left it, and the first refusal is the answer.
func AllAuthenticators(of ...Authenticator) Authenticator { return authenticators{every, of} }

// AnyAuthenticator accepts a client if one of the Authenticators does. They are asked in order until then; the Grant is
// that of the one that accepted. If none does, the first refusal is the answer.
func AnyAuthenticator(of ...Authenticator) Authenticator { return authenticators{some, of} }

type authenticators struct {
	rule rule
	of   []Authenticator
}

// HookMembers is for the broker, which refuses combinations with nil in them.
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
// What this function and its two sisters return is also a [Reloader] for those of the Authorizers that are, [Stable] if
// all of them are, and a [DeliveryAuthorizer] if one of them is. Then a delivery is decided by the same rule as all else: those that are
// DeliveryAuthorizers are asked about the delivery, and the others whether the client may subscribe to a filter that is the
// very topic of the message. So nothing is delivered that the rule does not allow, even if the subscription was allowed by one that
// leaves the decision to the delivery. The others, too, must then answer from memory: one that asks a server delays who publishes.
func ChainAuthorizers(of ...Authorizer) Authorizer { return authorizers{first, of}.combined() }

// AllAuthorizers allows what at least one of the Authorizers allows and the others allow or abstain from. They are asked in
// order, and the first refusal is the answer.
func AllAuthorizers(of ...Authorizer) Authorizer { return authorizers{every, of}.combined() }

// AnyAuthorizer allows what one of the Authorizers allows. They are asked in order until then. If none does, the first
// refusal is the answer.
func AnyAuthorizer(of ...Authorizer) Authorizer { return authorizers{some, of}.combined() }

type authorizers struct {
	rule rule
	of   []Authorizer
}

// combined returns a, as a DeliveryAuthorizer if there is one in it: the broker asks about deliveries whoever has the method.
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
	q.Action = Subscribe // to the one topic, for those that know of no deliveries
	return a.rule.decide(len(a.of), func(i int) error {
		if d, ok := a.of[i].(DeliveryAuthorizer); ok {
			return d.AuthorizeDelivery(ctx, r)
		}
		return a.of[i].Authorize(ctx, &q)
	})
}

// HookMembers is for the broker, which refuses combinations with nil in them.
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
