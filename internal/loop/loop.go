// Package loop serves many sockets with few goroutines. A loop waits for all of its sockets at
// once, and one goroutine, its Worker, serves each that has something to read, one after the other.
// A socket that nobody sends to costs no goroutine.
//
// Whoever has to wait while it is served, or has much to do, first calls HandOver. Another
// goroutine then goes on with the loop, and the caller with its socket. So no socket waits for
// another one.
//
// The Workers wait in the poller of Go, not in a system call. There are loops on Linux only.
package loop

import (
	"container/heap"
	"errors"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// An Event says why a User is called.
type Event uint32

// The events. Several may come at once.
const (
	// Readable: there may be something to read. All that has come has been read when a read
	// returned less than it had room for.
	Readable Event = 1 << iota
	// Drain: as Readable, but only EAGAIN says that all has been read. The other side may have
	// closed, and there will be no other event.
	Drain
	Roused // by Rouse
	Alarm  // the time of SetAlarm has come, or an earlier one

	allEvents = Readable | Drain | Roused | Alarm
)

// Of Seat.state, besides the events that have come and have not been told.
const (
	busy = 1 << 8 // it is being served, or about to be
	in   = 1 << 9 // between Add and Leave
)

// A User is called when there is something to do for its socket, by one goroutine at a time.
type User interface {
	// Ready serves the socket for a bounded time. It returns the events that it is to be called
	// with again, after others had their turn. 0: there is nothing more to do until the next event.
	// It has told w to HandOver before it waits.
	Ready(w *Worker, why Event) (again Event)
}

// A Seat is the place of a socket on a loop. The zero Seat has none. Its methods may be called
// concurrently, except Leave.
type Seat struct {
	// Set by Add before state is, immutable then.
	user User
	loop *loop
	slot int32

	place int32         // in loop.alarms, and 1; 0: none. Guarded by loop.mu
	alarm time.Duration // since Loops.started; guarded by loop.mu
	state atomic.Uint32 // see busy and in
}

// Loops are a number of loops that share the sockets. They must be ended with Close.
type Loops struct {
	started time.Time
	loops   []*loop
	next    atomic.Uint32  // the loop that the next socket gets
	workers sync.WaitGroup // all goroutines of the Loops
	idle    chan *loop     // for Workers that have no loop
	spares  atomic.Int32   // how many of these there are
	closed  chan struct{}
}

// maxSpares is how many Workers without a loop are kept: to begin one costs more than to wake one,
// whose stack has grown already.
const maxSpares = 2

type leaf struct{}

func (leaf) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "loop.mu"} }

// turn is what the Worker of a loop holds as if it were a lock, so that the build that checks locks
// finds who waits and has not called HandOver.
type turn struct{}

func (turn) Rank() lock.Rank { return lock.Rank{Order: lock.First, Name: "a loop"} }

type loop struct {
	all  *Loops
	fd   int      // epoll
	file *os.File // of fd
	raw  syscall.RawConn
	kick int // eventfd: a write to it ends the wait

	// Owned by the Worker of the loop.
	events [128]told
	got    int                   // of these
	poll   func(fd uintptr) bool // look, made once
	batch  []*Seat               // are served, one after the other
	at     int                   // in batch: the next one
	later  []*Seat               // are served after the batch, and what has come meanwhile

	mu     lock.Mutex[leaf]
	slots  []slot  // what epoll knows sockets by
	free   []int32 // of these
	roused []*Seat // are to be served; kick has been written to
	alarms alarms  // those with an alarm, the first one in front
	timer  *time.Timer
	closed bool
}

// kickSlot is what epoll knows loop.kick by.
const kickSlot = -1

// A slot is a number that epoll tells of a socket with. gen tells those apart that have it one
// after the other: an event of one that has left reaches nobody.
type slot struct {
	seat *Seat
	gen  int32
}

// New begins n loops.
func New(n int) (*Loops, error) {
	ls := &Loops{started: time.Now(), idle: make(chan *loop), closed: make(chan struct{})}
	for range n {
		l, err := open()
		if err != nil {
			ls.Close()
			return nil, err
		}
		l.all, l.poll = ls, l.look
		ls.loops = append(ls.loops, l)
	}
	for _, l := range ls.loops {
		ls.begin(l)
	}
	return ls, nil
}

