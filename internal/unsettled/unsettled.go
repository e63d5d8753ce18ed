// Package unsettled knows which changes of an owner wait for the store, and lets the first one who
// knows the outcome settle them. It does not know what an owner or a change is.
package unsettled

import "github.com/dunlin-mqtt/dunlin/internal/lock"

type rank struct{}

func (rank) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "unsettled.Changes.mu"} }

// Changes are the unsettled changes of all owners. The zero value is ready to use. The methods may
// be called from any goroutine.
type Changes[Owner, Change comparable] struct {
	mu lock.Mutex[rank]
	of map[Owner][]Change // the oldest first
}

// Add notes that the outcome of c, which o has made, is not known yet.
func (x *Changes[Owner, Change]) Add(o Owner, c Change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.of == nil {
		x.of = make(map[Owner][]Change)
	}
	x.of[o] = append(x.of[o], c)
}

// Settle removes c, and says whether the caller is the first to do so. It is quick for the newest
// change of o.
func (x *Changes[Owner, Change]) Settle(o Owner, c Change) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.of[o]
	at := len(all) - 1
	for at >= 0 && all[at] != c {
		at--
	}
	switch {
	case at < 0:
		return false
	case len(all) == 1:
		delete(x.of, o)
	default:
		copy(all[at:], all[at+1:])
		clear(all[len(all)-1:])
		x.of[o] = all[:len(all)-1]
	}
	return true
}

// Of returns the changes of o for which like returns true, the oldest first.
func (x *Changes[Owner, Change]) Of(o Owner, like func(c Change) bool) (some []Change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.of[o] {
		if like(c) {
			some = append(some, c)
		}
	}
	return some
}

// Forget removes all changes of o.
func (x *Changes[Owner, Change]) Forget(o Owner) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.of, o)
}
