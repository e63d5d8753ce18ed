// Package journal makes operations of package store durable, in the order in which they are added,
// and many with one Commit.
//
// What is added goes into the pending batch. One goroutine, the committer, takes the batch, commits
// it, and takes the next one that has gathered meanwhile. A second one, the releaser, tells the
// Handler that the batch is decided. Batches have numbers, their tickets, and are decided in this
// order. There is no timer in this path: only what nobody waits for is left for a moment, so that
// more can come.
//
// An operation either adds, such as a message, and somebody waits for it and can be told that it
// failed. Or it follows what has happened already, such as the end of a Session. When the store has
// no room for a batch, what adds is refused, and what follows is kept and tried again until it is
// committed. Any other error of the store is its end: nothing is committed any more.
package journal

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/room"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// How long the Journal waits.
const (
	LazyDelay  = 20 * time.Millisecond  // what nobody waits for, for company
	RetryDelay = 100 * time.Millisecond // for the next try of a full store
)

const (
	checkpointBytes = 64 << 20 // committed between two checkpoints
	batchBytes      = 16 << 20 // from which a batch is complete, far below what a store can take
)

// Options are what a Journal is made of. All but Closed, Memory and Tried must be set.
type Options struct {
	Store   store.Store // Close closes it
	Handler Handler
	Log     *slog.Logger
	Now     func() time.Time
	Memory  *budget.Budget // counts what is not decided
	Most    int64          // bytes that Room has
	Closed  error          // what goroutines get that wait when the Journal is closed
	// Tried is told of each call of Commit, also of one that failed: when it began, and with how many
	// operations. The committer calls it.
	Tried func(began time.Time, ops int)
}

// A Handler is told what becomes of batches. Its methods are called with no lock held.
type Handler interface {
	// TakeBack undoes in memory what x adds and could not be committed. Decided follows. It is
	// called by the releaser.
	TakeBack(x *Batch)
	// Decided lets go what waits for x, which must not be used afterwards. It is called by the
	// releaser, once for each batch, in their order.
	Decided(x *Batch)
	// Failed is told that the store has failed, Recovered that it works again. The committer
	// calls them. Close waits for what Recovered begins with Go.
	Failed(err error)
	Recovered()
}

// A Waiter is whoever holds output until a batch is decided. The Journal keeps and compares it.
type Waiter any

// Waiting is a Waiter with the ticket that it waits for already and that came last, 0 if there is
// none, so that a batch has each Waiter once. The zero value is nobody.
type Waiting struct {
	Waiter Waiter
	Last   uint64
}

// A Journal is the queue of operations for a Store.
type Journal struct {
	// Room is for what is not decided, and what is about to be added. Whoever adds takes it first,
	// see Write.
	Room room.Room

	o     Options
	news  chan struct{} // capacity 1: there may be something to commit
	ready chan *Batch   // from the committer to the releaser, in order
	over  sync.WaitGroup
	ended chan struct{} // closed when nothing is committed any more

	health atomic.Pointer[health] // nil: all is well

	mu       lock.Mutex[leaf] // guards what follows
	pending  *Batch
	sealed   []*Batch // before pending, complete but for those that are pinned
	decided  uint64   // batches up to this one have been decided
	released uint64   // and of those up to this one everybody knows
	free     []*Batch
	closed   bool
	stuck    bool // the committer carries operations
	lazy     *time.Timer
	errands  int           // batches that lead to more, and goroutines of Go
	noErrand chan struct{} // not nil: AwaitErrands waits, until it is closed

	// Owned by the committer.
	carried carriage
	full    bool      // the failure is one that passes
	suspect uint64    // up to this batch some may have added before they knew of the failure
	probeAt time.Time // when a full store is tried again
	wanted  int       // bytes that there was no room for when it became full
	grown   int       // bytes since the last checkpoint
}

// health is why what adds is refused.
type health struct {
	err  error
	dead bool // for good
}

type leaf struct{}

func (leaf) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "journal.Journal.mu"} }

// New returns a Journal. It commits nothing before Start.
func New(o Options) *Journal {
	j := &Journal{
		o: o, pending: &Batch{ticket: 1},
		news: make(chan struct{}, 1), ready: make(chan *Batch, 1), ended: make(chan struct{}),
	}
	j.Room.Most = o.Most
	return j
}

// Start starts the committer and the releaser, which Close waits for.
func (j *Journal) Start() {
	j.over.Go(j.commitAll)
	j.over.Go(j.releaseAll)
}

// Close commits what is there, ends both goroutines, and closes the Store, whose error it returns.
func (j *Journal) Close() error {
	j.mu.Lock()
	j.closed = true
	if j.lazy != nil {
		j.lazy.Stop()
	}
	j.mu.Unlock()
	j.wake()
	lock.NoneHeld("a wait")
	j.over.Wait()
	close(j.ended)
	lock.NoneHeld("a call of the Store")
	return j.o.Store.Close()
}

