// Package given knows the subscriptions that the server makes for clients: for whom they are, and
// how the store keeps them. It does not know what a Session is.
package given

import (
	"context"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A Scope says whom subscriptions are for.
type Scope byte

// The Scopes.
const (
	ToSession   Scope = 's' // one Session, as long as it lasts. The name is its place
	ToClient    Scope = 'c' // each Session with a Client Identifier
	ToPrincipal Scope = 'p' // each Session of a principal
)

// A Key says whom subscriptions are for.
type Key struct {
	Scope Scope
	Name  string
}

// Prefix begins the Client Identifiers of the records in the store. There, a record is a Session
// with the name of its Key as the principal, and the subscriptions of the Key. No Session of a
// client or of the program can have such a Client Identifier.
const Prefix = "$local/\x00given/"

// removable is the Subscription Identifier, in the store, of what the client may remove.
const removable = 1

// A Lifetime says whether a record outlives the process.
type Lifetime bool

// The Lifetimes.
const (
	Passing Lifetime = false
	Lasting Lifetime = true
)

// A record is what one Key has. It has at least one subscription.
type record struct {
	number uint64               // in the store; 0: it is not there
	subs   []hooks.Subscription // in the order of their filters
	// The store may have something else: with what is put next all of it is written
	doubtful bool
}

// find returns the place of the subscription to filter. r may be nil.
func (r *record) find(filter string) (at int, found bool) {
	if r == nil {
		return 0, false
	}
	return slices.BinarySearchFunc(r.subs, filter, func(s hooks.Subscription, filter string) int {
		return strings.Compare(s.Filter, filter)
	})
}

// set makes or replaces a subscription.
func (r *record) set(s hooks.Subscription) {
	at, found := r.find(s.Filter)
	if !found {
		r.subs = slices.Insert(r.subs, at, s)
	}
	r.subs[at] = s
}

// end ends a subscription, and says whether there was one.
func (r *record) end(filter string) bool {
	at, found := r.find(filter)
	if found {
		r.subs = slices.Delete(r.subs, at, at+1)
	}
	return found
}

type rank struct{}

func (rank) Rank() lock.Rank {
	return lock.Rank{Order: lock.BeforeLeaf, Name: "given.Table.mu"}
}

// A Table has the subscriptions of all Keys, and, from Follow on, the members of each principal: M
// is a Session, B what one waits for until the store has a change. The methods may be called from
// any goroutine.
type Table[M comparable, B any] struct {
	handler Handler[M, B] // immutable

	mu      lock.Mutex[rank]
	of      map[Key]*record           // guarded by mu, as are the next two
	loading map[uint64]*loading       // by the number of the record; nil from Loaded on
	members map[string]map[M]struct{} // by principal; nil: nobody follows
	entered map[Key]chan struct{}     // see Enter
}

// New returns an empty Table.
func New[M comparable, B any](h Handler[M, B]) *Table[M, B] {
	return &Table[M, B]{
		handler: h, of: make(map[Key]*record), entered: make(map[Key]chan struct{}),
	}
}

// addLocked tells the store, if there is something to tell.
func (t *Table[M, B]) addLocked(ops []store.Op) (wait B) {
	if len(ops) > 0 {
		wait = t.handler.Add(ops...)
	}
	return wait
}

// Put makes or replaces subscriptions of k. It returns what to wait for until the store has them,
// which is zero if there is nothing to wait for.
func (t *Table[M, B]) Put(k Key, l Lifetime, list ...hooks.Subscription) (wait B) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addLocked(t.putLocked(k, l, list))
}

