package journal

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what adds operations one by one. Each is called with the lock of whoever changes, so
// that the operations are in the order of the changes. None of them waits.

// Add adds operations to one batch, which nobody waits for, and returns the ticket. A full store
// may take the first ones earlier than the last ones.
func (j *Journal) Add(ops ...store.Op) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.pending
	for _, op := range ops {
		j.appendLocked(x, op)
	}
	j.soonLocked(x)
	return x.ticket
}

// Await adds operations to one batch, which the caller waits for.
func (j *Journal) Await(ops ...store.Op) *Batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.pending
	for _, op := range ops {
		j.appendLocked(x, op)
	}
	x.wantLocked()
	j.soonLocked(x)
	return x
}

// AwaitWhole is Await for operations of which all are committed or none is, also those that follow.
func (j *Journal) AwaitWhole(ops ...store.Op) *Batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.pending
	for _, op := range ops {
		j.appendLocked(x, op)
		if !x.isAddition(op) {
			x.tieLocked(op)
		}
	}
	x.wantLocked()
	j.soonLocked(x)
	return x
}

// Begin adds Sessions that begin to one batch, which the caller waits for.
func (j *Journal) Begin(ops ...*store.PutSession) *Batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.pending
	for _, op := range ops {
		x.births = append(x.births, op.Session)
		j.appendLocked(x, op)
	}
	x.wantLocked()
	j.soonLocked(x)
	return x
}

// All returns what the caller has to wait for so that everything that was added is decided.
func (j *Journal) All() *Batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pending.wantLocked()
	return j.pending
}

// Join makes w wait for all that is not decided yet. It returns the ticket, 0 if there is no such
// thing.
func (j *Journal) Join(w Waiting) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.settledLocked() {
		return 0
	}
	j.hurryLocked(j.pending, w)
	return j.pending.ticket
}

// hurryLocked has x committed soon for w, unless that is nobody.
func (j *Journal) hurryLocked(x *Batch, w Waiting) {
	if w.Waiter != nil {
		x.enlistLocked(w)
		j.wake()
	}
}

// Sent adds op to x, which the caller pins, or to the pending batch if x is nil. w holds the
// PUBLISH. Sent returns the ticket.
func (j *Journal) Sent(x *Batch, w Waiting, op store.Sent) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if x == nil {
		x = j.pending
	}
	p := x.sents.next()
	*p = op
	return j.putForLocked(x, p, w)
}

// Released adds op. w holds the PUBREL. Released returns the ticket.
func (j *Journal) Released(w Waiting, op store.Released) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := j.pending.releases.next()
	*p = op
	return j.putForLocked(j.pending, p, w)
}

// Forget adds op. w holds the PUBCOMP. Forget returns the ticket.
func (j *Journal) Forget(w Waiting, op store.Forget) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := j.pending.forgets.next()
	*p = op
	return j.putForLocked(j.pending, p, w)
}

// Done adds op. Nobody waits for it.
func (j *Journal) Done(op store.Done) {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := j.pending.dones.next()
	*p = op
	j.putLocked(j.pending, p)
}

// Enqueue adds a message for one queue. Nobody waits for it.
func (j *Journal) Enqueue(m *store.Message, to store.Delivery) {
	j.mu.Lock()
	defer j.mu.Unlock()
	op := j.pending.nextPublish(m)
	op.To = append(op.To, to)
	j.putLocked(j.pending, op)
}

// nextPublish returns an operation for m and nothing else.
func (x *Batch) nextPublish(m *store.Message) *store.Publish {
	op := x.publishes.next()
	*op = store.Publish{Message: m, To: op.To[:0]}
	return op
}

// putForLocked appends op to x, which w waits for, and returns the ticket of x.
func (j *Journal) putForLocked(x *Batch, op store.Op, w Waiting) uint64 {
	ticket := x.ticket
	j.putLocked(x, op)
	j.hurryLocked(x, w)
	return ticket
}

// putLocked appends op to x, and sees to it that x is committed soon.
func (j *Journal) putLocked(x *Batch, op store.Op) {
	j.appendLocked(x, op)
	j.soonLocked(x)
}

func (j *Journal) appendLocked(x *Batch, op store.Op) {
	x.ops = append(x.ops, op)
	j.growLocked(x, Weigh(op))
}

// soonLocked sees to it that x is committed soon, even if nobody is going to wait for it. If x is
// large it gets nothing more but what pins it.
func (j *Journal) soonLocked(x *Batch) {
	if x.bytes > batchBytes && x == j.pending {
		j.sealLocked()
		j.wake()
		return
	}
	if x.urgent || x.timed || j.closed {
		return
	}
	x.timed = true
	if j.lazy == nil {
		j.lazy = time.AfterFunc(LazyDelay, j.Rouse)
	} else {
		j.lazy.Reset(LazyDelay)
	}
}

// sealLocked begins a new pending batch behind the one that there is.
func (j *Journal) sealLocked() {
	j.pending.urgent = true
	j.sealed = append(j.sealed, j.pending)
	j.pending = j.freshLocked(j.pending.ticket + 1)
}
