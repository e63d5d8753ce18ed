package dunlin

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A faultStore is a store in memory that waits, fails and dies as a test wants. What was committed
// outlives it: see next.
type faultStore struct {
	*memory.Store

	mu      sync.Mutex
	gate    chan struct{} // not nil: Commit waits for it to be closed
	before  func(ops []store.Op) error
	after   func() // not nil: Commit calls it when the operations are there
	dead    bool   // nothing reaches the store any more
	commits int
	seen    []store.Op // of all commits, copied as far as tests look at them
	planted string     // a fault that tests must find, see model.fault
	pending []store.Op // of the Commit that has returned early
}

var errKilled = errors.New("the process was killed")

func (s *faultStore) Commit(ctx context.Context, ops []store.Op) error {
	s.mu.Lock()
	s.commits++
	gate, before := s.gate, s.before
	s.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if before != nil {
		if err := before(ops); err != nil {
			return err
		}
	}
	if err := s.apply(ctx, ops); err != nil {
		return err
	}
	if s.after != nil {
		s.after()
	}
	return nil
}

func (s *faultStore) apply(ctx context.Context, ops []store.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return errKilled
	}
	for _, op := range ops {
		s.seen = append(s.seen, copyOp(op))
	}
	switch s.planted {
	case "early":
		before := s.pending
		s.pending = slices.Clone(s.seen[len(s.seen)-len(ops):])
		if len(before) == 0 {
			return nil
		}
		ops = before
	case "unreleased":
		ops = slices.DeleteFunc(slices.Clone(ops), func(op store.Op) bool {
			_, is := op.(*store.Released)
			return is
		})
	}
	return s.Store.Commit(ctx, ops)
}

// copyOp copies an operation as deep as is needed to look at it later.
func copyOp(op store.Op) store.Op {
	switch op := op.(type) {
	case *store.Publish:
		c := *op
		c.To = append([]store.Delivery(nil), op.To...)
		return &c
	case *store.Sent:
		c := *op
		return &c
	case *store.Released:
		c := *op
		return &c
	case *store.Done:
		c := *op
		return &c
	case *store.Forget:
		c := *op
		return &c
	}
	return op
}

// hold makes commits wait until the function it returns is called.
func (s *faultStore) hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gate := make(chan struct{})
	s.gate = gate
	return func() {
		s.mu.Lock()
		s.gate = nil
		s.mu.Unlock()
		close(gate)
	}
}

// fail makes commits return err, nil: succeed.
func (s *faultStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.before = nil
		return
	}
	s.before = func([]store.Op) error { return err }
}

// refuse makes commits with such an operation fail for want of room.
func (s *faultStore) refuse(such func(op store.Op) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = func(ops []store.Op) error {
		if slices.ContainsFunc(ops, such) {
			return store.ErrFull
		}
		return nil
	}
}

// kill is the end of the process: nothing is committed any more. It returns a store with what was.
func (s *faultStore) kill() *faultStore {
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	return &faultStore{Store: s.Store, planted: s.planted}
}

func (s *faultStore) Close() error { return nil } // the memory stays open for the next one

func (s *faultStore) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}
