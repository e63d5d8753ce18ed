// Package timers calls functions when they are due. One ordered index holds all that is due, and
// one time.Timer waits for the first. Nothing is called on the goroutine of that timer: a bounded
// number of workers, started on demand, makes the calls.
package timers

import (
	"sync"
	"time"

	"github.com/google/btree"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// A Timer is a moment at which something of its owner is due. The zero Timer is not set. The owner
// keeps it, and guards it with a lock of its own: Set, SetSlow, Cancel and Over of one Timer must
// not be called concurrently.
type Timer struct {
	// Without the monotonic clock; zero: never. Written under the owner's lock and Timers.mu.
	at time.Time

	// Guarded by Timers.mu.
	do      func(now time.Time) // nil: nothing is to be called
	seq     uint64              // tells equal times apart: who was set first is called first
	lane    *lane               // whose workers call do
	share   string              // whose workers of the lane it takes
	indexed bool                // it is in lane.index
	parked  bool                // it is in lane.parked
	running bool                // a worker is in an earlier do of this Timer
	overdue bool                // at was over when it was set
}

// Over says whether what the Timer was set to last has come. A call asks it whether it is still
// wanted: after a later Set, or Cancel, the Timer is not over.
func (t *Timer) Over(now time.Time) bool { return !t.at.IsZero() && !t.at.After(now) }

type leaf struct{}

func (leaf) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "timers.Timers.mu"} }

// Timers calls what is due. Its methods may be called concurrently; none of them waits, except
// Close.
type Timers struct {
	// Late is told how long after its time each call begins, unless that time was over when it was
	// set. Late is set before the first Set, or nil, and called with a lock held.
	Late func(d time.Duration)

	mu      lock.Mutex[leaf] // a leaf. Guards what follows, and the Timers
	quick   lane
	slow    lane
	seq     uint64
	timer   *time.Timer // nil until the first Set
	closed  bool
	running sync.WaitGroup // workers
}

// A lane is the functions that share workers.
type lane struct {
	index   *btree.BTreeG[*Timer] // those that are not due, and those that wait for a worker
	workers int
	most    int // workers at a time

	// Where one share must not take all workers.
	each   int                              // workers of one share at a time; 0: no bound
	busy   map[string]int                   // workers, by share
	parked map[string]*btree.BTreeG[*Timer] // those that are due, of shares that have each
}

const (
	quickWorkers = 4   // for what only computes
	slowWorkers  = 256 // for what may wait for somebody else: so many at a time hold up nobody
	slowEach     = 64  // of these for one share
)

// New returns Timers without any goroutine. They must be ended with Close.
func New() *Timers {
	return &Timers{
		quick: lane{index: btree.NewG(16, before), most: quickWorkers},
		slow: lane{
			index: btree.NewG(16, before), most: slowWorkers, each: slowEach,
			busy: make(map[string]int), parked: make(map[string]*btree.BTreeG[*Timer]),
		},
	}
}

func before(a, b *Timer) bool {
	return a.at.Before(b.at) || a.at.Equal(b.at) && a.seq < b.seq
}

// Set has do called at the given time, in the place of what t was set to before. A time in the past
// is due at once, the zero time never. do is called once, on a goroutine of its own, with no lock
// held. It must not wait for anybody, and must find out whether it is still wanted: a Set or Cancel
// may come when the call has already begun. The calls of one Timer never overlap.
func (ts *Timers) Set(t *Timer, at time.Time, do func(now time.Time)) {
	ts.set(t, &ts.quick, "", at, do)
}

// SetSlow is Set for a do that may wait, for a decision for instance. Up to 256 such calls run at a
// time, 64 of one share, such as the owner of a client. Only further ones wait for their end, and
// nothing that was given to Set does.
func (ts *Timers) SetSlow(t *Timer, share string, at time.Time, do func(now time.Time)) {
	ts.set(t, &ts.slow, share, at, do)
}

// Cancel takes back what t, which may be nil, was set to. It does not wait for a call that has
// begun.
func (ts *Timers) Cancel(t *Timer) {
	if t != nil {
		ts.set(t, &ts.quick, "", time.Time{}, nil)
	}
}

func (ts *Timers) set(
	t *Timer, l *lane, share string, at time.Time, do func(now time.Time),
) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	switch {
	case t.indexed:
		t.lane.index.Delete(t)
	case t.parked:
		t.lane.unpark(t)
	}
	// The wall clock alone: times from a file or a token have no other, and only times of one clock
	// have an order.
	t.at, t.do, t.lane, t.indexed = at.Round(0), do, l, false
	t.share = share
	if at.IsZero() || ts.closed {
		t.do = nil
		return
	}
	t.overdue = !t.at.After(time.Now())
	ts.seq++
	if t.seq = ts.seq; !t.running { // otherwise its worker does it
		ts.insert(t)
	}
}

