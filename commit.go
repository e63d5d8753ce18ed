package dunlin

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is the committer. What has to outlive the process is added to the pending batch as operations of package store, under
// the lock of whoever changes, so that their order is that of the changes. One goroutine, the committer, takes the batch, commits it, and
// takes the next one that has gathered meanwhile. A second one, the releaser, lets go what waited for each: output that connections hold
// (held.go), QoS 2 messages for receivers that the store does not know, and goroutines in wait. There is no timer in this path.
//
//	before this leaves                         this is durable
//	PUBACK to a publisher                      the message and the queues that it is in, its retained state
//	PUBREC to a publisher                      the same, and the Packet Identifier as received
//	PUBCOMP to a publisher                     that the identifier is forgotten
//	a PUBLISH of what was published at QoS 2   the message, and the identifier that it goes out with
//	PUBREL to a subscriber                     its PUBREC
//	CONNACK, SUBACK, UNSUBACK, Publish         the change
//	the end of the connection at DISCONNECT    the change
//
// Acknowledgements of subscribers are written with the next batch: should a crash forget one, the client sees a QoS 1 message twice, as
// it may, and a PUBREL twice, which it answers.

// A journal is the queue of operations of a Broker with a Store.
type journal struct {
	b     *Broker
	store store.Store
	news  chan struct{} // capacity 1: there may be something to commit
	ready chan *batch   // from the committer to the releaser, in order
	over  sync.WaitGroup
	ended chan struct{} // closed when nothing is committed any more

	lates atomic.Int64 // QoS 2 messages that wait in batches, see late
	room  room

	mu      sync.Mutex // a leaf. Guards what follows
	pending *batch
	sealed  []*batch // before pending, complete but for those who pin them
	decided uint64   // batches up to this one have been released
	free    []*batch
	closed  bool
	failure error  // why what adds is refused; nil: all is well
	dead    bool   // for good
	stuck   bool   // the committer carries operations
	lastKey uint64 // of the Sessions
	lazy    *time.Timer

	sessions map[uint64]*session // that the store knows, by session.stored

	// Owned by the releaser: retained messages that failed after they had been replaced, with what was there before them; nil: nothing.
	undone map[*message]*message

	// Owned by the committer.
	carried carriage
	full    bool      // the failure is one that passes
	probeAt time.Time // when a full store is tried again
	wanted  int       // bytes that there was no room for when it became full
	grown   int       // bytes since the last checkpoint
}

const (
	lazyDelay  = 20 * time.Millisecond  // how long what nobody waits for may wait for company
	retryDelay = 100 * time.Millisecond // how often a full store is tried again
	probeSize  = 4 << 10                // least payload of the message without effect that a full store is tried with
	maxProbe   = 64 << 10               // and the most

	checkpointBytes = 64 << 20 // committed between two checkpoints
	batchBytes      = 16 << 20 // from which a batch is complete, far below what a store can take
)

// newJournal returns the journal of a Broker whose Store is s. It commits nothing before start.
func newJournal(b *Broker, s store.Store) *journal {
	j := &journal{
		b: b, store: s,
		news: make(chan struct{}, 1), ready: make(chan *batch, 1), ended: make(chan struct{}),
		sessions: make(map[uint64]*session), undone: make(map[*message]*message),
	}
	j.room.most = int64(b.cfg.MaxUncommittedBytes)
	j.pending = &batch{n: 1}
	return j
}

// start starts the committer and the releaser, which close waits for.
func (j *journal) start() {
	j.over.Go(j.commitAll)
	j.over.Go(j.releaseAll)
}

// close commits what is there, ends both goroutines, and closes the store.
func (j *journal) close() error {
	j.mu.Lock()
	j.closed = true
	if j.lazy != nil {
		j.lazy.Stop()
	}
	j.mu.Unlock()
	j.wake()
	j.over.Wait()
	close(j.ended)
	return j.store.Close()
}

// wake makes the committer look.
func (j *journal) wake() {
	select {
	case j.news <- struct{}{}:
	default:
	}
}

// add puts op, which nobody waits for, into the pending batch.
func (j *journal) add(op store.Op) {
	j.mu.Lock()
	j.put(j.pending, op)
	j.mu.Unlock()
}

// put appends op to x, and sees to it that x is committed soon, even if nobody is going to wait for it. mu is held.
func (j *journal) put(x *batch, op store.Op) {
	x.ops = append(x.ops, op)
	j.grow(x, weigh(op))
	if x.bytes > batchBytes && x == j.pending {
		j.seal()
		j.wake()
		return
	}
	if x.urgent || x.timed || j.closed {
		return
	}
	x.timed = true
	if j.lazy == nil {
		j.lazy = time.AfterFunc(lazyDelay, j.rouse)
	} else {
		j.lazy.Reset(lazyDelay)
	}
}

