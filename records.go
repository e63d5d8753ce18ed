package dunlin

import (
	"maps"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/unsettled"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is the Broker's side of the journal, for a Broker with a Store: which Session has which
// number there, and what is to do when a batch is decided.
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
// Acknowledgements of subscribers are written with the next batch: should a crash forget one, the
// client sees a QoS 1 message twice, as it may, and a PUBREL twice, which it answers.

// records are the journal, and what the Broker knows of its operations.
type records struct {
	*journal.Journal
	b *Broker

	lates   atomic.Int64  // QoS 2 messages that wait in batches, see late
	lastKey atomic.Uint64 // of the Sessions
	// Subscriptions of which it is not known whether the store has them
	unsettled unsettled.Changes[*session, *grant]

	mu       lock.Mutex[recordsLock] // guards what follows
	sessions map[uint64]*session     // that the store knows, by session.stored
	debts    map[*session]*debt
	resuming map[*session]*before // whose connection is not accepted yet
	ending   map[string]uint64    // places of Sessions that have ended, with the ticket of that
	wills    []*will              // that are due and wait for room
	kept     int                  // what they weigh
	free     []*sequel            // empty

	// Owned by the releaser: retained messages that failed after they had been replaced, with what
	// was there before them; nil: nothing.
	undone map[*message]*message
}

// newRecords returns the records of a Broker whose Store is s. They commit nothing before Start.
func newRecords(b *Broker, s store.Store) *records {
	r := &records{
		b: b, sessions: make(map[uint64]*session), debts: make(map[*session]*debt),
		resuming: make(map[*session]*before), ending: make(map[string]uint64),
		undone: make(map[*message]*message),
	}
	r.Journal = journal.New(journal.Options{
		Store: s, Handler: r, Log: b.log, Now: time.Now, Memory: b.memory,
		Most: int64(b.cfg().MaxUncommittedBytes), Closed: ErrBrokerClosed, Tried: b.stats.tried,
	})
	return r
}

// A sequel is what is to do when a batch is decided. It is guarded by records.mu as long as the
// batch is pinned.
type sequel struct {
	late    []late
	undo    []retainedUndo
	moves   []move
	begins  []*session      // that begin to pay what they owe
	delayed []*delayed      // that wait from now on
	locals  []*Subscription // that wait for QoS 2 messages
}

// late is a QoS 2 message for receivers that the store does not know, or that get it at QoS 0: they
// get it once it is durable.
type late struct {
	msg     *message
	to      []target
	receipt *receipt // that counts a place for each of them; nil for most
	anyway  bool     // they get it also if it does not become durable
}

// A move is under way with a batch: of a Will, or of a message that s leaves.
type move struct {
	will *will
	s    *session
	d    delivery
}

// retainedUndo is what a change of a retained message is undone with.
type retainedUndo struct {
	topic    string
	now, old *message // nil: none
}

// after has add note what is to do when x is decided, which the caller pins.
func (r *records) after(x *journal.Batch, add func(q *sequel)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q, ok := x.Rest.(*sequel)
	if !ok {
		if k := len(r.free); k > 0 {
			q, r.free = r.free[k-1], r.free[:k-1]
		} else {
			q = new(sequel)
		}
		x.Rest = q
	}
	add(q)
}

// maxFree is how many sequels are kept for other batches.
const maxFree = 2

// recycle keeps the memory of q, which is done.
func (r *records) recycle(q *sequel) {
	clear(q.late)
	clear(q.undo)
	clear(q.moves)
	clear(q.begins)
	clear(q.delayed)
	clear(q.locals)
	*q = sequel{q.late[:0], q.undo[:0], q.moves[:0], q.begins[:0], q.delayed[:0], q.locals[:0]}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.free) < maxFree {
		r.free = append(r.free, q)
	}
}

// key returns a number for a new Session.
func (r *records) key() uint64 { return r.lastKey.Add(1) }

func (r *records) session(key uint64) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[key]
}

