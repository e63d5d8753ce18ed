package bridge

import (
	"context"
	"sync"
	"time"
)

// A recall knows the messages again that the broker has accepted. It has two generations: when the
// young one is full it becomes the old one.
type recall struct {
	size int // of a generation; immutable

	mu         sync.Mutex
	young, old map[uint64]struct{} // guarded by mu
	underWay   map[uint64]*passage // guarded by mu; what the broker has not accepted yet
}

// A passage is a message on its way through the broker.
type passage struct {
	by   string        // the Client Identifier of its publisher
	over chan struct{} // closed when it is accepted or refused
}

const (
	// maxPassages bounds recall.underWay. The broker tells nobody which messages it refuses.
	maxPassages = 4096
	// passageTime is how long a second copy of a message waits to learn what becomes of the first.
	passageTime = time.Second
)

// begin says whether a message is new, and notes that it is under way. It waits for another copy
// that is under way. A client that sends a message again has not had the first one accepted.
func (m *recall) begin(ctx context.Context, id uint64, by string) (fresh bool) {
	for {
		first, fresh := m.tryBegin(id, by, nil)
		if first == nil {
			return fresh
		}
		t := time.NewTimer(passageTime)
		select {
		case <-first.over:
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		if first, fresh = m.tryBegin(id, by, first); first == nil {
			return fresh
		}
	}
}

// tryBegin is begin without the wait. It returns the passage to wait for, if it is not stale.
func (m *recall) tryBegin(id uint64, by string, stale *passage) (first *passage, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.young[id]; known {
		return nil, false
	}
	if _, known := m.old[id]; known {
		return nil, false
	}
	if x := m.underWay[id]; x != nil && x.by != by && x != stale {
		return x, false
	}
	m.endLocked(id)
	if len(m.underWay) >= maxPassages {
		for id := range m.underWay {
			m.endLocked(id)
		}
	}
	if m.underWay == nil {
		m.underWay = make(map[uint64]*passage)
	}
	m.underWay[id] = &passage{by, make(chan struct{})}
	return nil, true
}

// endLocked ends a passage. m.mu is held.
func (m *recall) endLocked(id uint64) {
	if x := m.underWay[id]; x != nil {
		close(x.over)
		delete(m.underWay, id)
	}
}

// finish notes that a message is accepted.
func (m *recall) finish(id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endLocked(id)
	if len(m.young) >= m.size || m.young == nil {
		m.young, m.old = make(map[uint64]struct{}), m.young
	}
	m.young[id] = struct{}{}
}

// forget notes that a message is refused.
func (m *recall) forget(id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endLocked(id)
}

// forgetAll is for a Store that fails: what was accepted last may be lost, and come again.
func (m *recall) forgetAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.young, m.old = nil, nil
	for id := range m.underWay {
		m.endLocked(id)
	}
}