// seal begins a new pending batch behind the one that there is. mu is held.
func (j *journal) seal() {
	j.pending.urgent = true
	j.sealed = append(j.sealed, j.pending)
	j.pending = j.fresh(j.pending.n + 1)
}

// rouse has the pending batch committed, whether or not somebody waits.
func (j *journal) rouse() {
	j.mu.Lock()
	j.pending.urgent = true
	j.mu.Unlock()
	j.wake()
}

// join makes c a waiter for all that is not decided yet. It returns nil if there is no such thing.
func (j *journal) join(c *conn) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.settled() {
		return nil
	}
	x := j.pending
	x.enlist(c)
	j.wake()
	return x
}

// settled says whether everything that was added is decided. mu is held.
func (j *journal) settled() bool {
	return j.decided+1 == j.pending.n && len(j.pending.ops) == 0 && !j.stuck
}

// sent adds that an entry of a queue has its identifier. If c is not nil it will hold the PUBLISH until that is durable. x is where the
// message itself was just added, nil: earlier.
func (j *journal) sent(x *batch, c *conn, key, seq uint64, id uint16) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	if x == nil {
		x = j.pending
	}
	op := x.sents.next()
	*op = store.Sent{Session: key, Seq: seq, ID: id}
	j.put(x, op)
	j.hurry(x, c)
	return x
}

// hurry has x committed soon: for c if that is not nil. mu is held.
func (j *journal) hurry(x *batch, c *conn) {
	if c != nil {
		x.enlist(c)
		j.wake()
	}
}

// released adds that PUBREC came; c holds the PUBREL.
func (j *journal) released(c *conn, key, seq uint64) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.pending
	if !dropRelease {
		op := x.releases.next()
		*op = store.Released{Session: key, Seq: seq}
		j.put(x, op)
	}
	j.hurry(x, c)
	return x
}

// forget adds that PUBREL came; c holds the PUBCOMP.
func (j *journal) forget(c *conn, key uint64, id uint16) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.pending
	op := x.forgets.next()
	*op = store.Forget{Session: key, ID: id}
	j.put(x, op)
	j.hurry(x, c)
	return x
}

// done adds that an entry has left its queue. Nobody waits for that.
func (j *journal) done(key, seq uint64) {
	j.mu.Lock()
	x := j.pending
	op := x.dones.next()
	*op = store.Done{Session: key, Seq: seq}
	j.put(x, op)
	j.mu.Unlock()
}

// single adds a message for one session: a retained one that is about to be sent.
func (j *journal) single(key uint64, d *delivery) {
	j.mu.Lock()
	x := j.pending
	op := x.publishes.next()
	op.Message = d.msg
	op.To = append(op.To[:0], d.forStore(key))
	op.Retain, op.FromSession, op.FromID = false, 0, 0
	j.put(x, op)
	j.mu.Unlock()
}

// register gives a new Session its key and adds op, its first operation, which the caller waits for.
func (j *journal) register(s *session, op *store.PutSession) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lastKey++
	s.stored = j.lastKey
	op.Session = s.stored
	s.born = j.pending.n
	j.pending.births = append(j.pending.births, s.stored)
	j.sessions[s.stored] = s
	return j.awaited(op)
}

// await adds op, which the caller waits for.
func (j *journal) await(op store.Op) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.awaited(op)
}

// end adds the end of a Session to what the turn writes together, unless the store never knew of it.
func (j *journal) end(t *turn, s *session) {
	j.mu.Lock()
	_, known := j.sessions[s.stored]
	delete(j.sessions, s.stored)
	j.mu.Unlock()
	if known {
		t.addTo(&store.DeleteSession{Session: s.stored})
	}
}

// all returns what the caller has to wait for so that everything that was added is decided.
func (j *journal) all() *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pending.want()
	return j.pending
}

// awaited adds op, which the caller waits for. mu is held.
func (j *journal) awaited(op store.Op) *batch {
	x := j.pending
	j.put(x, op)
	x.want()
	return x
}

// want says that the caller will wait for x.
func (j *journal) want(x *batch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	x.want()
}

// wait returns when x is decided, with the error for what it adds, or for what follows, or when ctx ends, with its cause. x must have been
// wanted.
func (j *journal) wait(ctx context.Context, x *batch, follows bool) error {
	j.wake()
	select {
	case <-x.done:
		if follows {
			return j.refusal(x.stuck)
		}
		return j.refusal(x.err)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-j.ended:
		return ErrBrokerClosed
	}
}

// errNotStored is in the chain of every error that says that the store has failed.
var errNotStored = errors.New("the store failed")

