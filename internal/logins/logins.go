// Package logins bounds how often authentication may fail, by address and name, and by address
// alone, and remembers which names were accepted from which address.
//
// A failure is counted before it has happened: Begin takes a token, and Accepted or Undecided gives
// it back. So guesses that come at once are counted as those that come one after the other.
package logins

import (
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// MaxEntries bounds the names that failed lately, addresses among them, and the names that are
// known.
const MaxEntries = 1 << 16

// Limits are how many authentications may fail in a minute. Zero: any number.
type Limits struct {
	PerName    int // of one name at one address
	PerAddress int // of one address; it does not hold for names that are known there
}

// Who is a client that wants to authenticate.
type Who struct {
	// Addr is its address. The zero Addr is that of all clients without one.
	Addr netip.Addr
	// Name is its User Name, or what else tells it apart where it has none.
	Name string
	// Named says that Name is a User Name. Others never become known.
	Named bool
	// Exempt: the limits do not hold for it.
	Exempt bool
	// Again: it was accepted on the same connection. It is then held to the limit of its name
	// alone.
	Again bool
}

// A key is a name at an address. Of the name it holds a hash, so that long names take no more room.
// The hash 0 stands for the address itself.
type key struct {
	addr netip.Addr
	name uint64
}

// A tokens is how many failures there is room for. They come back at a steady rate.
type tokens struct {
	level float64
	at    time.Time // when level was right
}

type leaf struct{}

func (leaf) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "logins.Table.mu"} }

// A Table counts. Its methods may be called from any goroutine.
type Table struct {
	seed maphash.Seed // immutable

	mu       lock.Mutex[leaf]
	limits   Limits           // guarded by mu
	failures map[key]tokens   // those that have less than all; guarded by mu
	known    map[key]struct{} // guarded by mu
}

// New returns a Table in which nobody has failed and nobody is known.
func New(l Limits) *Table {
	return &Table{limits: l, seed: maphash.MakeSeed(), failures: map[key]tokens{},
		known: map[key]struct{}{}}
}

// Limit sets the limits from now on. What there was room for before is still there, as far as the
// new limits allow.
func (t *Table) Limit(l Limits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits = l
}

// An Attempt is one authentication under way. It counts as failed unless Accepted or Undecided is
// called, once.
type Attempt struct {
	// Known: the name was accepted from the address before.
	Known bool
	// Over: the address is over its limit, which does not hold for the client.
	Over bool

	of     key
	named  bool
	exempt bool
}

// Begin counts a failure. ok is false, and nothing counted, if there is no room for one.
func (t *Table) Begin(w Who, now time.Time) (a Attempt, ok bool) {
	a = Attempt{of: key{w.Addr, maphash.String(t.seed, w.Name)}, named: w.Named, exempt: w.Exempt}
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.named {
		_, a.Known = t.known[a.of]
	}
	if a.exempt {
		return a, true
	}
	a.Over = !t.roomLocked(a.address(), t.limits.PerAddress, now)
	if a.Over && !a.Known && !w.Again || !t.roomLocked(a.of, t.limits.PerName, now) {
		return a, false
	}
	t.countLocked(&a, -1, now)
	return a, true
}

func (a *Attempt) address() key { return key{addr: a.of.addr} }

// Accepted is the end of an authentication that succeeded.
func (t *Table) Accepted(a Attempt, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.countLocked(&a, 1, now)
	if a.named && !a.Known {
		makeRoom(t.known)
		t.known[a.of] = struct{}{}
	}
}

// Undecided is the end of an authentication that has neither succeeded nor failed.
func (t *Table) Undecided(a Attempt, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.countLocked(&a, 1, now)
}

// countLocked adds n to what the name and the address have left.
func (t *Table) countLocked(a *Attempt, n float64, now time.Time) {
	if a.exempt {
		return
	}
	t.addLocked(a.of, t.limits.PerName, n, now)
	if !a.Over {
		t.addLocked(a.address(), t.limits.PerAddress, n, now)
	}
}

// roomLocked says whether there is room for a failure.
func (t *Table) roomLocked(of key, most int, now time.Time) bool {
	k, ok := t.failures[of]
	return !ok || most <= 0 || k.now(most, now) >= 1
}

// addLocked adds n to what there is.
func (t *Table) addLocked(of key, most int, n float64, now time.Time) {
	if most <= 0 {
		return
	}
	level := float64(most)
	k, ok := t.failures[of]
	if ok {
		level = k.now(most, now)
	}
	if level += n; level >= float64(most) {
		delete(t.failures, of)
		return
	}
	if !ok {
		makeRoom(t.failures)
	}
	if k.at.Before(now) {
		k.at = now
	}
	k.level = level
	t.failures[of] = k
}

// now returns how many there are of at most most, which come in a minute.
func (k tokens) now(most int, now time.Time) float64 {
	return min(float64(most), k.level+max(now.Sub(k.at).Minutes(), 0)*float64(most))
}

// makeRoom keeps a map within MaxEntries. Which entry goes is not for an attacker to choose: it is
// any of them.
func makeRoom[V any](of map[key]V) {
	if len(of) < MaxEntries {
		return
	}
	for old := range of {
		delete(of, old)
		return
	}
}
