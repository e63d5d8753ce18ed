// Package storetest holds the contract of package store as a test suite. Run it to know that your
// store is correct:
//
//	func TestContract(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) func() (store.Store, error) {
//			dir := t.TempDir()
//			return func() (store.Store, error) { return mystore.Open(dir) }
//		})
//	}
//
// Run compares the content of a store with a model, [State], after random histories of operations
// ([History]) and after cases in which stores often have errors. It cannot cut the power.
// [RunFaults] can, for a store that does its input and output through an interface: it runs the
// store on a [Disk] that loses, tears and reorders bytes that were not synced, fails, and fills up.
// Package store/segment has such a Disk. [Intercept] makes any store slow or failing, to test
// programs that use a store. [Benchmark] measures a store.
package storetest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/store"
)

var (
	seedFlag = flag.Uint64("storetest.seed", 0,
		"seed of the random histories of storetest.Run; 0: a new one")
	roundsFlag = flag.Int("storetest.rounds", 4,
		"how many random histories storetest.Run plays of each kind")
)

// Run tests a store against the contract of package store, each sentence of it in a subtest. Run
// calls open once for each subtest. open returns a function that opens the same data again and
// again; the data is empty at first, and the store from the call before is closed. Random histories
// print their seed. The flag -storetest.seed repeats a seed; -storetest.rounds makes a run longer.
func Run(t *testing.T, open func(t *testing.T) (reopen func() (store.Store, error))) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			e := &env{open: open(t), seed: seed, rounds: *roundsFlag, patience: 5 * time.Second}
			if err := c.run(e); err != nil {
				t.Errorf("%v\n%s\n(seed %d, see -storetest.seed)", err, c.why, seed)
			}
			if err := e.close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

// A check is one sentence of the contract.
type check struct {
	name string
	why  string // what it means to the broker
	run  func(e *env) error
}

// env is the environment of a check: a store that can be reopened, and the model.
type env struct {
	open   func() (store.Store, error)
	seed   uint64
	rounds int
	store  store.Store // nil while closed
	want   *State

	patience time.Duration // how long goroutines may take to end
}

// ctx is for calls that do not test contexts.
var ctx = context.Background()

// commit gives the store a copy of ops, overwrites the copy afterwards, and applies ops to the
// model.
func (e *env) commit(ops ...store.Op) error {
	if err := e.opened(); err != nil {
		return err
	}
	given := clone(ops)
	if err := e.store.Commit(ctx, given); err != nil {
		return fmt.Errorf("Commit: %w", err)
	}
	scribble(given)
	e.want.Apply(ops...)
	return nil
}

// opened opens the store unless it is open, and loads it first, as the broker does.
func (e *env) opened() error {
	if e.want == nil {
		e.want = NewState()
	}
	if e.store != nil {
		return nil
	}
	s, err := e.open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	e.store = s
	return e.load("the store as it was opened")
}

// load compares the content of the store with the model.
func (e *env) load(what string) error {
	got, err := Fold(e.store.Load(ctx))
	if err != nil {
		return fmt.Errorf("Load: %w", err)
	}
	if d := e.want.Diff(got); d != "" {
		return fmt.Errorf("%s is not what was committed:\n%s", what, d)
	}
	return nil
}

func (e *env) close() error {
	if e.store == nil {
		return nil
	}
	s := e.store
	e.store = nil
	return s.Close()
}

// reopen closes and opens the store, and compares its content with the model.
func (e *env) reopen() error {
	if err := e.opened(); err != nil {
		return err
	}
	if err := e.close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	return e.opened()
}

// settled waits until there are no more goroutines than before.
func settled(before int, patience time.Duration) error {
	timeout := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > before {
		select {
		case <-tick.C:
		case <-timeout:
			stacks := make([]byte, 64<<10)
			return fmt.Errorf("%d goroutines before, %d after Close:\n%s",
				before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
	return nil
}

// Intercept returns a store that calls before at the beginning of each call to s. before gets the
// name of the call, "load", "commit", "checkpoint" or "close", and the number of calls with this
// name so far, including this one. before may wait, which makes the store slow. It may return an
// error: then the call returns this error and does not reach s. As the contract requires, after an
// error of Commit other than [store.ErrFull] all later Commits fail too.
func Intercept(s store.Store,
	before func(ctx context.Context, call string, n int) error) store.Store {
	return &intercepted{inner: s, before: before, calls: make(map[string]int)}
}

// intercepted is used by one goroutine at a time, as the contract allows.
type intercepted struct {
	inner  store.Store
	before func(ctx context.Context, call string, n int) error
	calls  map[string]int
	failed error
}

func (s *intercepted) call(ctx context.Context, name string) error {
	s.calls[name]++
	return s.before(ctx, name, s.calls[name])
}

func (s *intercepted) Load(ctx context.Context) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) {
		if err := s.call(ctx, "load"); err != nil {
			yield(nil, err)
			return
		}
		s.inner.Load(ctx)(yield)
	}
}

func (s *intercepted) Commit(ctx context.Context, ops []store.Op) error {
	if s.failed != nil {
		return fmt.Errorf("an earlier commit failed: %w", s.failed)
	}
	if err := s.call(ctx, "commit"); err != nil {
		if !errors.Is(err, store.ErrFull) {
			s.failed = err
		}
		return err
	}
	return s.inner.Commit(ctx, ops)
}

func (s *intercepted) Checkpoint(ctx context.Context) error {
	if err := s.call(ctx, "checkpoint"); err != nil {
		return err
	}
	return s.inner.Checkpoint(ctx)
}

func (s *intercepted) Close() error {
	if err := s.call(ctx, "close"); err != nil {
		return errors.Join(err, s.inner.Close())
	}
	return s.inner.Close()
}
