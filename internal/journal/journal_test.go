package journal

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A rig is a Journal in a bubble, with a Store and a Handler that note what they are told.
type rig struct {
	*Journal
	t      *testing.T
	memory *budget.Budget
	log    bytes.Buffer

	mu          sync.Mutex
	gate        chan struct{}              // not nil: Commit waits for it to be closed
	fails       func(ops []store.Op) error // not nil: says what Commit returns
	commits     [][]store.Op               // that succeeded
	tries       int                        // all
	checkpoints int                        // all of them fail
	decided     []decision                 // in their order
	taken       []uint64                   // tickets that were taken back
	failed      []error                    // see Handler
	recovered   func()                     // not nil: called by Recovered
	slow        func()                     // not nil: called by Decided
	rests       []any                      // of the batches that were decided
	closed      bool                       // the Store is
}

// A decision is what the Handler sees of a Batch.
type decision struct {
	ticket     uint64
	err, stuck error
	dead       bool
	waiters    []Waiter
	births     []uint64
}

var errClosed = errors.New("closed")

// onRig runs f in a bubble, and closes the Journal. Everything that was counted is given back.
func onRig(t *testing.T, f func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, memory: budget.New(1 << 40)}
		r.Journal = New(Options{
			Store: r, Handler: r, Now: time.Now, Memory: r.memory, Most: 10_000, Closed: errClosed,
			Log: slog.New(slog.NewTextHandler(&r.log, nil)),
		})
		r.Start()
		synctest.Wait()
		defer r.Close() // should f fail
		f(t, r)
		require.Equal(t, errClosed, r.Close())
		require.Zero(t, r.Room.Used(), "of the room")
		require.Zero(t, r.memory.Used(), "of the memory")
	})
}

func (r *rig) Load(context.Context) iter.Seq2[store.Op, error] { return nil }

func (r *rig) Commit(_ context.Context, ops []store.Op) error {
	lock.NoneHeld("a Commit")
	r.mu.Lock()
	gate := r.gate
	r.tries++
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	r.mu.Lock()
	fails := r.fails
	r.mu.Unlock()
	if fails != nil {
		if err := fails(ops); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var copies []store.Op
	for _, op := range ops {
		require.NotNil(r.t, op)
		switch op := op.(type) {
		case *store.Publish:
			copies = append(copies, &store.Publish{
				Message: op.Message, To: slices.Clone(op.To), Retain: op.Retain,
				FromSession: op.FromSession, FromID: op.FromID,
			})
		case *store.Done:
			copies = append(copies, new(*op))
		case *store.Sent:
			copies = append(copies, new(*op))
		case *store.Released:
			copies = append(copies, new(*op))
		case *store.Forget:
			copies = append(copies, new(*op))
		default:
			copies = append(copies, op)
		}
	}
	r.commits = append(r.commits, copies)
	return nil
}

func (r *rig) Checkpoint(context.Context) error {
	r.checkpoints++
	return errors.New("no checkpoint")
}

func (r *rig) TakeBack(x *Batch) {
	lock.NoneHeld("TakeBack")
	r.taken = append(r.taken, x.Ticket())
	require.Less(r.t, r.LastDecided(), x.Ticket(), "it is not decided yet")
}

func (r *rig) Decided(x *Batch) {
	if f := r.slow; f != nil {
		f()
	}
	lock.NoneHeld("Decided")
	require.Equal(r.t, x.Ticket(), r.LastDecided())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rests = append(r.rests, x.Rest)
	r.decided = append(r.decided, decision{
		x.Ticket(), x.Err(), x.Stuck(), x.Dead(), append([]Waiter{}, x.Waiters...),
		slices.Clone(x.Births()),
	})
}

func (r *rig) Failed(err error) { r.failed = append(r.failed, err) }

func (r *rig) Recovered() {
	if r.recovered != nil {
		r.recovered()
	}
}

// Close is that of both the Store, which the Journal calls, and the Journal, which the test does.
func (r *rig) Close() error {
	if r.closed {
		return errClosed
	}
	r.closed = true
	return r.Journal.Close()
}

// hold makes Commits wait until release is called.
func (r *rig) hold() (release func()) {
	gate := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate = gate
	return func() {
		r.mu.Lock()
		r.gate = nil
		r.mu.Unlock()
		close(gate)
		synctest.Wait()
	}
}

// fail makes Commits return err, nil: succeed.
func (r *rig) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fails = func([]store.Op) error { return err }
}

