package journal

import (
	"context"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// commitAll is the committer.
func (j *Journal) commitAll() {
	defer close(j.ready)
	for x := j.take(); x != nil; x = j.take() {
		x.count(j.o.Memory, 2*x.bytes)
		j.commit(x)
		x.count(j.o.Memory, x.bytes)
		dead := x.dead
		lock.NoneHeld("a wait")
		j.ready <- x // from here on x is the releaser's
		if j.grown > checkpointBytes && !dead {
			j.grown = 0
			lock.NoneHeld("a call of the Store")
			if err := j.o.Store.Checkpoint(context.Background()); err != nil {
				j.o.Log.Warn("the store could not be made smaller", "err", err)
			}
		}
	}
}

// take waits for a batch that somebody waits for and returns it when nobody pins it; nil: the
// Journal is closed and empty.
func (j *Journal) take() *Batch {
	for {
		j.mu.Lock()
		x := j.pending
		if len(j.sealed) == 0 && (x.urgent || j.closed && len(x.ops) > 0) {
			j.sealLocked()
		}
		if len(j.sealed) == 0 {
			closed := j.closed
			j.mu.Unlock()
			if closed {
				return nil
			}
			j.rest()
			continue
		}
		x = j.sealed[0]
		j.sealed = slices.Delete(j.sealed, 0, 1)
		j.probeLocked(x)
		pinned := x.pins > 0
		if pinned {
			x.unpinned = make(chan struct{})
		}
		j.mu.Unlock()
		if pinned {
			lock.NoneHeld("a wait")
			<-x.unpinned
		}
		return x
	}
}

// rest waits for news; while the store is full, no longer than until the time to try it again.
func (j *Journal) rest() {
	lock.NoneHeld("a wait")
	if !j.full {
		<-j.news
		return
	}
	t := time.NewTimer(RetryDelay)
	defer t.Stop()
	select {
	case <-j.news:
	case <-t.C:
		j.Rouse()
	}
}

// releaseAll is the releaser.
func (j *Journal) releaseAll() {
	for x := range j.ready {
		j.release(x)
	}
}

// release lets go what waited for x.
func (j *Journal) release(x *Batch) {
	if x.err != nil {
		j.o.Handler.TakeBack(x)
	}
	j.mu.Lock()
	j.decided, j.stuck = x.ticket, x.stuck != nil
	done := x.done
	j.mu.Unlock()
	if done != nil {
		close(done)
	}
	j.o.Handler.Decided(x)
	if x.errand {
		j.endErrand()
	}
	x.count(j.o.Memory, 0)
	j.Room.Give(int64(x.bytes))
	j.mu.Lock()
	j.released = x.ticket
	j.mu.Unlock()
	j.recycle(x)
}