// Close ends the loops, whose sockets have left, and waits for their Workers.
func (ls *Loops) Close() {
	for _, l := range ls.loops {
		l.mu.Lock()
		l.closed = true
		if l.timer != nil {
			l.timer.Stop()
		}
		l.mu.Unlock()
		l.file.Close()
	}
	close(ls.closed)
	lock.NoneHeld("a wait")
	ls.workers.Wait()
	for _, l := range ls.loops {
		l.closeKick()
	}
}

// ErrClosed is the error of Add after Close.
var ErrClosed = errors.New("loop: closed")

// Add has one of the loops call u when raw has something to read, until s leaves, and sets the
// alarm of s. After an error u is not called.
func (ls *Loops) Add(s *Seat, raw syscall.RawConn, u User, alarm time.Time) error {
	l := ls.loops[int(ls.next.Add(1))%len(ls.loops)]
	s.user, s.loop = u, l
	gen, err := l.enter(s)
	if err != nil {
		return err
	}
	s.state.Store(in | busy) // so that what happens meanwhile waits
	s.SetAlarm(alarm)
	if cerr := raw.Control(func(fd uintptr) { err = l.watch(fd, s.slot, gen) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		s.Leave()
		return err
	}
	if !s.state.CompareAndSwap(in|busy, in) {
		l.wake(s)
	}
	return nil
}

func (l *loop) enter(s *Seat) (gen int32, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free)
	switch {
	case l.closed:
		return 0, ErrClosed
	case n > 0:
		s.slot, l.free = l.free[n-1], l.free[:n-1]
	case len(l.slots) == math.MaxInt32:
		return 0, syscall.ENOSPC
	default:
		s.slot = int32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	x := &l.slots[s.slot]
	x.seat = s
	return x.gen, nil
}

// Leave takes s away from its loop. Ready calls it, for a socket that has been closed, and then
// returns 0.
func (s *Seat) Leave() {
	l := s.loop
	l.mu.Lock()
	defer l.mu.Unlock()
	s.state.Store(0)
	x := &l.slots[s.slot]
	x.seat = nil
	x.gen++
	l.free = append(l.free, s.slot)
	if s.place > 0 {
		heap.Remove(&l.alarms, int(s.place-1))
	}
}

// Rouse has Ready called soon, with Roused. It does nothing before Add and after Leave, and does
// not wait.
func (s *Seat) Rouse() {
	if s.post(Roused) {
		s.loop.wake(s)
	}
}

// post notes that e has come, and says whether the caller has to see to it that s is served.
func (s *Seat) post(e Event) bool {
	for {
		old := s.state.Load()
		if old&in == 0 {
			return false
		}
		if s.state.CompareAndSwap(old, old|uint32(e)|busy) {
			return old&busy == 0
		}
	}
}

// wake has s served, which is busy, by its loop.
func (l *loop) wake(s *Seat) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakeLocked(s)
}

// wakeLocked is wake with l.mu held. Close waits for the lock, so that kick is not another file.
func (l *loop) wakeLocked(s *Seat) {
	if l.roused = append(l.roused, s); len(l.roused) == 1 && !l.closed {
		l.kickOff()
	}
}

// SetAlarm has Ready called with Alarm once, at the given time or before. If an earlier alarm is
// set, that one comes instead. The zero time sets none.
func (s *Seat) SetAlarm(at time.Time) {
	if at.IsZero() {
		return
	}
	l := s.loop
	due := at.Sub(l.all.started)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case s.place > 0 && s.alarm <= due:
		return
	case s.place > 0:
		s.alarm = due
		heap.Fix(&l.alarms, int(s.place-1))
	default:
		s.alarm = due
		heap.Push(&l.alarms, s)
	}
	if l.alarms[0] == s {
		l.armLocked()
	}
}

func (l *loop) armLocked() {
	d := max(time.Until(l.all.started.Add(l.alarms[0].alarm)), 0)
	if l.timer == nil {
		l.timer = time.AfterFunc(d, l.ring)
	} else {
		l.timer.Reset(d)
	}
}