// recover makes Commits succeed, and waits until the Journal has found out.
func (r *rig) recover() {
	r.fail(nil)
	time.Sleep(2 * RetryDelay)
	synctest.Wait()
}

// took returns what was committed since it was asked before, and how many Commits that were.
func (r *rig) took() (ops []store.Op, commits int) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.commits {
		ops, commits = append(ops, c...), commits+1
	}
	r.commits = nil
	return ops, commits
}

// last returns what was decided last.
func (r *rig) last() decision {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.decided[len(r.decided)-1]
}

// added adds a message for one queue and returns what Wait returns.
func (r *rig) added(payload string) error {
	op := &store.Publish{Message: message(payload), To: make([]store.Delivery, 1)}
	return r.WaitAdded(context.Background(), r.Await(op))
}

func message(payload string) *store.Message {
	return &store.Message{Message: packets.Message{Topic: "t", Payload: []byte(payload)}}
}

func done(seq uint64) store.Done { return store.Done{Session: 1, Seq: seq} }

// seqs returns those of all Done of ops.
func seqs(ops []store.Op) (all []uint64) {
	for _, op := range ops {
		if d, ok := op.(*store.Done); ok {
			all = append(all, d.Seq)
		}
	}
	return all
}

func TestWhatNobodyWaitsForIsCommittedSoonAndTogether(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		r.Done(done(1))
		time.Sleep(LazyDelay / 2)
		r.Done(done(2))
		r.Add(&store.DeleteRetained{Topic: "t"})
		ops, _ := r.took()
		require.Empty(t, ops, "it waits for company")
		time.Sleep(LazyDelay / 2)
		ops, commits := r.took()
		require.Len(t, ops, 3)
		require.Equal(t, 1, commits)
	})
}

func TestTwoWritesThatAreSettledLateAreCommittedSoon(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		a, b := NewWrite(r.Journal), NewWrite(r.Journal)
		for _, w := range []*Write{&a, &b} { // both, before either is done with its message
			w.Publish(message("x"), 0).Retain = true
		}
		for _, w := range []*Write{&a, &b} {
			w.Conclude()
			w.Clear()
		}
		time.Sleep(LazyDelay)
		ops, _ := r.took()
		require.Len(t, ops, 2)
	})
}

func TestWhatIsAddedDuringACommitSharesTheNext(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		release := r.hold()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { require.NoError(t, r.added("x")) })
		}
		synctest.Wait()
		all.Go(func() { require.NoError(t, r.Sync(t.Context())) })
		synctest.Wait()
		release()
		all.Wait()
		ops, commits := r.took()
		require.Len(t, ops, 50)
		require.LessOrEqual(t, commits, 2)
		require.True(t, r.Settled())
		require.Zero(t, r.Join(Waiting{Waiter: "w"}), "nothing to wait for")
		require.NoError(t, r.Sync(t.Context()))
	})
}

// Whatever waits, a batch stays far below what a store can take.
func TestALargeBatchIsComplete(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		most := 0
		r.fails = func(ops []store.Op) error {
			most = max(most, weighAll(ops))
			return nil
		}
		release := r.hold()
		payload := strings.Repeat("x", 1_000_000)
		for range 60 {
			r.Enqueue(message(payload), store.Delivery{})
		}
		require.Greater(t, r.Room.Used(), int64(50<<20))
		release()
		time.Sleep(LazyDelay)
		ops, _ := r.took()
		require.Len(t, ops, 60)
		require.Less(t, most, 20<<20, "bytes in one Commit")
		require.Zero(t, r.checkpoints)
		for range 10 {
			r.Enqueue(message(payload), store.Delivery{})
		}
		time.Sleep(LazyDelay)
		synctest.Wait()
		require.Equal(t, 1, r.checkpoints, "after 64 MiB")
		require.Contains(t, r.log.String(), "no checkpoint")
	})
}

