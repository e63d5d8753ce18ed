package jwt

import (
	"context"
	"strings"
	"sync"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
)

// maxLists and maxListBytes bound the cached rules: how many different pairs of claims, and their
// length together.
const (
	maxLists     = 1024
	maxListBytes = 1 << 20
)

// Authorizer returns an Authorizer that applies the claims Publish and Subscribe of the client's
// token, and refuses everything else. It allows a subscription if one of the filters of Subscribe
// matches everything that it can match (package acl). It abstains from clients whose token has
// neither claim, and from clients without a token.
func (t *Tokens) Authorizer() hooks.Authorizer {
	return &authorizer{lists: map[[2]string]*acl.ACL{}}
}

type authorizer struct {
	mu    sync.RWMutex
	lists map[[2]string]*acl.ACL // by what the two claims hold; guarded by mu
	size  int                    // of what they hold, in bytes; guarded by mu
}

// Authorize decides r.
func (a *authorizer) Authorize(ctx context.Context, r *hooks.AccessRequest) error {
	publish, canPublish := r.Client.Identity.Attributes[publishAttribute]
	subscribe, canSubscribe := r.Client.Identity.Attributes[subscribeAttribute]
	if !canPublish && !canSubscribe {
		return hooks.ErrAbstain
	}
	l, err := a.list([2]string{publish, subscribe})
	if err != nil {
		return err
	}
	return l.Authorize(ctx, r)
}

// Stable reports true: a decision depends on the Client, the Action and the Topic.
func (a *authorizer) Stable() bool { return true }

// list returns the rules of claims.
func (a *authorizer) list(of [2]string) (*acl.ACL, error) {
	a.mu.RLock()
	l := a.lists[of]
	a.mu.RUnlock()
	if l != nil {
		return l, nil
	}
	var rules []acl.Rule
	for i, action := range [2]hooks.Action{hooks.ActionPublish, hooks.ActionSubscribe} {
		if of[i] != "" {
			rules = append(rules,
				acl.Rule{
					Effect: acl.EffectAllow, Action: action, Filters: strings.Split(of[i], "\n"),
				})
		}
	}
	list, err := acl.Rules(rules...)
	if err != nil {
		return nil, err
	}
	l = acl.New(list)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lists[of] != nil {
		return l, nil // somebody else was faster
	}
	size := len(of[0]) + len(of[1])
	if len(a.lists) >= maxLists || a.size+size > maxListBytes {
		clear(a.lists)
		a.size = 0
	}
	a.lists[of] = l
	a.size += size
	return l, nil
}
