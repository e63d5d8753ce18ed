package dunlin

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A room is what may wait for the Store, in bytes: MaxUncommittedBytes, for the whole Broker.
// Publishers take their room before anything of their message is routed or added, and wait for it
// in the order in which they came. What follows from what has happened already (acknowledgements,
// the ends of Sessions) is counted and waits for nobody.
type room struct {
	most    int64
	used    atomic.Int64 // by batches that are not decided, and by what is about to be added
	waiting atomic.Int32 // len(queue)

	mu    sync.Mutex // a leaf
	queue []*waiter  // first come, first served. Guarded by mu
}

// A waiter wants n bytes.
type waiter struct {
	n     int64
	ready chan struct{} // closed when it has them; nil: retry
	retry func()        // called when it may look again. It then has taken nothing
}

// roomPatience is how long a publisher waits for room before it is refused.
const roomPatience = 30 * time.Second

var errNoRoom = &packets.Error{
	Code: packets.QuotaExceeded, Reason: "too much waits for the store", Err: errNotStored,
}

// fits says whether n bytes may be added to what is used. What exceeds the room as a whole goes
// when next to nothing else waits.
func (r *room) fits(used, n int64) bool {
	return used+n <= r.most || n > r.most && used <= r.most/16
}

// take takes n bytes if there are so many and nobody waits for them.
func (r *room) take(n int64) bool {
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

// open says whether n bytes may be added, as take does, but takes nothing. If they may not it calls
// retry, once, when it is the caller's turn. It may be called with any lock held; retry is called
// with none.
func (r *room) open(n int64, retry func()) bool {
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

// add counts n bytes more, or less. The caller calls admit if it has made room.
func (r *room) add(n int64) { r.used.Add(n) }

// give gives n bytes back. The caller holds no lock.
func (r *room) give(n int64) {
	r.add(-n)
	r.admit()
}

// join puts w at the end of the queue.
func (r *room) join(w *waiter) {
	r.mu.Lock()
	r.queue = append(r.queue, w)
	r.waiting.Store(int32(len(r.queue)))
	r.mu.Unlock()
	r.admit() // there may be room since the caller looked
}

// leave takes w out of the queue. It returns false if w has got its room.
func (r *room) leave(w *waiter) bool {
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

// refuse lets all publishers go on: the store has failed, as they are about to find out.
func (r *room) refuse() {
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
func (r *room) admit() {
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
func (r *room) serve() (retry []func()) {
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

// await waits for n bytes, until ctx or ended ends, or a publisher has waited long enough.
func (r *room) await(ctx context.Context, n int64, ended <-chan struct{}) (err error) {
	w := &waiter{n: n, ready: make(chan struct{})}
	r.join(w)
	t := time.NewTimer(roomPatience)
	defer t.Stop()
	select {
	case <-w.ready:
		return nil
	case <-t.C:
		err = errNoRoom
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-ended:
		err = ErrBrokerClosed
	}
	if !r.leave(w) {
		return nil // it came at that moment
	}
	return err
}
