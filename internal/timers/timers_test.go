package timers

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// bubble runs f in virtual time, with Timers that are closed behind it: a goroutine that is left is
// an error.
func bubble(t *testing.T, f func(t *testing.T, ts *Timers)) {
	synctest.Test(t, func(t *testing.T) {
		ts := New()
		defer ts.Close()
		f(t, ts)
	})
}

func TestWhatIsDueIsCalledInTheOrderOfTime(t *testing.T) {
	bubble(t, func(t *testing.T, ts *Timers) {
		began := time.Now()
		got := make(chan string, 10)
		set := func(at time.Time, name string) {
			ts.Set(new(Timer), at, func(now time.Time) {
				got <- fmt.Sprint(name, " after ", now.Sub(began))
			})
		}
		set(began.Add(3*time.Second), "third")
		set(began.Add(time.Second), "first")
		set(began.Add(2*time.Second), "second")
		time.Sleep(time.Minute)
		require.Equal(t, "first after 1s", <-got)
		require.Equal(t, "second after 2s", <-got)
		require.Equal(t, "third after 3s", <-got)
	})
}

// Times come from tokens, clients and files: none of them, however far away, may hold up the
// others.
func TestATimeOutsideOfTheRangeOfADurationHoldsUpNothing(t *testing.T) {
	for _, far := range []time.Time{
		time.Date(2262, 4, 11, 23, 47, 16, 854775807, time.UTC), // the last that UnixNano can say
		time.Date(2262, 4, 11, 23, 47, 16, 854775808, time.UTC),
		time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Unix(math.MaxInt64, 0), // a year that wraps around: long ago
		time.Unix(1<<61, 0),
	} {
		bubble(t, func(t *testing.T, ts *Timers) {
			later := false
			ts.Set(new(Timer), far, func(time.Time) { later = true })
			due := false
			ts.Set(new(Timer), time.Now().Add(time.Second), func(time.Time) { due = true })
			time.Sleep(time.Second)
			synctest.Wait()
			require.True(t, due, "behind one of %v", far)
			require.Equal(t, far.Before(time.Now()), later, far)
		})
	}
}

func TestATimeInThePastIsDueAtOnceAndTheZeroTimeNever(t *testing.T) {
	for _, past := range []time.Time{
		time.Time{}.Add(1),
		time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC), // before what UnixNano can say
		time.Unix(0, math.MinInt64),
		time.Unix(0, 0),
		time.Unix(math.MinInt64, 0),
	} {
		bubble(t, func(t *testing.T, ts *Timers) {
			due := past.After(time.Now()) // the last of them wraps around
			ts.Set(new(Timer), past, func(time.Time) { due = true })
			var never Timer
			ts.Set(&never, time.Now().Add(time.Second),
				func(time.Time) { panic("it was set again") })
			ts.Set(&never, time.Time{}, func(time.Time) { panic("the zero time") })
			synctest.Wait()
			require.True(t, due, past)
			time.Sleep(2 * time.Second)
			require.False(t, never.Over(time.Now()))
		})
	}
}

func TestACallThatWaitsHoldsUpNoOther(t *testing.T) {
	bubble(t, func(t *testing.T, ts *Timers) {
		release := make(chan struct{})
		now := time.Now()
		for i := range slowWorkers - 1 {
			ts.SetSlow(new(Timer), fmt.Sprint(i%8), now.Add(time.Second),
				func(time.Time) { <-release })
		}
		quick, slow, tooMany := false, false, false
		ts.Set(new(Timer), now.Add(2*time.Second), func(time.Time) { quick = true })
		ts.SetSlow(new(Timer), "x", now.Add(2*time.Second), func(time.Time) { slow = true })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.True(t, quick)
		require.True(t, slow)

		ts.SetSlow(new(Timer), "x", now, func(time.Time) { <-release })
		ts.SetSlow(new(Timer), "x", now, func(time.Time) { tooMany = true })
		quick = false
		ts.Set(new(Timer), now, func(time.Time) { quick = true })
		synctest.Wait()
		require.True(t, quick)
		require.False(t, tooMany, "there are no more than so many workers")
		close(release)
		synctest.Wait()
		require.True(t, tooMany, "a worker that is free again looks what is due")
	})
}

// One share whose calls wait for long does not hold up the calls of others.
func TestOneShareDoesNotTakeAllWorkers(t *testing.T) {
	bubble(t, func(t *testing.T, ts *Timers) {
		release := make(chan struct{})
		soon := time.Now().Add(time.Second)
		var running, made atomic.Int64
		all := make([]Timer, 3*slowWorkers)
		for i := range all {
			ts.SetSlow(&all[i], "one", soon, func(time.Time) {
				running.Add(1)
				<-release
				made.Add(1)
			})
		}
		var other, late atomic.Bool
		ts.SetSlow(new(Timer), "other", soon.Add(time.Second),
			func(time.Time) { other.Store(true) })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.True(t, other.Load())
		require.EqualValues(t, slowEach, running.Load())
		require.Equal(t, len(all)-slowEach, ts.Len())
		ts.Cancel(&all[len(all)-1])
		ts.SetSlow(&all[len(all)-2], "one", soon.Add(time.Hour),
			func(time.Time) { late.Store(true) })
		close(release)
		synctest.Wait()
		require.EqualValues(t, len(all)-2, made.Load(),
			"each has its turn, but for those that were set anew")
		require.False(t, late.Load())
		ts.mu.Lock()
		busy, parked := len(ts.slow.busy), len(ts.slow.parked)
		ts.mu.Unlock()
		require.Zero(t, busy+parked)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.True(t, late.Load())
	})
}

