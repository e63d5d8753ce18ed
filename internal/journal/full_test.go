package journal

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

func TestWhatAddsIsRefusedWhileTheStoreIsFullAndWhatFollowsIsKept(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		r.fail(store.ErrFull)
		r.Done(done(1))
		ticket := r.Released(Waiting{Waiter: "a"}, store.Released{Session: 1, Seq: 5})
		err := r.added("x")
		require.ErrorIs(t, err, store.ErrFull)
		require.ErrorIs(t, err, ErrNotStored)
		require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err))
		require.Equal(t, ticket, r.taken[0])
		require.Equal(t, store.ErrFull, r.Health())
		require.Error(t, r.last().stuck)
		require.False(t, r.last().dead)
		require.False(t, r.Settled(), "what follows is not durable")

		require.ErrorIs(t, r.Sync(t.Context()), store.ErrFull)
		require.Equal(t, []Waiter{"a"}, r.last().waiters, "it still waits for what is carried")
		require.Len(t, r.failed, 1, "it fails once")

		recovered := 0
		r.recovered = func() { recovered++ }
		r.recover()
		ops, _ := r.took()
		require.Equal(t, []uint64{1}, seqs(ops))
		require.NoError(t, r.Health())
		require.NoError(t, r.last().stuck)
		require.Equal(t, []Waiter{"a"}, r.last().waiters)
		require.Equal(t, 1, recovered)
		taken := len(r.taken)
		require.NoError(t, r.added("x"))
		require.Len(t, r.taken, taken)
	})
}

// A batch that is too large as a whole may have room without what adds.
func TestWhatFollowsIsCommittedWithoutWhatAdds(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		r.fails = func(ops []store.Op) error {
			if slices.ContainsFunc(ops, new(Batch).isAddition) {
				return store.ErrTooLarge
			}
			return nil
		}
		r.Done(done(1))
		x := r.Await(&store.PutSubscription{})
		require.ErrorIs(t, r.WaitAdded(t.Context(), x), store.ErrTooLarge)
		require.NoError(t, r.WaitFollowing(t.Context(), x))
		ops, _ := r.took()
		require.Equal(t, []uint64{1}, seqs(ops))
		r.recover()
	})
}

// What was added before the caller knew that the store is full must not overtake what is refused.
func TestNothingThatAddsOvertakesWhatWasRefused(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		release := r.hold()
		r.fails = func(ops []store.Op) error {
			if weighAll(ops) > 1_000 {
				return store.ErrFull
			}
			return nil
		}
		var all sync.WaitGroup
		all.Go(func() { require.Error(t, r.added(strings.Repeat("x", 2_000))) })
		synctest.Wait()
		all.Go(func() { require.Error(t, r.added("small")) })
		synctest.Wait()
		release()
		all.Wait()
		r.recover()
		require.NoError(t, r.Health())
	})
}

// A full store is not tried again before all know of the refusal: who does not may go on, and sends
// what was refused behind that.
func TestAFullStoreIsTriedWhenAllKnowThatItIsFull(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		full := true
		r.fails = func([]store.Op) error {
			if full {
				full = false
				return store.ErrFull
			}
			return nil
		}
		r.slow = func() { time.Sleep(5 * RetryDelay) }
		x := r.Await(&store.Publish{Message: message("refused"), To: make([]store.Delivery, 1)})
		r.Rouse()
		time.Sleep(4 * RetryDelay)
		require.Error(t, r.Refusing())
		require.Error(t, r.WaitAdded(t.Context(), x))
		time.Sleep(20 * RetryDelay)
		require.NoError(t, r.Refusing())
	})
}

// A probe asks for as much room as was wanted, so that the store does not come and go.
func TestAFullStoreIsTriedNowAndThenWithWhatWasWanted(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		var sizes []int
		r.fails = func(ops []store.Op) error {
			sizes = append(sizes, weighAll(ops))
			return store.ErrFull
		}
		require.Error(t, r.added(strings.Repeat("x", 5_000)))
		time.Sleep(10*RetryDelay + RetryDelay/2)
		synctest.Wait()
		require.Len(t, sizes, 10)
		for _, n := range sizes[1:] {
			require.InDelta(t, 10_000, n, 500)
		}
		r.recover()
	})
}

// What follows and finds no room is tried now and then, a piece at a time, however much it is.
func TestWhatIsCarriedIsNotCommittedAnewWithEachTry(t *testing.T) {
	const entries = 3000
	onRig(t, func(t *testing.T, r *rig) {
		tried := 0
		r.fails = func(ops []store.Op) error {
			tried += len(ops)
			return store.ErrFull
		}
		for i := range entries { // each in a batch of its own
			r.Done(done(uint64(i)))
			time.Sleep(2 * LazyDelay)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		tries := int((entries*2*LazyDelay+10*time.Second)/RetryDelay) + 1
		require.Less(t, tried, tries*(entries/2), "operations that were given to the store")
		require.Greater(t, carryBytes/OpWeight, entries, "they are one piece")
		require.Positive(t, r.Room.Used())
		require.Equal(t, r.Room.Used(), r.memory.Of(budget.Uncommitted))
		r.fail(nil)
		time.Sleep(time.Second)
		ops, _ := r.took()
		require.Len(t, seqs(ops), entries)
		require.True(t, slices.IsSorted(seqs(ops)))
	})
}

func TestWhatIsTiedFollowsOnlyWhatIsAdded(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		r.fail(store.ErrFull)
		w := NewWrite(r.Journal)
		op := w.Publish(message("moves"), 0)
		op.To = append(op.To, store.Delivery{Session: 2, Seq: 1})
		w.ConcludeUrgently()
		require.True(t, w.Tie(new(done(1))))
		require.True(t, w.Tie(nil))
		w.Put(new(done(2)))
		w.Begin(&store.PutSession{Session: 7})
		w.Put(&store.PutSession{Session: 8})
		w.Settle()
		r.AwaitErrands()
		r.recover()
		ops, _ := r.took()
		require.Equal(t, []uint64{2}, seqs(ops), "where it was the message stays")
		require.Contains(t, ops, &store.PutSession{Session: 8})
		require.NotContains(t, ops, &store.PutSession{Session: 7})
	})
}