func (t *Table[M, B]) putLocked(k Key, l Lifetime, list []hooks.Subscription) (ops []store.Op) {
	if len(list) == 0 {
		return nil
	}
	r, had := t.of[k], true
	if r == nil {
		r, had = new(record), false
		t.of[k] = r
		if l == Lasting {
			r.number = t.handler.Next()
		}
	}
	// in the order of the record: each is then appended, and set moves no other one
	list = slices.SortedStableFunc(slices.Values(list), func(a, b hooks.Subscription) int {
		return strings.Compare(a.Filter, b.Filter)
	})
	for i := range list {
		if at, found := r.find(list[i].Filter); found && r.subs[at] == list[i] {
			continue
		}
		r.set(list[i])
		ops = append(ops, r.putSub(&list[i]))
	}
	switch {
	case r.number == 0:
		return nil
	case !had:
		return append([]store.Op{r.put(k)}, ops...)
	case r.doubtful:
		r.doubtful = false
		// what the store may have, and what there is
		ops = []store.Op{&store.DeleteSession{Session: r.number}, r.put(k)}
		for i := range r.subs {
			ops = append(ops, r.putSub(&r.subs[i]))
		}
	}
	return ops
}

// putSub is what the store is told of s, which is of r.
func (r *record) putSub(s *hooks.Subscription) store.Op {
	op := &store.PutSubscription{Session: r.number, Subscription: s.Subscription}
	if s.ClientMayRemove {
		op.ID = removable
	}
	return op
}

// Enter waits until nobody else is between Enter and Leave with k, or until ctx ends, and returns
// the cause of that. Whoever puts subscriptions that the store may refuse stays there until that is
// known: what is put meanwhile would be lost with what is restored.
func (t *Table[M, B]) Enter(ctx context.Context, k Key) error {
	for {
		t.mu.Lock()
		other := t.entered[k]
		if other == nil {
			t.entered[k] = make(chan struct{})
		}
		t.mu.Unlock()
		if other == nil {
			return nil
		}
		lock.NoneHeld("a wait")
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Leave ends what Enter has begun.
func (t *Table[M, B]) Leave(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.entered[k])
	delete(t.entered, k)
}

// DoubtOwn is Doubt for what Resume has put for m.
func (t *Table[M, B]) DoubtOwn(m M) { t.Doubt(t.handler.Keys(m)[0]) }

// Doubt notes that the store may not have taken what was put for k: the next Put or Resume writes
// it all.
func (t *Table[M, B]) Doubt(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.of[k]; r != nil {
		r.doubtful = true
	}
}

// put is what the store keeps of r beside its subscriptions.
func (r *record) put(k Key) *store.PutSession {
	const never = 1<<32 - 1
	return &store.PutSession{
		Session: r.number, ClientID: Prefix + string(rune(k.Scope)), Principal: k.Name,
		Expiry: never,
	}
}

// Remove ends subscriptions of k. It returns the filters of those that there were, and what to wait
// for.
func (t *Table[M, B]) Remove(k Key, filters ...string) (removed []string, wait B) {
	t.mu.Lock()
	defer t.mu.Unlock()
	removed, ops := t.removeLocked(k, filters)
	return removed, t.addLocked(ops)
}

func (t *Table[M, B]) removeLocked(k Key, filters []string) (removed []string, ops []store.Op) {
	r := t.of[k]
	if r == nil {
		return nil, nil
	}
	for _, f := range filters {
		if !r.end(f) {
			continue
		}
		removed = append(removed, f)
		if r.number != 0 {
			ops = append(ops, &store.DeleteSubscription{Session: r.number, Filter: f})
		}
	}
	if len(r.subs) > 0 {
		return removed, ops
	}
	delete(t.of, k)
	if r.number == 0 {
		return removed, nil
	}
	return removed, []store.Op{&store.DeleteSession{Session: r.number}}
}

// Replace puts list in the place of what k has: the store takes all of that or nothing, unless it
// only takes away. It returns the filters of what k had and does not have any more, and what to
// wait for, which is zero if the store is only told of what k does not have any more.
func (t *Table[M, B]) Replace(
	k Key, l Lifetime, list []hooks.Subscription,
) (removed []string, wait B) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ops := t.putLocked(k, l, list)
	if r := t.of[k]; r != nil {
		stays := make(map[string]bool, len(list))
		for _, s := range list {
			stays[s.Filter] = true
		}
		var old []string
		for _, s := range r.subs {
			if !stays[s.Filter] {
				old = append(old, s.Filter)
			}
		}
		var more []store.Op
		removed, more = t.removeLocked(k, old)
		if len(ops) == 0 {
			t.addLocked(more)
			return removed, wait
		}
		ops = append(ops, more...)
	}
	return removed, t.addLocked(ops)
}