func TestAWaiterIsToldOnceForEachBatch(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		release := r.hold()
		go r.added("x")
		synctest.Wait() // it is being committed
		var last uint64
		for i := range 3 {
			last = r.Sent(nil, Waiting{"a", last}, store.Sent{Session: 1, Seq: uint64(i), ID: 1})
		}
		r.Sent(nil, Waiting{}, store.Sent{Session: 1, Seq: 9, ID: 1})
		require.Equal(t, last, r.Released(Waiting{"b", 0}, store.Released{Session: 1, Seq: 7}))
		r.Add(&store.DeleteRetained{Topic: strings.Repeat("x", batchBytes)}) // completes the batch
		next := r.Forget(Waiting{"a", last}, store.Forget{Session: 1, ID: 7})
		require.Equal(t, last+1, next)
		require.Equal(t, next, r.Join(Waiting{"c", 0}))
		release()
		ops, _ := r.took()
		require.Len(t, ops, 8)
		require.Equal(t, []decision{
			{ticket: 1, waiters: []Waiter{}},
			{ticket: last, waiters: []Waiter{"a", "b"}},
			{ticket: next, waiters: []Waiter{"a", "c"}},
		}, r.decided)
	})
}

func TestABatchIsNotCommittedWhileItIsPinned(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		w := NewWrite(r.Journal)
		require.True(t, w.Waits())
		op := w.Publish(message("x"), 0)
		require.Same(t, op, w.Publish(nil, 0), "one operation for each message")
		require.False(t, w.Waits())
		op.To = append(op.To, store.Delivery{Session: 1, Seq: 1})
		w.ConcludeUrgently()
		ticket := w.Hold(Waiting{Waiter: "p"})
		var others sync.WaitGroup
		others.Go(func() { require.NoError(t, r.added("y")) }) // in the same batch
		time.Sleep(time.Second)
		others.Go(func() { require.NoError(t, r.added("z")) }) // behind it
		time.Sleep(time.Second)
		synctest.Wait()
		require.Zero(t, r.tries)
		require.Equal(t, ticket, r.Sent(w.Batch(), Waiting{},
			store.Sent{Session: 1, Seq: 1, ID: 1}))
		w.Settle()
		others.Wait()
		ops, commits := r.took()
		require.Equal(t, 2, commits)
		require.Len(t, ops, 4)
		require.IsType(t, &store.Sent{}, ops[2], "into the batch with its message")
	})
}

func TestWhatIsKeptTogetherIsInOneBatch(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		w := NewWrite(r.Journal)
		w.Together()
		require.False(t, w.Waits())
		for i := range 3 {
			w.Add(new(done(uint64(i))))
			w.Settle()
			r.Rouse()
			synctest.Wait()
		}
		require.Zero(t, r.tries)
		w.Apart()
		ops, commits := r.took()
		require.Equal(t, []uint64{0, 1, 2}, seqs(ops))
		require.Equal(t, 1, commits)
	})
}

func TestAMessageThatNobodyGetsIsWithdrawn(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		w := NewWrite(r.Journal)
		w.Publish(message("nobody gets it"), 0)
		w.ConcludeUrgently()
		w.Clear()
		op := w.Publish(message("it was received"), 0)
		op.FromSession, op.FromID = 7, 3
		w.ConcludeUrgently()
		w.Clear()
		ops, _ := r.took()
		require.Equal(t, []store.Op{&store.Received{Session: 7, ID: 3}}, ops)
	})
}

// A Session is named in no batch that comes before the one in which it begins.
func TestAMessageIsInABatchThatKnowsTheSession(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		w := NewWrite(r.Journal)
		first := w.Publish(message("x"), 0)
		first.To = append(first.To, store.Delivery{Session: 1})
		r.Rouse()
		synctest.Wait() // the batch of w is taken, and waits for w
		x := r.Begin(&store.PutSession{Session: 2}, &store.PutSession{Session: 3})
		require.NotSame(t, first, w.Publish(message("x"), x.Ticket()))
		require.Same(t, x, w.Batch())
		w.Message().To = append(w.Message().To, store.Delivery{Session: 2})
		w.Conclude()
		w.Clear()
		require.NoError(t, r.WaitAdded(t.Context(), x))
		require.Equal(t, []uint64{2, 3}, r.last().births)
		_, commits := r.took()
		require.Equal(t, 2, commits)
	})
}

