// Package recent keeps the last connections that ended, and the last messages that were dropped,
// each bounded in number and bytes. What happens again and again to the same client is one entry
// with a count, so that one client in a loop does not push out all others.
package recent

import (
	"strings"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// Limits bound one list. Most is how many entries it has, Bytes how much they take together.
type Limits struct{ Most, Bytes int }

// bytesOfOne is how many bytes an entry stands for.
const bytesOfOne = 512

// LimitsFor returns the limits for most entries.
func LimitsFor(most int) Limits {
	most = min(most, 1<<20)
	return Limits{Most: most, Bytes: most * bytesOfOne}
}

// Longest is how many bytes of a string are kept.
const Longest = 256

// Cut returns s, or as much of it as is kept. What it returns does not share memory with a longer
// string.
func Cut(s string) string {
	if len(s) <= Longest {
		return s
	}
	const more = "…"
	n := Longest - len(more)
	for n > Longest-len(more)-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.Clone(s[:n]) + more
}

type leaf struct{}

func (leaf) Rank() lock.Rank {
	return lock.Rank{Order: lock.Leaf, Name: "the lock of a list of package recent"}
}

// A list holds entries in the order in which they were touched last. The caller guards it.
type list[T any] struct {
	limits         Limits
	slots          []slot[T]
	index          map[uint64]int32
	newest, oldest int32 // none if there is none
	bytes          int
}

const none = -1

type slot[T any] struct {
	v            T
	key          uint64
	size         int
	newer, older int32
}

func newList[T any](l Limits) list[T] {
	return list[T]{limits: l, index: make(map[uint64]int32), newest: none, oldest: none}
}

// again returns the entry with a key, now the newest, nil if there is none.
func (l *list[T]) again(key uint64) *T {
	i, ok := l.index[key]
	if !ok {
		return nil
	}
	if i != l.newest {
		l.unlink(i)
		l.link(i)
	}
	return &l.slots[i].v
}

// add adds an entry, which takes size bytes, and removes the oldest ones where there is no room. An
// entry with its key must not be there.
func (l *list[T]) add(key uint64, v T, size int) {
	if l.limits.Most <= 0 || size > l.limits.Bytes {
		return
	}
	i := int32(none)
	for len(l.index) >= l.limits.Most || l.bytes+size > l.limits.Bytes {
		i = l.oldest
		l.remove(i)
	}
	if i == none {
		i = l.place()
	}
	l.slots[i] = slot[T]{v: v, key: key, size: size}
	l.index[key] = i
	l.bytes += size
	l.link(i)
}

// place returns a slot that is free.
func (l *list[T]) place() int32 {
	if len(l.slots) == len(l.index) {
		l.slots = append(l.slots, slot[T]{})
		return int32(len(l.slots) - 1)
	}
	for i := range l.slots { // as few as were removed for one that was larger
		if l.slots[i].size == 0 {
			return int32(i)
		}
	}
	panic("BUG: no slot is free, although fewer are taken than there are")
}

// remove takes slot i out.
func (l *list[T]) remove(i int32) {
	l.unlink(i)
	delete(l.index, l.slots[i].key)
	l.bytes -= l.slots[i].size
	l.slots[i] = slot[T]{}
}

func (l *list[T]) unlink(i int32) {
	s := &l.slots[i]
	if s.newer == none {
		l.newest = s.older
	} else {
		l.slots[s.newer].older = s.older
	}
	if s.older == none {
		l.oldest = s.newer
	} else {
		l.slots[s.older].newer = s.newer
	}
}

// link makes slot i, which is in no place, the newest.
func (l *list[T]) link(i int32) {
	s := &l.slots[i]
	s.newer, s.older = none, l.newest
	if l.newest == none {
		l.oldest = i
	} else {
		l.slots[l.newest].newer = i
	}
	l.newest = i
}

// each yields the entries, newest first.
func (l *list[T]) each(yield func(v *T) bool) {
	for i := l.newest; i != none; i = l.slots[i].older {
		if !yield(&l.slots[i].v) {
			return
		}
	}
}
