package given

import (
	"maps"
	"slices"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file says which subscriptions a Session has, and which Sessions a principal has.

// Retained says whether retained messages are sent for a subscription.
type Retained byte

// The values of Retained.
const (
	RetainedAsAsked Retained = iota // as its Retain Handling says
	RetainedSkipped
)

// A Handler does to Sessions and to the store what a Table decides.
type Handler[M, B any] interface {
	// Next returns a number for a new record in the store, 0 if there is no store. Add tells the
	// store of changes, and returns what to wait for. If one of them adds, the store takes all of
	// them or none. Both are called with the lock of the Table held, so that the operations are in
	// the order of the changes. The others are called without.
	Next() uint64
	Add(ops ...store.Op) B
	// Keys returns whom the subscriptions of m are for. The first is that of the Session itself.
	Keys(m M) []Key
	// Lifetime says whether m lasts. The lock of m is held.
	Lifetime(m M) Lifetime
	// Give makes or replaces the subscription of m that the server made to filter, or ends it if s
	// is nil. The lock of m is held.
	Give(m M, filter string, s *hooks.Subscription, r Retained)
	// Changed has each Session of k get what its subscriptions to these filters are now.
	Changed(k Key, filters []string)
	// Tell reports a subscription of m.
	Tell(m M, s *hooks.Subscription)
}

// Begin gives m, a Session that begins, its subscriptions: those of its CONNECT, and those that
// were there for it. It returns what to wait for. The lock of m is held.
func (t *Table[M, B]) Begin(m M, list []hooks.Subscription) (wait B) {
	if len(list) == 0 && t.idle() {
		return wait
	}
	keys := t.handler.Keys(m)
	wait = t.Put(keys[0], t.handler.Lifetime(m), list...)
	t.enter(m, keys, RetainedAsAsked)
	return wait
}

// Reload gives m, which was loaded, the subscriptions that were loaded for it.
func (t *Table[M, B]) Reload(m M) {
	if !t.idle() {
		t.enter(m, t.handler.Keys(m), RetainedSkipped)
	}
}

// idle says whether there are no subscriptions at all, and nobody follows principals.
func (t *Table[M, B]) idle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.of) == 0 && t.members == nil
}

func (t *Table[M, B]) enter(m M, keys []Key, r Retained) {
	t.join(m, keys)
	for _, f := range t.Filters(keys...) {
		t.Update(m, f, r)
	}
}

// Own returns a copy of the subscriptions that Resume replaces. It is never nil.
func (t *Table[M, B]) Own(m M) []hooks.Subscription {
	return append([]hooks.Subscription{}, t.Get(t.handler.Keys(m)[0])...)
}

// Resume gives m, which a client resumes, the subscriptions of its CONNECT in the place of those
// that an earlier one has brought. Nil: these stay. It returns what to wait for, which is zero if
// nothing was put. Then the store takes away even if it is full. The lock of m is held.
func (t *Table[M, B]) Resume(m M, list []hooks.Subscription) (wait B) {
	if list == nil {
		return wait
	}
	removed, wait := t.Replace(t.handler.Keys(m)[0], t.handler.Lifetime(m), list)
	for _, f := range removed {
		t.Update(m, f, RetainedAsAsked)
	}
	for i := range list {
		t.Update(m, list[i].Filter, RetainedAsAsked)
	}
	return wait
}

// Update gives m what its subscription to filter is now. The lock of m is held.
func (t *Table[M, B]) Update(m M, filter string, r Retained) {
	if s, ok := t.Find(filter, t.handler.Keys(m)...); ok {
		t.handler.Give(m, filter, &s, r)
	} else {
		t.handler.Give(m, filter, nil, r)
	}
}

// End is the end of m. The lock of m is held.
func (t *Table[M, B]) End(m M) {
	if t.idle() {
		return
	}
	keys := t.handler.Keys(m)
	t.Replace(keys[0], Passing, nil)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		if of := t.members[k.Name]; k.Scope == ToPrincipal && of != nil {
			if delete(of, m); len(of) == 0 {
				delete(t.members, k.Name)
			}
		}
	}
}

// Announce tells of the subscriptions of m after a CONNECT that brought list: of these if it has
// resumed m, and otherwise of all.
func (t *Table[M, B]) Announce(m M, resumed bool, list []hooks.Subscription) {
	if resumed {
		for i := range list {
			t.handler.Tell(m, &list[i])
		}
		return
	}
	if t.idle() {
		return
	}
	keys := t.handler.Keys(m)
	for _, f := range t.Filters(keys...) {
		if s, ok := t.Find(f, keys...); ok {
			t.handler.Tell(m, &s)
		}
	}
}

// Unsubscribe is for an UNSUBSCRIBE of m, which has no subscription of its own to filter. It
// returns the Reason Code for that.
func (t *Table[M, B]) Unsubscribe(m M, filter string) packets.ReasonCode {
	if t.idle() {
		return packets.NoSubscriptionExisted
	}
	keys := t.handler.Keys(m)
	_, had := t.Find(filter, keys...)
	for _, k := range t.RemoveByClient(filter, keys...) {
		t.handler.Changed(k, []string{filter})
	}
	_, has := t.Find(filter, keys...)
	switch {
	case has:
		return packets.NotAuthorized
	case had:
		return packets.Success
	}
	return packets.NoSubscriptionExisted
}

// Follow has the Table know the members of each principal from now on: those that begin, and those
// for which Join is called. It returns false if it did already.
func (t *Table[M, B]) Follow() (begins bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	begins = t.members == nil
	if begins {
		t.members = make(map[string]map[M]struct{})
	}
	return begins
}

// Join makes m a member of its principal, if it has one. The lock of m is held.
func (t *Table[M, B]) Join(m M) { t.join(m, t.handler.Keys(m)) }

func (t *Table[M, B]) join(m M, keys []Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		if k.Scope != ToPrincipal || t.members == nil {
			continue
		}
		if t.members[k.Name] == nil {
			t.members[k.Name] = make(map[M]struct{}, 1)
		}
		t.members[k.Name][m] = struct{}{}
	}
}

// Members returns the members of a principal.
func (t *Table[M, B]) Members(principal string) []M {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.members[principal]))
}