// ErrNotStored is in the chain of every error that says that the store has failed.
var ErrNotStored = errors.New("the store failed")

// ErrNoRoom says that there was no room in time.
var ErrNoRoom = &packets.Error{
	Code: packets.QuotaExceeded, Reason: "too much waits for the store", Err: ErrNotStored,
}

// Refusal is the error for a client whose request could not be stored because of err, nil for nil.
// Otherwise there is a *packets.Error in its chain.
func Refusal(err error) error {
	if err == nil {
		return nil
	}
	pe := &packets.Error{Code: packets.ImplementationSpecificError, Reason: "it cannot be stored"}
	if passes(err) {
		pe.Code, pe.Reason = packets.QuotaExceeded, "no room to store it"
	}
	pe.Err = errors.Join(ErrNotStored, err)
	return pe
}

// Health returns why what adds is refused, nil while all is well.
func (j *Journal) Health() error {
	if h := j.health.Load(); h != nil {
		return h.err
	}
	return nil
}

// Refusing is Health as a Refusal. It may be called with any lock held.
func (j *Journal) Refusing() error { return Refusal(j.Health()) }

// wake makes the committer look.
func (j *Journal) wake() {
	select {
	case j.news <- struct{}{}:
	default:
	}
}

// Rouse has the pending batch committed, whether or not somebody waits.
func (j *Journal) Rouse() {
	j.mu.Lock()
	j.pending.urgent = true
	j.mu.Unlock()
	j.wake()
}

// LastDecided returns the ticket that was decided last.
func (j *Journal) LastDecided() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.decided
}

// Settled says whether everything that was added is decided.
func (j *Journal) Settled() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.settledLocked()
}

func (j *Journal) settledLocked() bool {
	return j.decided+1 == j.pending.ticket && len(j.pending.ops) == 0 && !j.stuck
}

// AwaitRoom waits for n bytes of Room and takes them. It has all committed that is there. It does
// not wait while the store fails. The error is ErrNoRoom, the one that Options.Closed names, the
// cause of ctx, or that of Refusing. No lock is held.
func (j *Journal) AwaitRoom(ctx context.Context, n int64) error {
	if err := j.Refusing(); err != nil {
		return err
	}
	j.Rouse()
	switch err := j.Room.Await(ctx, n, j.ended); err {
	case nil:
	case room.ErrNone:
		return ErrNoRoom
	case room.ErrEnded:
		return j.o.Closed
	default:
		return err
	}
	err := j.Refusing() // it may have failed meanwhile
	if err != nil {
		j.Room.Give(n)
	}
	return err
}

// WaitAdded waits until x is decided and returns why what it adds was refused, nil if it is
// durable. x is what Await, Begin, All or Want returned. If ctx ends first WaitAdded returns its
// cause. No lock is held.
func (j *Journal) WaitAdded(ctx context.Context, x *Batch) error {
	if err := j.await(ctx, x); err != nil {
		return err
	}
	return Refusal(x.err)
}

// WaitFollowing is WaitAdded for what does not add: it returns why that is not durable.
func (j *Journal) WaitFollowing(ctx context.Context, x *Batch) error {
	if err := j.await(ctx, x); err != nil {
		return err
	}
	return Refusal(x.stuck)
}

func (j *Journal) await(ctx context.Context, x *Batch) error {
	j.wake()
	lock.NoneHeld("a wait for the Store")
	select {
	case <-x.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-j.ended:
		return j.o.Closed
	}
}

// Sync waits until everything that was added is durable. It returns why it is not, as WaitFollowing
// does.
func (j *Journal) Sync(ctx context.Context) error {
	if j.Settled() {
		return nil
	}
	return j.WaitFollowing(ctx, j.All())
}

// Go runs f on a goroutine of its own, which AwaitErrands waits for.
func (j *Journal) Go(f func()) {
	j.mu.Lock()
	j.errands++
	j.mu.Unlock()
	go func() { // AwaitErrands waits for it
		defer j.endErrand()
		f()
	}()
}

// leadsLocked notes that x leads to more when it is decided: AwaitErrands waits for that.
func (j *Journal) leadsLocked(x *Batch) {
	if !x.errand {
		x.errand = true
		j.errands++
	}
}

// endErrand is the end of a batch that led to more, or of a goroutine of Go.
func (j *Journal) endErrand() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.errands--; j.errands == 0 && j.noErrand != nil {
		close(j.noErrand)
		j.noErrand = nil
	}
}

// AwaitErrands waits until no function of Go runs, and no batch is undecided that leads to more.
func (j *Journal) AwaitErrands() {
	j.mu.Lock()
	for j.errands > 0 {
		if j.noErrand == nil {
			j.noErrand = make(chan struct{})
		}
		none := j.noErrand
		j.mu.Unlock()
		lock.NoneHeld("a wait")
		<-none
		j.mu.Lock()
	}
	j.mu.Unlock()
}
