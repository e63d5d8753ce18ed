// Package room shares a number of bytes among those who need some, first come, first served.
package room

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// A Room is a number of bytes that many share. Whoever needs some takes them first, or waits for
// them in the order of arrival. What cannot wait is added, and counts as well.
type Room struct {
	Most    int64        // set before the first use
	used    atomic.Int64 // taken or added, and not given back
	waiting atomic.Int32 // len(queue)

	mu    lock.Mutex[leaf]
	queue []*waiter // first come, first served. Guarded by mu
}

type leaf struct{}

func (leaf) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "room.Room.mu"} }

// A waiter wants n bytes.
type waiter struct {
	n     int64
	ready chan struct{} // closed when it has them; nil: retry
	retry func()        // called when it may look again. It then has taken nothing
}

// Patience is how long Await waits.
const Patience = 30 * time.Second

// The errors of Await.
var (
	ErrNone  = errors.New("there was no room in time")
	ErrEnded = errors.New("there will be no room")
)

// Used returns how many bytes are taken.
func (r *Room) Used() int64 { return r.used.Load() }

// Waiting returns how many wait.
func (r *Room) Waiting() int { return int(r.waiting.Load()) }

// fits says whether n bytes may be added to what is used. What exceeds the room as a whole goes
// when next to nothing else waits.
func (r *Room) fits(used, n int64) bool {
	return used+n <= r.Most || n > r.Most && used <= r.Most/16
}

// Take takes n bytes if there are so many and nobody waits for them.
func (r *Room) Take(n int64) bool {
	for r.waiting.Load() == 0 {
		used := r.used.Load()
		if !r.fits(used, n) {
			return false
		}
		if r.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
	return false
}

// Open says whether n bytes may be added, as Take does, but takes nothing. If they may not it calls
// retry, once, when it is the caller's turn. It may be called with any lock held; retry is called
// with none.
func (r *Room) Open(n int64, retry func()) bool {
	if r.waiting.Load() == 0 && r.fits(r.used.Load(), n) {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, &waiter{n: n, retry: retry})
	r.waiting.Store(int32(len(r.queue)))
	if len(r.queue) == 1 && r.fits(r.used.Load(), n) { // given back since, when nobody waited
		r.queue = nil
		r.waiting.Store(0)
		return true
	}
	return false
}

// Add counts n bytes more, or less. The caller calls admit if it has made room.
func (r *Room) Add(n int64) { r.used.Add(n) }

// Give gives n bytes back. The caller holds no lock.
func (r *Room) Give(n int64) {
	r.Add(-n)
	r.admit()
}

// join puts w at the end of the queue.
func (r *Room) join(w *waiter) {
	r.mu.Lock()
	r.queue = append(r.queue, w)
	r.waiting.Store(int32(len(r.queue)))
	r.mu.Unlock()
	r.admit() // there may be room since the caller looked
}

// leave takes w out of the queue. It returns false if w has got its room.
func (r *Room) leave(w *waiter) bool {
	r.mu.Lock()
	i := slices.Index(r.queue, w)
	if i >= 0 {
		r.queue = slices.Delete(r.queue, i, i+1)
		r.waiting.Store(int32(len(r.queue)))
	}
	r.mu.Unlock()
	if i >= 0 {
		r.admit() // those behind w may want less
	}
	return i >= 0
}

// Refuse lets all go on that wait in Await, as if there were room: they are about to find out that
// there is no use for it.
func (r *Room) Refuse() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = slices.DeleteFunc(r.queue, func(w *waiter) bool {
		if w.ready != nil {
			r.used.Add(w.n)
			close(w.ready)
		}
		return w.ready != nil
	})
	r.waiting.Store(int32(len(r.queue)))
}

// admit serves those who wait, as far as there is room. The caller holds no lock.
func (r *Room) admit() {
	for r.waiting.Load() > 0 {
		retry := r.serve()
		for _, f := range retry {
			f()
		}
		if len(retry) == 0 {
			return
		}
	}
}

// serve gives room to those in front, and returns what else is to be called.
func (r *Room) serve() (retry []func()) {
	promised := int64(0)
	r.mu.Lock()
	defer r.mu.Unlock()
	k := 0
	for ; k < len(r.queue); k++ {
		w := r.queue[k]
		if !r.fits(r.used.Load()+promised, w.n) {
			break
		}
		if w.retry != nil {
			promised += w.n
			retry = append(retry, w.retry)
		} else {
			r.used.Add(w.n)
			close(w.ready)
		}
	}
	r.queue = slices.Delete(r.queue, 0, k)
	r.waiting.Store(int32(len(r.queue)))
	return retry
}

// Await waits for n bytes and takes them. It returns the cause of ctx when that ends, ErrEnded when
// ended is closed, and ErrNone after Patience. No lock is held.
func (r *Room) Await(ctx context.Context, n int64, ended <-chan struct{}) (err error) {
	w := &waiter{n: n, ready: make(chan struct{})}
	r.join(w)
	t := time.NewTimer(Patience)
	defer t.Stop()
	lock.NoneHeld("a wait for room")
	select {
	case <-w.ready:
		return nil
	case <-t.C:
		err = ErrNone
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-ended:
		err = ErrEnded
	}
	if !r.leave(w) {
		return nil // it came at that moment
	}
	return err
}
