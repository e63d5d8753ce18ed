//go:build lockcheck

package lock

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"
)

// A Mutex is a sync.Mutex that knows its order and its holder.
type Mutex[R Ranked] struct{ mu sync.Mutex }

// Lock locks m.
func (m *Mutex[R]) Lock() {
	take[R](unsafe.Pointer(m))
	m.mu.Lock()
}

// TryLock locks m if nobody has locked it, and says whether it did. It never waits, so that the
// order does not matter.
func (m *Mutex[R]) TryLock() bool {
	ok := m.mu.TryLock()
	if ok {
		note(current(), newHeld[R](unsafe.Pointer(m)))
	}
	return ok
}

// Unlock unlocks m.
func (m *Mutex[R]) Unlock() {
	give[R](unsafe.Pointer(m))
	m.mu.Unlock()
}

// A RWMutex is a sync.RWMutex that knows its order and its holders. A goroutine that waits to read
// while it reads already is a fault as well: somebody may wait to write in between.
type RWMutex[R Ranked] struct{ mu sync.RWMutex }

// Lock locks m for writing.
func (m *RWMutex[R]) Lock() {
	take[R](unsafe.Pointer(m))
	m.mu.Lock()
}

// Unlock is the end of Lock.
func (m *RWMutex[R]) Unlock() {
	give[R](unsafe.Pointer(m))
	m.mu.Unlock()
}

// RLock locks m for reading.
func (m *RWMutex[R]) RLock() {
	take[R](unsafe.Pointer(m))
	m.mu.RLock()
}

// RUnlock is the end of RLock.
func (m *RWMutex[R]) RUnlock() {
	give[R](unsafe.Pointer(m))
	m.mu.RUnlock()
}

// Checked says whether this is the build that checks.
const Checked = true

// NoneHeld marks a place at which the goroutine must hold no lock. what says what happens there.
func NoneHeld(what string) {
	if held := holding(current()); len(held) > 0 {
		last := &held[len(held)-1]
		violated(fmt.Sprintf("%s while %s is held", what, last.Name), last)
	}
}

// Brief marks a place at which the goroutine must hold no lock, and which does not wait: a
// goroutine that serves many may come there.
func Brief(what string) {
	held := holding(current())
	if n := len(held); n > 0 && held[n-1].Order != First {
		violated(fmt.Sprintf("%s while %s is held", what, held[n-1].Name), &held[n-1])
	}
}

// Inside says that the goroutine holds a lock of somebody else's, with the Rank of R, until it
// calls leave.
func Inside[R Ranked]() (leave func()) {
	take[R](nil)
	return func() { give[R](nil) }
}

// held is a lock that a goroutine holds, or waits for.
type held struct {
	Rank
	lock  unsafe.Pointer // nil: of somebody else
	stack [24]uintptr    // where it was taken
	depth int
}

// A shard knows what some of the goroutines hold.
type shard struct {
	mu sync.Mutex
	of map[uintptr][]held
}

// The shards are state of the whole process, and so is the report: the price of locks whose zero
// value is ready, in a build that no program uses.
var shards [64]shard

func shardOf(g uintptr) *shard { return &shards[g>>6%uintptr(len(shards))] }

// holding returns what g, the calling goroutine, holds.
func holding(g uintptr) []held {
	s := shardOf(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[g]
}

// take notes that the goroutine is about to lock p.
func take[R Ranked](p unsafe.Pointer) {
	h, g := newHeld[R](p), current()
	have := holding(g)
	for i := range have {
		if !h.follows(&have[i]) {
			break
		}
	}
	note(g, h)
}

func newHeld[R Ranked](p unsafe.Pointer) held {
	var r R
	h := held{Rank: r.Rank(), lock: p}
	h.depth = runtime.Callers(4, h.stack[:])
	return h
}

// note adds h to what g holds.
func note(g uintptr, h held) {
	s := shardOf(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[uintptr][]held)
	}
	s.of[g] = append(s.of[g], h)
}

// follows says whether h may be taken while x is held, and reports it if not.
func (h *held) follows(x *held) bool {
	switch {
	case h.Order > x.Order:
		return true
	case h.Rank == x.Rank && h.Several && uintptr(x.lock) < uintptr(h.lock):
		return true
	case h.Order == x.Order:
		violated(fmt.Sprintf("%s is taken while %s is held: only one of them may be", h.Name,
			x.Name), x)
	default:
		violated(fmt.Sprintf("%s is taken while %s is held: %[1]s comes first", h.Name, x.Name), x)
	}
	return false
}

// give notes that the goroutine unlocks p.
func give[R Ranked](p unsafe.Pointer) {
	var r R
	if !forget(current(), p, r.Rank()) {
		violated(r.Rank().Name+" is unlocked by a goroutine that does not hold it", nil)
	}
}

// forget takes p from what g holds, and says whether it was there.
func forget(g uintptr, p unsafe.Pointer, r Rank) bool {
	s := shardOf(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.of[g]
	for i := len(have) - 1; i >= 0; i-- {
		if have[i].lock != p || have[i].Rank != r {
			continue
		}
		if have = slices.Delete(have, i, i+1); len(have) > 0 {
			s.of[g] = have
		} else {
			delete(s.of, g) // the next goroutine that is known by g starts anew
		}
		return true
	}
	return false
}

var report struct {
	sync.Mutex
	to func(violation string) // nil: the program ends
}

// Report has f called, instead of the end of the program, where a rule is violated. The goroutine
// then goes on. It returns a function that undoes this.
func Report(f func(violation string)) (undo func()) {
	report.Lock()
	defer report.Unlock()
	before := report.to
	report.to = f
	return func() {
		report.Lock()
		defer report.Unlock()
		report.to = before
	}
}

// violated reports what happened where h, which may be nil, is held.
func violated(what string, h *held) {
	var b strings.Builder
	fmt.Fprintf(&b, "lock: %s\n\nhere:\n", what)
	var here [32]uintptr
	trace(&b, here[:runtime.Callers(3, here[:])])
	if h != nil {
		fmt.Fprintf(&b, "\n%s was taken here:\n", h.Name)
		trace(&b, h.stack[:h.depth])
	}
	report.Lock()
	to := report.to
	report.Unlock()
	if to != nil {
		to(b.String())
		return
	}
	// on a goroutine of its own, so that nobody recovers it; the program ends, and nobody waits
	go panic(b.String())
	select {}
}

func trace(b *strings.Builder, stack []uintptr) {
	for frames := runtime.CallersFrames(stack); ; {
		f, more := frames.Next()
		fmt.Fprintf(b, "\t%s\n\t\t%s:%d\n", f.Function, f.File, f.Line)
		if !more {
			return
		}
	}
}