// insert puts t into its lane. Timers.mu is held.
func (ts *Timers) insert(t *Timer) {
	t.lane.index.ReplaceOrInsert(t)
	t.indexed = true
	if first, _ := t.lane.index.Min(); first == t {
		ts.arm()
	}
}

// arm, with Timers.mu held, sets the timer for what is due first. A lane whose workers are all busy
// needs none: they look again.
func (ts *Timers) arm() {
	var first *Timer
	for _, l := range [...]*lane{&ts.quick, &ts.slow} {
		t, ok := l.index.Min()
		if ok && l.workers < l.most && (first == nil || t.at.Before(first.at)) {
			first = t
		}
	}
	if first == nil || ts.closed {
		return
	}
	d := max(time.Until(first.at), 0) // of a time that is too far away for a Duration: 292 years
	if ts.timer == nil {
		ts.timer = time.AfterFunc(d, ts.wake)
	} else {
		ts.timer.Reset(d)
	}
}

// wake hands what is due to workers.
func (ts *Timers) wake() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, l := range [...]*lane{&ts.quick, &ts.slow} {
		for l.workers < l.most {
			c := ts.take(l)
			if c.t == nil {
				break
			}
			l.workers++
			ts.running.Go(func() { ts.work(l, c) }) // Close waits for it
		}
	}
	ts.arm()
}

// A call is what a worker has to do.
type call struct {
	t     *Timer // nil: nothing
	do    func(now time.Time)
	now   time.Time
	share string
}

// take, with Timers.mu held, takes what is due first out of l, and parks what its share has no
// worker for.
func (ts *Timers) take(l *lane) call {
	for {
		t, ok := l.index.Min()
		now := time.Now()
		if !ok || ts.closed || t.at.After(now) {
			return call{}
		}
		l.index.Delete(t)
		t.indexed = false
		if l.each > 0 && l.busy[t.share] >= l.each {
			l.park(t)
			continue
		}
		if l.each > 0 {
			l.busy[t.share]++
		}
		if ts.Late != nil && !t.overdue {
			ts.Late(max(now.Sub(t.at), 0))
		}
		c := call{t, t.do, now, t.share}
		t.do, t.running = nil, true
		return c
	}
}

// park keeps t, which is due, until a worker of its share is free.
func (l *lane) park(t *Timer) {
	wait := l.parked[t.share]
	if wait == nil {
		wait = btree.NewG(16, before)
		l.parked[t.share] = wait
	}
	wait.ReplaceOrInsert(t)
	t.parked = true
}

func (l *lane) unpark(t *Timer) {
	wait := l.parked[t.share]
	wait.Delete(t)
	if t.parked = false; wait.Len() == 0 {
		delete(l.parked, t.share)
	}
}

// done is the end of a call: another one of its share that is parked may follow. Timers.mu is held.
func (ts *Timers) done(l *lane, share string) {
	if l.each == 0 {
		return
	}
	if l.busy[share]--; l.busy[share] == 0 {
		delete(l.busy, share)
	}
	if wait := l.parked[share]; wait != nil {
		t, _ := wait.Min()
		l.unpark(t)
		ts.insert(t)
	}
}

// work is a worker: it makes the call c, and then whatever else is due.
func (ts *Timers) work(l *lane, c call) {
	for c.t != nil {
		c.do(c.now)
		ts.mu.Lock()
		ts.done(l, c.share)
		if c.t.running = false; c.t.do != nil { // it was set again meanwhile
			ts.insert(c.t)
		}
		if c = ts.take(l); c.t == nil {
			l.workers--
			ts.arm()
		}
		ts.mu.Unlock()
	}
}

// Len returns how many Timers are set whose call has not begun.
func (ts *Timers) Len() int {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	n := ts.quick.index.Len() + ts.slow.index.Len()
	for _, wait := range ts.slow.parked {
		n += wait.Len()
	}
	return n
}

// Close calls nothing any more, and returns when the calls that have begun have returned.
func (ts *Timers) Close() {
	ts.mu.Lock()
	ts.closed = true
	if ts.timer != nil {
		ts.timer.Stop()
	}
	ts.quick.index.Clear(false)
	ts.slow.index.Clear(false)
	clear(ts.slow.parked)
	ts.mu.Unlock()
	ts.running.Wait()
}
