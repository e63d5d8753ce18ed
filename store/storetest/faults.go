package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dunlin-mqtt/dunlin/store"
)

// A Disk is the storage of a store, in a form that a test can make fail. A store that does its
// input and output through an interface can run on a simulated Disk.
type Disk interface {
	// Open opens the store that is on the disk.
	Open() (store.Store, error)
	// Fail sets a function that is called before each access to the disk, one call at a time; nil
	// sets none. If it returns an error, the access fails with this error. A failed write may have
	// been done in part. A failed change of names may have been done or not. A failed sync has not
	// been done, whatever a later sync returns. Accesses after the power was cut do nothing.
	Fail(fault func(a Access) error)
	// Cut returns the error that means a loss of power. Full returns the error that means a lack of
	// room.
	Cut() error
	Full() error
	// Crash returns the disk in its state after a crash: after the process was killed, or after the
	// power was cut. After a kill, nothing is synced that was not synced before. After a cut, bytes
	// that were not synced may be there in part, in any order. Crash does not change the Disk. It
	// may be called while the store is open; the caller then gives up this store.
	Crash(seed uint64, power bool) Disk
}

// An Access is one call to a Disk.
type Access struct {
	N     int  // counts accesses from the call of Fail
	Write bool // it changes something
	Sync  bool // it is a sync
}

// RunFaults tests a store on a failing disk, with random histories. The power is cut or the process
// killed at each access; writes are torn and reordered; the n-th access fails; one sync fails; the
// disk is full for a while. durable is the Durability of the store. open makes an empty Disk that
// depends on the seed. See [Run] for flags.
func RunFaults(t *testing.T, durable store.Durability, open func(seed uint64) Disk) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	for _, c := range faultChecks {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(&faultEnv{seed: seed, rounds: *roundsFlag, durable: durable,
				open: open}); err != nil {
				t.Errorf("%v\n%s\n(seed %d, see -storetest.seed)", err, c.why, seed)
			}
		})
	}
}

// CheckFaults is RunFaults for tests of a test: it returns the first error that it finds.
func CheckFaults(seed uint64, rounds int, durable store.Durability,
	open func(seed uint64) Disk) error {
	for _, c := range faultChecks {
		if err := c.run(&faultEnv{seed: seed, rounds: rounds, durable: durable,
			open: open}); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

var faultChecks = []struct {
	name, why string
	run       func(e *faultEnv) error
}{
	{"the power is cut at each access",
		"What was acknowledged is there, and a batch all or not at all.",
		func(e *faultEnv) error { return e.crashes(true) }},
	{"the process is killed at each access",
		"What was acknowledged is there, and a batch all or not at all.",
		func(e *faultEnv) error { return e.crashes(false) }},
	{"an access fails once", "An error must not pass for success, nor lose what was acknowledged.",
		(*faultEnv).errorOnce},
	{"a sync fails once",
		"What a failed sync should have made durable may be gone, and the next one says nothing " +
			"of it.", (*faultEnv).syncOnce},
	{"the disk is full for a while", "Disk full is survivable: space back, service back.",
		(*faultEnv).full},
}

type faultEnv struct {
	seed    uint64
	rounds  int
	durable store.Durability
	open    func(seed uint64) Disk
}

// A life is the use of a store from its opening until the disk fails.
type life struct {
	*faultEnv
	disk  Disk
	store store.Store
	h     *History
	acked []*State // after each batch that was acknowledged, the state that was loaded first
	also  *State   // with the batch whose Commit failed, as it may be there all the same
	rng   *rand.Rand
}

// begin opens the store and continues from its state, which must be one of the possible states.
func (e *faultEnv) begin(d Disk, seed uint64, may ...*State) (*life, error) {
	s, err := d.Open()
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	got, err := Fold(s.Load(ctx))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("Load: %w", err), s.Close())
	}
	if err := oneOf(got, may); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	h := NewHistory(seed)
	h.Large, h.State = 3000, got.Clone()
	h.restart()
	return &life{faultEnv: e, disk: d, store: s, h: h, acked: []*State{got},
		rng: rand.New(rand.NewPCG(seed, 3))}, nil
}

// oneOf returns an error unless the state is one of the possible states.
func oneOf(got *State, may []*State) error {
	for _, want := range may {
		if want != nil && want.Equal(got) {
			return nil
		}
	}
	return fmt.Errorf(
		"the store is none of %d states that may be there; it differs from the last one in\n%s",
		len(may), may[len(may)-1].Diff(got))
}

// commit commits a random batch.
func (l *life) commit() error {
	before := l.h.State.Clone()
	ops := l.h.Batch()
	if err := l.store.Commit(ctx, clone(ops)); err != nil {
		l.also, l.h.State = l.h.State, before
		return err
	}
	l.acked, l.also = append(l.acked, l.h.State.Clone()), nil
	return nil
}