func TestAnyOtherErrorIsTheEndOfTheStore(t *testing.T) {
	broken := errors.New("broken")
	onRig(t, func(t *testing.T, r *rig) {
		r.fail(store.ErrFull)
		r.Done(done(1))
		require.Error(t, r.added("x"))
		r.fail(broken)
		time.Sleep(2 * RetryDelay)
		synctest.Wait()
		require.Equal(t, broken, r.Health())
		require.Zero(t, r.Room.Used(), "nothing is carried any more")
		r.fail(nil)
		tries := r.tries
		err := r.added("y")
		require.ErrorIs(t, err, broken)
		require.Equal(t, packets.ImplementationSpecificError, packets.CodeOf(err))
		require.ErrorIs(t, r.Sync(t.Context()), broken)
		require.True(t, r.last().dead)
		require.Equal(t, tries, r.tries)
		require.Equal(t, []error{store.ErrFull, broken}, r.failed)
	})
}

func TestAwaitErrandsWaitsForWhatARecoveryBegins(t *testing.T) {
	onRig(t, func(t *testing.T, r *rig) {
		begun, over := make(chan struct{}), make(chan struct{})
		r.recovered = func() {
			<-begun // as long as it has begun nothing
			r.Go(func() { <-over })
		}
		r.fail(store.ErrFull)
		require.Error(t, r.added("x"))
		r.recover()
		quiet := false
		go func() {
			r.AwaitErrands()
			quiet = true
		}()
		for _, step := range []chan struct{}{begun, over} {
			synctest.Wait()
			require.False(t, quiet)
			close(step)
		}
		synctest.Wait()
		require.True(t, quiet)
	})
}

func TestOfWhatIsCarriedOnlyTheLastWordCounts(t *testing.T) {
	d := func(seq uint64) store.Op { return new(done(seq)) }
	rel := func(seq uint64) store.Op { return &store.Released{Session: 1, Seq: seq} }
	end, put := &store.DeleteSession{Session: 1}, &store.PutSession{Session: 1}
	unsub, drop := &store.DeleteSubscription{Session: 1, Filter: "a"},
		&store.DeleteRetained{Topic: "a"}
	forget := &store.Forget{Session: 1, ID: 5}
	other := &store.PutSession{Session: 2}
	for _, tt := range []struct {
		name      string
		ops, want []store.Op
	}{
		{"an entry that is done needs nothing else",
			[]store.Op{rel(1), rel(2), d(1)}, []store.Op{rel(2), d(1)}},
		{"a Session that ends needs nothing else",
			[]store.Op{put, d(1), unsub, forget, other, end}, []store.Op{other, end}},
		{"the same thing twice",
			[]store.Op{drop, unsub, forget, put, drop, unsub, forget, put},
			[]store.Op{drop, unsub, forget, put}},
		{"an identifier is no entry", []store.Op{forget, d(5)}, []store.Op{forget, d(5)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, current(tt.ops))
		})
	}
}

// Many goroutines add to a store that is full at times: what was accepted is there, what was
// refused is not, and what follows is there in its order, whatever happens.
func TestEachOperationIsCommittedOnceOrRefused(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	onRig(t, func(t *testing.T, r *rig) {
		chance := rand.New(rand.NewPCG(seed, 0))
		r.fails = func([]store.Op) error {
			time.Sleep(time.Duration(chance.IntN(3)) * time.Millisecond)
			if chance.IntN(4) == 0 {
				return store.ErrFull
			}
			return nil
		}
		const writers, rounds = 8, 100
		var accepted, refused [writers][]uint64
		var all sync.WaitGroup
		for i := range writers {
			chance := rand.New(rand.NewPCG(seed, uint64(i+1)))
			all.Go(func() {
				w := NewWrite(r.Journal)
				for n := range uint64(rounds) {
					time.Sleep(time.Duration(chance.IntN(20)) * time.Millisecond)
					op := w.Publish(message("x"), 0)
					op.To = append(op.To, store.Delivery{Session: uint64(i), Seq: n})
					w.ConcludeUrgently()
					x := w.Want()
					w.Clear()
					r.Sent(nil, Waiting{}, store.Sent{Session: uint64(i), Seq: n})
					if r.WaitAdded(t.Context(), x) == nil {
						accepted[i] = append(accepted[i], n)
					} else {
						refused[i] = append(refused[i], n)
					}
				}
			})
		}
		all.Wait()
		r.fail(nil)
		time.Sleep(time.Second)
		require.NoError(t, r.Sync(t.Context()))
		ops, _ := r.took()
		var added, followed [writers][]uint64
		for _, op := range ops {
			switch op := op.(type) {
			case *store.Publish:
				for _, to := range op.To {
					added[to.Session] = append(added[to.Session], to.Seq)
				}
			case *store.Sent:
				followed[op.Session] = append(followed[op.Session], op.Seq)
			}
		}
		failures := 0
		for i := range writers {
			require.Equal(t, accepted[i], added[i])
			require.Len(t, followed[i], rounds)
			require.True(t, slices.IsSorted(followed[i]))
			failures += len(refused[i])
		}
		require.Positive(t, failures)
		for i, d := range r.decided {
			require.EqualValues(t, i+1, d.ticket)
		}
	})
}
