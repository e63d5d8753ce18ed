package dunlin

import (
	"sync"
	"time"

	"github.com/google/btree"
)

// A deadline is an instant at which something of its owner is due. The owner keeps it, and says by set when it moves.
type deadline struct {
	at  time.Time // zero: none. Set by deadlines.set, under whatever guards the owner
	key dueKey    // its place in the index. Guarded by the index's mu
}

// dueKey orders by time; seq tells equal times apart.
type dueKey struct {
	at  int64
	seq uint64
	do  func(now time.Time)
}

// deadlines is one ordered index of all that is due, with one timer: Session expiry, Will delay, retained expiry, the end of an
// authentication. Keep Alive is not here; it is the read deadline of its connection.
type deadlines struct {
	mu      sync.Mutex
	index   *btree.BTreeG[dueKey]
	seq     uint64
	timer   *time.Timer // nil until the first deadline, and after close
	closed  bool
	running sync.WaitGroup // the timer's function
}

func newDeadlines() *deadlines {
	return &deadlines{index: btree.NewG(16, func(a, b dueKey) bool {
		return a.at < b.at || a.at == b.at && a.seq < b.seq
	})}
}

// set moves d to at, or out of the index where that is zero. When it is due do is called, once, without any lock; it must check by itself
// that it is still wanted.
func (ds *deadlines) set(d *deadline, at time.Time, do func(now time.Time)) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d.at = at
	if d.key.do != nil {
		ds.index.Delete(d.key)
		d.key = dueKey{}
	}
	if at.IsZero() || ds.closed {
		return
	}
	ds.seq++
	d.key = dueKey{at: at.UnixNano(), seq: ds.seq, do: do}
	ds.index.ReplaceOrInsert(d.key)
	if first, _ := ds.index.Min(); first.seq == d.key.seq {
		ds.arm(time.Until(at))
	}
}

// cancel takes d, which may be nil, out of the index.
func (ds *deadlines) cancel(d *deadline) {
	if d != nil {
		ds.set(d, time.Time{}, nil)
	}
}

func (ds *deadlines) arm(d time.Duration) {
	if ds.timer == nil {
		ds.timer = time.AfterFunc(max(d, 0), ds.run)
		return
	}
	ds.timer.Reset(max(d, 0))
}

// run calls what is due and sets the timer for the next.
func (ds *deadlines) run() {
	ds.mu.Lock()
	if ds.closed {
		ds.mu.Unlock()
		return
	}
	ds.running.Add(1)
	defer ds.running.Done()
	for {
		now := time.Now()
		first, ok := ds.index.Min()
		if !ok || ds.closed {
			break
		}
		if wait := time.Duration(first.at - now.UnixNano()); wait > 0 {
			ds.arm(wait)
			break
		}
		ds.index.Delete(first)
		ds.mu.Unlock()
		first.do(now)
		ds.mu.Lock()
	}
	ds.mu.Unlock()
}

// close stops the timer and waits for what it runs.
func (ds *deadlines) close() {
	ds.mu.Lock()
	ds.closed = true
	if ds.timer != nil {
		ds.timer.Stop()
	}
	ds.index.Clear(false)
	ds.mu.Unlock()
	ds.running.Wait()
}