// end adds the end of a Session, if the store may know of it, and returns the ticket.
func (r *records) end(s *session) uint64 {
	if s.stored == 0 { // it may have been told of one that was refused, later
		return 0
	}
	r.mu.Lock()
	delete(r.sessions, s.stored)
	r.mu.Unlock()
	r.unsettled.Forget(s)
	return r.Add(&store.DeleteSession{Session: s.stored})
}

// TakeBack undoes in memory what x added and could not be committed. Last comes first.
func (r *records) TakeBack(x *journal.Batch) {
	for _, key := range x.Births() {
		if s := r.session(key); s != nil {
			s.mu.Lock()
			s.born = never
			s.mu.Unlock()
			r.mu.Lock()
			delete(r.sessions, key)
			r.mu.Unlock()
		}
	}
	if q, ok := x.Rest.(*sequel); ok {
		for i := len(q.undo) - 1; i >= 0; i-- {
			r.b.restoreRetained(&q.undo[i])
		}
	}
	ops, refusal := x.Ops(), journal.Refusal(x.Err())
	for i := len(ops) - 1; i >= 0; i-- {
		switch op := ops[i].(type) {
		case *store.Publish:
			for k := len(op.To) - 1; k >= 0; k-- {
				if s := r.session(op.To[k].Session); s != nil {
					s.withdrawQueued(op.To[k].Seq)
				}
			}
			if s := r.session(op.FromSession); s != nil {
				s.neverReceived(op.FromID, x.Ticket(), refusal)
			}
		case *store.Received:
			if s := r.session(op.Session); s != nil {
				s.neverReceived(op.ID, x.Ticket(), refusal)
			}
		}
	}
}

// Decided lets go what waited for x.
func (r *records) Decided(x *journal.Batch) {
	r.mu.Lock()
	maps.DeleteFunc(r.ending, func(_ string, ticket uint64) bool { return ticket <= x.Ticket() })
	r.mu.Unlock()
	r.b.work(func(t *turn) {
		for _, w := range x.Waiters {
			if w.(*conn).batchDecided(t, x); t.full() {
				t.end()
			}
		}
		if q, ok := x.Rest.(*sequel); ok {
			r.follow(t, q, x.Err())
			r.recycle(q)
		}
	})
}

// follow does what is to do when a batch is decided. err is why nothing that was added is there.
func (r *records) follow(t *turn, q *sequel, err error) {
	for i := range q.undo {
		if err == nil {
			delete(r.undone, q.undo[i].old)
		}
	}
	for i := range q.late {
		if err == nil || q.late[i].anyway {
			r.b.deliverLate(t, &q.late[i])
			if t.full() {
				t.end()
			}
			continue
		}
		for range q.late[i].to { // their publisher is refused
			q.late[i].receipt.moved()
		}
	}
	r.lates.Add(-int64(len(q.late)))
	for i := range q.moves {
		r.b.decided(&q.moves[i], err)
	}
	for _, s := range q.begins {
		r.begin(s)
	}
	for _, d := range q.delayed {
		if err != nil {
			d.over(r.b)
		} else {
			d.wait(r.b, d.at)
		}
	}
	for _, sub := range q.locals {
		sub.s.mu.Lock()
		sub.signal()
		sub.s.mu.Unlock()
	}
}

// Failed tells the Observer that the store has failed.
func (r *records) Failed(err error) {
	if f := r.b.obs.StoreFailed; f != nil {
		f(hooks.StoreFailed{Err: err})
	}
}

// Recovered goes on with all that waits for room.
func (r *records) Recovered() {
	r.run(r.b.resumeWalks)
	r.payAll()
	if f := r.b.obs.StoreRecovered; f != nil {
		f(hooks.StoreRecovered{})
	}
}

// run runs f in a turn on a goroutine of its own, which Close waits for.
func (r *records) run(f func(t *turn)) { r.Go(func() { r.b.work(f) }) }

// standing returns what is to be restored where m, which may be nil, was: m itself, unless it has
// failed too.
func (r *records) standing(m *message) *message {
	for {
		before, failed := r.undone[m]
		if !failed {
			return m
		}
		delete(r.undone, m)
		m = before
	}
}
