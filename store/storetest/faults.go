package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dunlin-mqtt/dunlin/store"
)

// A Disk is what a store keeps its data on, made so that a test can let it fail: a simulated one, as a store has that does its
// input and output through an interface.
type Disk interface {
	// Open opens the store that is on the disk.
	Open() (store.Store, error)
	// Fail makes fault be called ahead of each access to the disk from now on, one call at a time; nil: none. If it returns
	// an error the access fails with it: a write may then have been done in part, a change of names not or whole, and a sync has not been done, whatever a
	// later one returns. Accesses after the power was cut do nothing.
	Fail(fault func(a Access) error)
	// Cut returns the error that stands for a cut of the power, Full one that stands for a lack of room.
	Cut() error
	Full() error
	// Crash returns the disk as it is found after the process was killed, with nothing synced that was not, or the power cut: then what was
	// not synced is there or not, in part, in any order. It does not change the Disk, and may be called while the store is
	// open, which is then given up.
	Crash(seed uint64, power bool) Disk
}

// An Access is one call to a disk.
type Access struct {
	N     int  // counts accesses from the call of Fail
	Write bool // it changes something
	Sync  bool // it is a sync
}

// RunFaults tests what a store makes of a disk that fails, with random histories: the power cut or the process killed at each
// access, writes torn and out of order, an error at the n-th access, a sync that fails once, a disk that is full for a while.
// durable says what the store is set to. open makes an empty Disk that depends on the seed. See [Run] for flags.
func RunFaults(t *testing.T, durable store.Durability, open func(seed uint64) Disk) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	for _, c := range faultChecks {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(&faultEnv{seed: seed, rounds: *roundsFlag, durable: durable, open: open}); err != nil {
				t.Errorf("%v\n%s\n(seed %d, see -storetest.seed)", err, c.why, seed)
			}
		})
	}
}

// CheckFaults is RunFaults for those who test a test: it returns what was found first.
func CheckFaults(seed uint64, rounds int, durable store.Durability, open func(seed uint64) Disk) error {
	for _, c := range faultChecks {
		if err := c.run(&faultEnv{seed: seed, rounds: rounds, durable: durable, open: open}); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

var faultChecks = []struct {
	name, why string
	run       func(e *faultEnv) error
}{
	{"the power is cut at each access", "What was acknowledged is there, and a batch all or not at all.", func(e *faultEnv) error { return e.crashes(true) }},
	{"the process is killed at each access", "What was acknowledged is there, and a batch all or not at all.", func(e *faultEnv) error { return e.crashes(false) }},
	{"an access fails once", "An error must not pass for success, nor lose what was acknowledged.", (*faultEnv).errorOnce},
	{"a sync fails once", "What a failed sync should have made durable may be gone, and the next one says nothing of it.", (*faultEnv).syncOnce},
	{"the disk is full for a while", "Disk full is survivable: space back, service back.", (*faultEnv).full},
}

type faultEnv struct {
	seed    uint64
	rounds  int
	durable store.Durability
	open    func(seed uint64) Disk
}

// A life is a store from when it was opened to when the disk failed.
type life struct {
	*faultEnv
	disk  Disk
	store store.Store
	h     *History
	acked []*State // after each batch that was acknowledged, the state that was loaded first
	also  *State   // with the batch whose Commit failed, as it may be there all the same
	rng   *rand.Rand
}

// begin opens the store, which must hold a state that may be there, and goes on from it.
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
	return &life{faultEnv: e, disk: d, store: s, h: h, acked: []*State{got}, rng: rand.New(rand.NewPCG(seed, 3))}, nil
}

// oneOf returns an error unless the state is one of those that may be.
func oneOf(got *State, may []*State) error {
	for _, want := range may {
		if want != nil && want.Equal(got) {
			return nil
		}
	}
	return fmt.Errorf("the store is none of %d states that may be there; it differs from the last one in\n%s", len(may), may[len(may)-1].Diff(got))
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

// run commits until there is an error, or n times, with a Checkpoint now and then.
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

// states are those that may be there after a crash.
func (l *life) states(power bool) []*State {
	may := l.acked[len(l.acked)-1:]
	if l.durable == store.None || l.durable == store.Buffered && power {
		may = l.acked
	}
	if l.also != nil {
		may = append(may[:len(may):len(may)], l.also)
	}
	return may
}

// crashes cuts each of several lives at some access, and goes on from what is left.
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
			power := power && rng.IntN(3) > 0 // what a killed process has not synced may be lost by the next one's crash
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

// once plays lives in which fault fails something. If that made a Commit fail, all later ones have to fail.
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

// persist commits n times, and goes on after an error as the contract forbids.
func (l *life) persist(n int) error {
	var failed error
	var also *State
	for range n {
		err := l.commit()
		switch {
		case failed == nil && err != nil:
			failed, also = err, l.also
		case failed != nil && err == nil && len(l.acked) > 0 && !l.acked[len(l.acked)-1].Equal(l.acked[max(len(l.acked)-2, 0)]):
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

// full lets a disk be full from time to time.
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
				return fmt.Errorf("round %d: Commit when there is room again, after %d that were refused: %w", round, refused, err)
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

// crashFull looks at what a crash leaves while the disk is full: a batch that was refused is not there.
func (l *life) crashFull(seed uint64, power bool) error {
	l.also = nil
	s, err := l.begin(l.disk.Crash(seed, power), seed, l.states(power)...)
	if err != nil {
		return err
	}
	return s.store.Close()
}