// ring has those served whose alarm is due.
func (l *loop) ring() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	now := time.Since(l.all.started)
	for len(l.alarms) > 0 && l.alarms[0].alarm <= now {
		if s := heap.Pop(&l.alarms).(*Seat); s.post(Alarm) {
			l.wakeLocked(s)
		}
	}
	if len(l.alarms) > 0 {
		l.armLocked()
	}
}

// alarms is a heap.
type alarms []*Seat

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].alarm < a[j].alarm }

// Swap is that of heap.Interface, as are the next two.
func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = int32(i+1), int32(j+1)
}

func (a *alarms) Push(x any) {
	s := x.(*Seat)
	*a = append(*a, s)
	s.place = int32(len(*a))
}

func (a *alarms) Pop() any {
	n := len(*a) - 1
	s := (*a)[n]
	(*a)[n] = nil
	*a = (*a)[:n]
	s.place = 0
	return s
}

// A Worker is a goroutine that serves the sockets of a loop.
type Worker struct {
	loop  *loop  // nil: another one serves it
	leave func() // ends that the build which checks locks sees it hold the loop
}

// begin starts a Worker for l.
func (ls *Loops) begin(l *loop) {
	ls.workers.Go(func() { (&Worker{}).work(l) }) // Close waits for it
}

// HandOver leaves the loop to another Worker, if w has it. The calling goroutine, which is that of
// w, may then wait. It may be called on nil, which has no loop.
func (w *Worker) HandOver() {
	if w == nil || w.loop == nil {
		return
	}
	l := w.loop
	w.loop = nil
	w.leave()
	select {
	case l.all.idle <- l:
	default:
		l.all.begin(l)
	}
}

// work serves the sockets of l until w has handed it over, or it is closed.
func (w *Worker) work(l *loop) {
	defer w.HandOver() // Goexit, which a User may call, takes nothing from the others
	for l != nil {
		w.loop, w.leave = l, lock.Inside[turn]()
		for w.loop != nil {
			s := l.take()
			if s == nil {
				w.loop = nil
				w.leave()
				return
			}
			s.serve(w)
		}
		l = w.rest(l.all)
	}
}

// rest waits for a loop that is to be served. It returns nil if there are Workers enough.
func (w *Worker) rest(ls *Loops) (l *loop) {
	if ls.spares.Add(1) <= maxSpares {
		lock.NoneHeld("a wait")
		select {
		case l = <-ls.idle:
		case <-ls.closed:
		}
	}
	ls.spares.Add(-1)
	return l
}

// serve calls the User until there is nothing more to do, or others of the loop of w have their
// turn before.
func (s *Seat) serve(w *Worker) {
	for {
		why := Event(s.state.And(^uint32(allEvents))) & allEvents
		again := s.user.Ready(w, why)
		switch {
		case again != 0:
			s.state.Or(uint32(again))
		case s.state.CompareAndSwap(in|busy, in):
			return
		case s.state.Load()&in == 0:
			return
		}
		if l := w.loop; l != nil {
			l.later = append(l.later, s)
			return
		}
	}
}

// take returns the socket that is to be served next, nil if the loop is closed. It waits.
func (l *loop) take() *Seat {
	for l.at == len(l.batch) {
		l.batch, l.later, l.at = l.later, emptied(l.batch), 0
		var err error
		if len(l.batch) == 0 {
			err = l.raw.Read(l.poll)
		} else { // what has come has its turn behind those that were not done
			err = l.raw.Control(func(fd uintptr) { l.look(fd) })
		}
		if err != nil {
			return nil
		}
		l.collect()
	}
	s := l.batch[l.at]
	l.batch[l.at] = nil
	l.at++
	return s
}

// collect adds those to the batch that have something to do.
func (l *loop) collect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.events[:l.got] {
		e := &l.events[i]
		if e.Fd == kickSlot {
			l.batch = append(l.batch, l.roused...)
			l.roused = emptied(l.roused)
			continue
		}
		if x := &l.slots[e.Fd]; x.seat != nil && x.gen == e.Pad && x.seat.post(eventOf(e)) {
			l.batch = append(l.batch, x.seat)
		}
	}
	l.got = 0
}

// emptied returns an empty list in the memory of a, unless that is much, as it is after many were
// roused at once.
func emptied(a []*Seat) []*Seat {
	if cap(a) > 1<<12 {
		return nil
	}
	clear(a)
	return a[:0]
}