func TestFollowPinsOnlyWhatIsUndecided(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		w := NewWrite(r.Journal)
		w.Follow()
		require.Nil(t, w.Batch())
		require.Nil(t, w.Want())
		require.Zero(t, w.Hold(Waiting{Waiter: "p"}))
		require.False(t, w.Tie(new(done(1))), "there is nothing to tie it to")
		w.Follow()
		require.NotNil(t, w.Batch())
		x := w.Want()
		w.Settle()
		require.NoError(t, r.WaitFollowing(t.Context(), x))
	})
}

func TestTheRestOfABatchComesWithItsDecision(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		w := NewWrite(r.Journal)
		for i := range 3 {
			w.Pin()
			require.Nil(t, w.Batch().Rest, "a batch that is used again has nothing of before")
			w.Batch().Rest = i
			w.Lead(100)
			require.EqualValues(t, 100, r.Room.Used())
			w.Settle()
			r.AwaitErrands()
			synctest.Wait()
		}
		require.Equal(t, []any{0, 1, 2}, r.rests)
	})
}

func TestAwaitErrandsWaitsForGoAndWhatLeadsToMore(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		release := r.hold()
		w := NewWrite(r.Journal)
		w.Put(new(done(1)))
		require.True(t, w.Tie(new(done(2))))
		w.Settle()
		over := make(chan struct{})
		r.Go(func() { <-over })
		quiet := false
		go func() {
			r.AwaitErrands()
			quiet = true
		}()
		synctest.Wait()
		require.False(t, quiet)
		release()
		require.False(t, quiet, "the other function runs")
		close(over)
		synctest.Wait()
		require.True(t, quiet)
	})
}

func TestWhatWaitsForRoomIsToldWhyThereIsNone(t *testing.T) {
	ended, end := context.WithCancelCause(context.Background())
	errEnded := errors.New("ended")
	end(errEnded)
	for _, tt := range []struct {
		name string
		ctx  context.Context
		want error
		then func(r *rig, release func())
	}{
		{"a context that has ended", ended, errEnded, func(*rig, func()) {}},
		{"no room in time", context.Background(), ErrNoRoom, func(*rig, func()) {}},
		{"a store that is full", context.Background(), store.ErrFull, func(r *rig, release func()) {
			r.fail(store.ErrFull)
			release()
		}},
		{"there is room", context.Background(), nil, func(_ *rig, release func()) { release() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onRig(t, func(t *testing.T, r *rig) {
				release := r.hold()
				go r.added(strings.Repeat("x", 9_900))
				synctest.Wait()
				w := NewWrite(r.Journal)
				defer w.Clear()
				require.False(t, w.TakeRoom(1_000))
				go tt.then(r, sync.OnceFunc(release))
				require.ErrorIs(t, w.AwaitRoom(tt.ctx, 1_000), tt.want)
				if r.gate != nil {
					release()
				}
				if err := r.Health(); err != nil {
					require.ErrorIs(t, w.AwaitRoom(tt.ctx, 1), err, "it does not wait")
				}
				w.Exceed(20_000)
				require.GreaterOrEqual(t, r.Room.Used(), int64(20_000))
			})
		})
	}
}

func TestWaitingEndsWithTheContextAndWithTheJournal(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		release := r.hold()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		x := r.Await(new(done(1)))
		require.ErrorIs(t, r.WaitAdded(ctx, x), context.DeadlineExceeded)
		release()
		require.NoError(t, r.WaitAdded(t.Context(), x))
		r.Close()
		require.Equal(t, errClosed, r.WaitAdded(t.Context(), r.All()))
	})
}

func TestCloseCommitsWhatIsThere(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		r.Done(done(1))
		r.Close()
		ops, _ := r.took()
		require.Len(t, ops, 1)
	})
}
