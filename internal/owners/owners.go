// Package owners counts what each principal makes the broker keep, over all its Sessions, and holds
// that to limits.
package owners

import (
	"math"
	"strings"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// A Kind is what is counted.
type Kind uint8

// What is counted.
const (
	Sessions      Kind = iota
	Connections        // that have a Session
	Subscriptions      // by weight, see Weight
	Retained           // retained messages
	RetainedBytes
	QueuedBytes // of all queues, and of what is not acknowledged
	Delayed     // delayed messages
	Kept        // bytes that stay: retained messages, subscriptions, Sessions, connections
	Footprints  // those of them that Sessions and connections take at least
	Kinds       // how many there are
)

// Limits has a limit for each kind. None is math.MaxInt64.
type Limits [Kinds]int64

// Unlimited is no limit for any kind.
func Unlimited() (l Limits) {
	for k := range l {
		l[k] = math.MaxInt64
	}
	return l
}

// Weight is what a subscription to filter counts, whose ShareName is group: one, one more for every
// 128 bytes, and one more for every 8 levels of a filter with wildcards. In the subscription tree a
// unit then takes at most about 700 bytes.
func Weight(group, filter string) int64 {
	n := (len(group) + len(filter)) / 128
	if strings.ContainsAny(filter, "+#") {
		n += strings.Count(filter, "/") / 8
	}
	return 1 + int64(n)
}

// An Account is what one principal has. Its methods take no lock. The nil *Account is an owner that
// is not counted: there is always room.
type Account struct {
	name  string
	holds int // guarded by Table.mu
	used  [Kinds]atomic.Int64
	most  [Kinds]atomic.Int64
}

// Limit sets the limits from now on. What is beyond them stays.
func (a *Account) Limit(l Limits) {
	if a == nil {
		return
	}
	for k := range l {
		a.most[k].Store(l[k])
	}
}

// Room says whether n more fit. What makes it less always fits.
func (a *Account) Room(k Kind, n int64) bool {
	return a == nil || n <= 0 || a.used[k].Load()+n <= a.most[k].Load()
}

// Take counts n more if they fit, and says whether they do.
func (a *Account) Take(k Kind, n int64) bool {
	if a == nil {
		return true
	}
	if now := a.used[k].Add(n); n > 0 && now > a.most[k].Load() {
		a.used[k].Add(-n)
		return false
	}
	return true
}

// Add counts n more, or less, whatever the limit is.
func (a *Account) Add(k Kind, n int64) {
	if a != nil {
		a.used[k].Add(n)
	}
}

// Most returns the limit.
func (a *Account) Most(k Kind) int64 {
	if a == nil {
		return math.MaxInt64
	}
	return a.most[k].Load()
}

// Used returns how much there is.
func (a *Account) Used(k Kind) int64 {
	if a == nil {
		return 0
	}
	return a.used[k].Load()
}

type leaf struct{}

func (leaf) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "owners.Table.mu"} }

// A Table has the Accounts of those who have anything. Its lock is a leaf. The methods may be
// called from any goroutine. The nil *Table has no Accounts, and counts nothing.
type Table struct {
	mu     lock.Mutex[leaf]
	limits Limits              // of a new Account; guarded by mu
	of     map[string]*Account // guarded by mu
}

// New returns an empty Table.
func New(l Limits) *Table { return &Table{limits: l, of: make(map[string]*Account)} }

// Limit sets the limits of Accounts that are opened from now on. Others keep theirs.
func (t *Table) Limit(l Limits) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits = l
}

// Open returns the Account of a name, and holds it until Close.
func (t *Table) Open(name string) *Account {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.of[name]
	if a == nil {
		a = &Account{name: name}
		a.Limit(t.limits)
		t.of[name] = a
	}
	a.holds++
	return a
}

// Close is the end of what Open began. An Account that nobody holds is forgotten.
func (t *Table) Close(a *Account) {
	if a == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.holds--; a.holds == 0 {
		delete(t.of, a.name)
	}
}

// Len returns how many Accounts are held.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.of)
}