// run commits until there is an error, or n times. It calls Checkpoint now and then.
func (l *life) run(n int) error {
	for range n {
		if err := l.commit(); err != nil {
			return err
		}
		if l.rng.IntN(12) == 0 {
			if err := l.store.Checkpoint(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// states are the possible states after a crash.
func (l *life) states(power bool) []*State {
	may := l.acked[len(l.acked)-1:]
	if l.durable == store.DurabilityNone || l.durable == store.DurabilityBuffered && power {
		may = l.acked
	}
	if l.also != nil {
		may = append(may[:len(may):len(may)], l.also)
	}
	return may
}

// crashes ends each of several lives at some access, and continues from the remaining disk.
func (e *faultEnv) crashes(power bool) error {
	for round := range e.rounds * 20 {
		rng := rand.New(rand.NewPCG(e.seed, uint64(round)))
		d := e.open(rng.Uint64())
		may := []*State{NewState()}
		for n := range 4 {
			l, err := e.begin(d, rng.Uint64(), may...)
			if err != nil {
				return fmt.Errorf("round %d, life %d: %w", round, n, err)
			}
			at, cut := 1+rng.IntN(1+rng.IntN(150)), d.Cut()
			d.Fail(func(a Access) error {
				if a.N >= at {
					return cut
				}
				return nil
			})
			l.run(1 + rng.IntN(40)) // it ends when the power is cut, or before
			if rng.IntN(2) == 0 {
				l.store.Close()
			}
			// what a killed process has not synced may be lost by the next one's crash
			power := power && rng.IntN(3) > 0
			may = l.states(power)
			d = d.Crash(rng.Uint64(), power)
			l.end()
		}
		if err := e.last(d, may); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

// end closes a store whose disk has failed.
func (l *life) end() { l.store.Close() }

// last opens the store for the last time.
func (e *faultEnv) last(d Disk, may []*State) error {
	l, err := e.begin(d, e.seed, may...)
	if err != nil {
		return err
	}
	if err := l.run(5); err != nil {
		return fmt.Errorf("after a crash: %w", err)
	}
	return l.store.Close()
}

// errorOnce lets one access fail.
func (e *faultEnv) errorOnce() error {
	broken := errors.New("the disk is broken")
	return e.once(func(a Access, at int) error {
		if a.N == at {
			return broken
		}
		return nil
	})
}

// syncOnce lets one sync fail.
func (e *faultEnv) syncOnce() error {
	broken := errors.New("the disk is broken")
	syncs := 0
	return e.once(func(a Access, at int) error {
		if a.N == 1 {
			syncs = 0
		}
		if a.Sync {
			if syncs++; syncs == 1+at/4 {
				return broken
			}
		}
		return nil
	})
}

// once plays lives in which fault makes one access fail. If a Commit fails because of it, all later
// Commits must fail.
func (e *faultEnv) once(fault func(a Access, at int) error) error {
	for round := range e.rounds * 20 {
		rng := rand.New(rand.NewPCG(e.seed, uint64(round)))
		d := e.open(rng.Uint64())
		l, err := e.begin(d, rng.Uint64(), NewState())
		if err != nil {
			return err
		}
		at := 1 + rng.IntN(1+rng.IntN(150))
		d.Fail(func(a Access) error { return fault(a, at) })
		if err := l.persist(40); err != nil {
			return fmt.Errorf("round %d, access %d: %w", round, at, err)
		}
		d.Fail(nil)
		power := rng.IntN(2) == 0
		if rng.IntN(2) == 0 {
			l.end()
		}
		after := d.Crash(rng.Uint64(), power)
		may := l.states(power)
		l.end()
		if err := e.last(after, may); err != nil {
			return fmt.Errorf("round %d, access %d: %w", round, at, err)
		}
	}
	return nil
}

// persist commits n times and continues after an error, although the contract forbids it.
func (l *life) persist(n int) error {
	var failed error
	var also *State
	for range n {
		err := l.commit()
		switch {
		case failed == nil && err != nil:
			failed, also = err, l.also
		case failed != nil && err == nil && len(l.acked) > 0 &&
			!l.acked[len(l.acked)-1].Equal(l.acked[max(len(l.acked)-2, 0)]):
			return fmt.Errorf("a Commit succeeded after one had failed with: %w", failed)
		case failed == nil && l.rng.IntN(12) == 0:
			l.store.Checkpoint(ctx) // it may fail: the next Commit tells whether it matters
		}
	}
	if failed != nil {
		l.also = also
	}
	return nil
}

// full makes the disk full from time to time.
func (e *faultEnv) full() error {
	for round := range e.rounds * 20 {
		rng := rand.New(rand.NewPCG(e.seed, uint64(round)))
		d := e.open(rng.Uint64())
		l, err := e.begin(d, rng.Uint64(), NewState())
		if err != nil {
			return err
		}
		for range 4 {
			at, refused, full := 1+rng.IntN(100), 0, d.Full()
			d.Fail(func(a Access) error {
				if a.Write && a.N >= at {
					return full
				}
				return nil
			})
			for range 30 {
				if err := l.commit(); errors.Is(err, store.ErrFull) {
					refused++
				} else if err != nil {
					return fmt.Errorf("round %d: Commit on a full disk: %w", round, err)
				}
			}
			if rng.IntN(2) == 0 {
				if err := l.crashFull(rng.Uint64(), rng.IntN(2) == 0); err != nil {
					return fmt.Errorf("round %d, after %d refused: %w", round, refused, err)
				}
			}
			d.Fail(nil)
			if err := l.commit(); err != nil {
				return fmt.Errorf(
					"round %d: Commit when there is room again, after %d that were refused: %w",
					round, refused, err)
			}
		}
		l.also = nil
		if err := l.store.Close(); err != nil {
			return fmt.Errorf("round %d: Close: %w", round, err)
		}
		if err := e.last(d, l.acked[len(l.acked)-1:]); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

// crashFull checks a crash while the disk is full: a refused batch must not be there.
func (l *life) crashFull(seed uint64, power bool) error {
	l.also = nil
	s, err := l.begin(l.disk.Crash(seed, power), seed, l.states(power)...)
	if err != nil {
		return err
	}
	return s.store.Close()
}