// RemoveByClient ends the subscriptions to filter of those of the keys of which the client may do
// that, and returns these keys. There may be others left.
func (t *Table[M, B]) RemoveByClient(filter string, keys ...Key) (changed []Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		r := t.of[k]
		if at, found := r.find(filter); !found || !r.subs[at].ClientMayRemove {
			continue
		}
		_, ops := t.removeLocked(k, []string{filter})
		t.addLocked(ops)
		changed = append(changed, k)
	}
	return changed
}

// Get returns a copy of the subscriptions of k, in the order of their filters.
func (t *Table[M, B]) Get(k Key) []hooks.Subscription {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.of[k]; r != nil {
		return slices.Clone(r.subs)
	}
	return nil
}

// Restore makes the subscription to filter of k what it was, nil for none, unless it is not what it
// was put as any more. It is for what the store did not take, nor anything put with it.
func (t *Table[M, B]) Restore(k Key, put hooks.Subscription, was *hooks.Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.of[k]
	at, found := r.find(put.Filter)
	switch {
	case !found || r.subs[at] != put:
	case was != nil:
		r.subs[at] = *was
	default:
		_, ops := t.removeLocked(k, []string{put.Filter})
		t.addLocked(ops)
	}
}

// Find returns what the subscriptions to filter of all keys come to: the highest QoS, No Local and
// ClientMayRemove only if all have it.
func (t *Table[M, B]) Find(filter string, keys ...Key) (s hooks.Subscription, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		r := t.of[k]
		at, found := r.find(filter)
		if !found {
			continue
		}
		x := r.subs[at]
		if !ok {
			s, ok = x, true
			continue
		}
		s.QoS = max(s.QoS, x.QoS)
		s.NoLocal = s.NoLocal && x.NoLocal
		s.RetainAsPublished = s.RetainAsPublished || x.RetainAsPublished
		s.RetainHandling = min(s.RetainHandling, x.RetainHandling)
		s.ClientMayRemove = s.ClientMayRemove && x.ClientMayRemove
	}
	return s, ok
}

// Filters returns the filters of all subscriptions of the keys, each once.
func (t *Table[M, B]) Filters(keys ...Key) (all []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		r := t.of[k]
		if r == nil {
			continue
		}
		for _, s := range r.subs {
			all = append(all, s.Filter)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Limits bound the filters.
type Limits struct{ Length, Levels, WildcardLevels int }

// Check says what is wrong with subscriptions.
func (l Limits) Check(list []hooks.Subscription) error {
	for i := range list {
		if err := l.check(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

func (l Limits) check(s *hooks.Subscription) error {
	group, filter, err := packets.SplitShared(s.Filter)
	levels := l.Levels
	if strings.ContainsAny(filter, "+#") {
		levels = l.WildcardLevels
	}
	switch {
	case err != nil:
		return err
	case !packets.ValidTopicFilter(filter):
		return packets.Errorf(packets.TopicFilterInvalid, "%.100q is not a valid Topic Filter",
			s.Filter)
	case len(s.Filter) > l.Length:
		return packets.Errorf(packets.TopicFilterInvalid,
			"a filter of %d bytes, at most %d are possible", len(s.Filter), l.Length)
	case packets.Levels(filter) > levels:
		return packets.Errorf(packets.TopicFilterInvalid,
			"a filter of %d levels, at most %d are possible", packets.Levels(filter), levels)
	case s.QoS > packets.QoS2:
		return packets.Errorf(packets.ProtocolError, "QoS %d, at most 2 is possible", s.QoS)
	case s.RetainHandling > 2:
		return packets.Errorf(packets.ProtocolError, "Retain Handling %d, at most 2 is possible",
			s.RetainHandling)
	case group != "" && s.NoLocal:
		return packets.Errorf(packets.ProtocolError, "No Local with a shared subscription")
	}
	return nil
}