// refusal is the error for a client whose request could not be stored because of err, nil for nil.
func (j *journal) refusal(err error) error {
	switch {
	case err == nil:
		return nil
	case passes(err):
		return &packets.Error{Code: packets.QuotaExceeded, Reason: "no room to store it", Err: errors.Join(errNotStored, err)}
	}
	return &packets.Error{Code: packets.ImplementationSpecificError, Reason: "it cannot be stored", Err: errors.Join(errNotStored, err)}
}

// refusing returns the error of those who want to add something while the store has failed, nil while all is well.
func (j *journal) refusing() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.refusal(j.failure)
}

// commitAll is the committer.
func (j *journal) commitAll() {
	defer close(j.ready)
	for x := j.take(); x != nil; x = j.take() {
		x.count(j.b.memory, 2*x.bytes)
		j.commit(x)
		x.count(j.b.memory, x.bytes)
		j.ready <- x
		if j.grown > checkpointBytes && !x.dead {
			j.grown = 0
			if err := j.store.Checkpoint(context.Background()); err != nil {
				j.b.log.Warn("the store could not be made smaller", "err", err)
			}
		}
	}
}

// take waits for a batch that somebody waits for and returns it when nobody pins it; nil: the journal is closed and empty.
func (j *journal) take() *batch {
	for {
		j.mu.Lock()
		if x := j.pending; len(j.sealed) == 0 && (x.urgent || j.closed && len(x.ops) > 0) {
			j.seal()
		}
		if len(j.sealed) > 0 {
			x := j.sealed[0]
			j.sealed = slices.Delete(j.sealed, 0, 1)
			j.probe(x)
			if x.pins > 0 {
				x.unpinned = make(chan struct{})
				j.mu.Unlock()
				<-x.unpinned
				return x
			}
			j.mu.Unlock()
			return x
		}
		closed := j.closed
		j.mu.Unlock()
		if closed {
			return nil
		}
		j.rest()
	}
}

// rest waits for news; while the store is full, no longer than until the time to try it again.
func (j *journal) rest() {
	if !j.full {
		<-j.news
		return
	}
	t := time.NewTimer(retryDelay)
	defer t.Stop()
	select {
	case <-j.news:
	case <-t.C:
		j.rouse()
	}
}

// fresh returns an empty batch. mu is held.
func (j *journal) fresh(n uint64) *batch {
	if k := len(j.free); k > 0 {
		x := j.free[k-1]
		j.free = j.free[:k-1]
		x.n = n
		return x
	}
	return &batch{n: n}
}

// releaseAll is the releaser.
func (j *journal) releaseAll() {
	for x := range j.ready {
		j.b.work(func(t *turn) { j.release(t, x) })
	}
}

// release lets go what waited for x.
func (j *journal) release(t *turn, x *batch) {
	if x.err != nil {
		j.takeBack(x)
	} else {
		for i := range x.undo {
			delete(j.undone, x.undo[i].old)
		}
	}
	j.mu.Lock()
	j.decided, j.stuck = x.n, x.stuck != nil
	done := x.done
	j.mu.Unlock()
	if done != nil {
		close(done)
	}
	for i, c := range x.conns {
		c.letGo(t, x)
		x.conns[i] = nil
	}
	for i := range x.late {
		if x.err == nil {
			j.b.deliverLate(t, &x.late[i])
			continue
		}
		for range x.late[i].to {
			x.late[i].receipt.leave(0, 1)
		}
	}
	j.lates.Add(-int64(len(x.late)))
	for _, sub := range x.locals {
		sub.s.mu.Lock()
		sub.signal()
		sub.s.mu.Unlock()
	}
	x.count(j.b.memory, 0)
	j.room.give(int64(x.bytes))
	j.recycle(x)
}

// takeBack undoes in memory what x added and could not be committed. Last comes first.
func (j *journal) takeBack(x *batch) {
	j.mu.Lock()
	for _, key := range x.births {
		delete(j.sessions, key)
	}
	j.mu.Unlock()
	for i := len(x.undo) - 1; i >= 0; i-- {
		j.b.restoreRetained(&x.undo[i])
	}
	for i := len(x.ops) - 1; i >= 0; i-- {
		switch op := x.ops[i].(type) {
		case *store.Publish:
			for k := len(op.To) - 1; k >= 0; k-- {
				if s := j.session(op.To[k].Session); s != nil {
					s.takeBack(op.To[k].Seq)
				}
			}
			if s := j.session(op.FromSession); s != nil {
				s.neverReceived(op.FromID, x.n, j.refusal(x.err))
			}
		case *store.Received:
			if s := j.session(op.Session); s != nil {
				s.neverReceived(op.ID, x.n, j.refusal(x.err))
			}
		}
	}
}

// standing returns what is to be restored where m, which may be nil, was: m itself, unless it has failed too.
func (j *journal) standing(m *message) *message {
	if before, failed := j.undone[m]; failed {
		delete(j.undone, m)
		return before
	}
	return m
}

func (j *journal) session(key uint64) *session {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.sessions[key]
}