func TestTheCallsOfOneTimerDoNotOverlap(t *testing.T) {
	bubble(t, func(t *testing.T, ts *Timers) {
		var x Timer
		release := make(chan struct{})
		var got []string
		ts.SetSlow(&x, "", time.Now(), func(time.Time) {
			<-release
			got = append(got, "the first")
		})
		synctest.Wait()
		ts.Set(&x, time.Now(), func(time.Time) { panic("it was set again") })
		ts.Set(&x, time.Now().Add(time.Second), func(time.Time) { got = append(got, "the second") })
		time.Sleep(time.Minute)
		require.Empty(t, got)
		close(release)
		synctest.Wait()
		require.Equal(t, []string{"the first", "the second"}, got)
	})
}

func TestWhatWasCancelledIsNotCalled(t *testing.T) {
	bubble(t, func(t *testing.T, ts *Timers) {
		var x Timer
		ts.Cancel(nil)
		ts.Cancel(&x)
		ts.Set(&x, time.Now().Add(time.Second), func(time.Time) { panic("cancelled") })
		ts.Cancel(&x)
		release := make(chan struct{})
		var y Timer
		ts.SetSlow(&y, "", time.Now(), func(time.Time) { <-release })
		synctest.Wait()
		ts.SetSlow(&y, "", time.Now(), func(time.Time) { panic("cancelled") })
		ts.Cancel(&y)
		close(release)
		time.Sleep(time.Minute)
	})
}

func TestCloseWaitsForCallsAndLeavesNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := New()
		over := false
		var x Timer
		ts.SetSlow(&x, "", time.Now(), func(time.Time) {
			time.Sleep(time.Second)
			ts.Set(&x, time.Now(), func(time.Time) { panic("after Close") })
			over = true
		})
		ts.Set(new(Timer), time.Now().Add(time.Hour), func(time.Time) { panic("after Close") })
		synctest.Wait()
		ts.Close()
		require.True(t, over)
		ts.Set(new(Timer), time.Now(), func(time.Time) { panic("after Close") })
		ts.Close()
	})
}

// Thousands of Timers are set, moved and cancelled at random beside a model: each is called when it
// is due, and not otherwise.
func TestTimersAgainstAModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	bubble(t, func(t *testing.T, ts *Timers) {
		const n = 300
		var timers [n]Timer
		var due [n]time.Time // of the model; zero: not
		var called [n]atomic.Int64
		for range 5000 {
			i := rnd.IntN(n)
			set := ts.Set
			if rnd.IntN(2) == 0 {
				set = func(t *Timer, at time.Time, do func(time.Time)) {
					ts.SetSlow(t, fmt.Sprint(i%3), at, do)
				}
			}
			slow := time.Duration(rnd.IntN(3)) * time.Second
			switch at := time.Now().Add(time.Duration(1+rnd.IntN(60)) * time.Second); rnd.IntN(4) {
			case 0:
				ts.Cancel(&timers[i])
				due[i] = time.Time{}
			default:
				due[i] = at
				set(&timers[i], at, func(now time.Time) {
					if now.Before(at) {
						panic("too early")
					}
					called[i].Store(at.UnixNano())
					time.Sleep(slow) // it may be set again, and due, before it returns
				})
			}
			time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
			synctest.Wait()
			for k := range due {
				if due[k].Before(time.Now()) && called[k].Load() == due[k].UnixNano() {
					due[k] = time.Time{}
				}
			}
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		for i := range due {
			if !due[i].IsZero() {
				require.Equal(t, due[i].UnixNano(), called[i].Load(), "Timer %d was not called", i)
			}
		}
		require.Zero(t, ts.Len()+ts.quick.workers+ts.slow.workers)
	})
}

func TestLateIsToldHowLongACallHadToWait(t *testing.T) {
	bubble(t, func(t *testing.T, ts *Timers) {
		var mu sync.Mutex
		var late []time.Duration
		ts.Late = func(d time.Duration) { // the workers call it
			mu.Lock()
			defer mu.Unlock()
			late = append(late, d)
		}
		began := time.Now()
		for range quickWorkers {
			ts.Set(new(Timer), began.Add(time.Second), func(time.Time) { time.Sleep(3 * time.Second) })
		}
		ts.Set(new(Timer), began.Add(2*time.Second), func(time.Time) {})
		ts.Set(new(Timer), time.Unix(0, 0), func(time.Time) {}) // says nothing about the Timers
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, append(make([]time.Duration, quickWorkers), 2*time.Second), late)
	})
}
