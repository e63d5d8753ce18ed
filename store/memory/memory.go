// Package memory is a store.Store in memory, for tests. Committed state survives Close and Open,
// but not the end of the process.
package memory

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// ErrClosed is returned by the methods of a Store that is not open.
var ErrClosed = errors.New("store/memory: closed")

// A Store keeps committed state. The zero value is an open, empty Store. It must not be copied. Its
// methods may be called concurrently.
type Store struct {
	mu       sync.Mutex // guards all below
	closed   bool
	births   uint64 // messages so far
	sessions map[uint64]*session
	retained map[string]*message
}

// A message is a copy of a published message, with its position in the order of all messages.
type message struct {
	store.Message
	birth uint64
}

type session struct {
	put      store.PutSession
	subs     map[string]store.PutSubscription
	queue    map[uint64]*entry // by Seq
	received map[uint16]bool
}

type entry struct {
	store.Delivery
	message  *message
	id       uint16
	released bool
}

// Open opens the Store again after Close, with its content. It fails if the Store is open.
func (s *Store) Open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		return errors.New("store/memory: open already")
	}
	s.closed = false
	return nil
}

// Close implements store.Store. It fails if the Store is not open.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.closed = true
	return nil
}

// Checkpoint implements store.Store. It does nothing.
func (s *Store) Checkpoint(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	return ctx.Err()
}

// Commit implements store.Store. The error is [ErrClosed], or that of a ctx that is done.
func (s *Store) Commit(ctx context.Context, ops []store.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, op := range ops {
		s.apply(op)
	}
	return nil
}

func (s *Store) apply(op store.Op) {
	switch op := op.(type) {
	case *store.PutSession:
		s.putSession(op)
	case *store.DeleteSession:
		delete(s.sessions, op.Session)
	case *store.PutSubscription:
		if c := s.sessions[op.Session]; c != nil {
			c.subs[op.Filter] = *op
		}
	case *store.DeleteSubscription:
		if c := s.sessions[op.Session]; c != nil {
			delete(c.subs, op.Filter)
		}
	case *store.Publish:
		s.publish(op)
	case *store.Sent:
		if e := s.entry(op.Session, op.Seq); e != nil {
			e.id = op.ID
		}
	case *store.Released:
		if e := s.entry(op.Session, op.Seq); e != nil {
			e.released = true
		}
	case *store.Done:
		if c := s.sessions[op.Session]; c != nil {
			delete(c.queue, op.Seq)
		}
	case *store.Received:
		if c := s.sessions[op.Session]; c != nil {
			c.received[op.ID] = true
		}
	case *store.Forget:
		if c := s.sessions[op.Session]; c != nil {
			delete(c.received, op.ID)
		}
	case *store.PutRetained:
		s.retain(s.message(op.Message))
	case *store.DeleteRetained:
		delete(s.retained, op.Topic)
	default:
		panic("BUG: an operation that is none of store's")
	}
}

func (s *Store) putSession(op *store.PutSession) {
	c := s.sessions[op.Session]
	if c == nil {
		c = &session{
			subs:  make(map[string]store.PutSubscription),
			queue: make(map[uint64]*entry), received: make(map[uint16]bool),
		}
		if s.sessions == nil {
			s.sessions = make(map[uint64]*session)
		}
		s.sessions[op.Session] = c
	}
	c.put = *cloneSession(op)
}

func (s *Store) publish(op *store.Publish) {
	m := s.message(op.Message)
	for _, d := range op.To {
		if c := s.sessions[d.Session]; c != nil {
			d.IDs = slices.Clone(d.IDs)
			c.queue[d.Seq] = &entry{Delivery: d, message: m}
		}
	}
	if op.Retain {
		s.retain(m)
	}
	if c := s.sessions[op.FromSession]; c != nil && op.FromSession != 0 {
		c.received[op.FromID] = true
	}
}

func (s *Store) retain(m *message) {
	if s.retained == nil {
		s.retained = make(map[string]*message)
	}
	s.retained[m.Topic] = m
}

func (s *Store) message(m *store.Message) *message {
	s.births++
	return &message{*cloneMessage(m), s.births}
}

func (s *Store) entry(id, seq uint64) *entry {
	if c := s.sessions[id]; c != nil {
		return c.queue[seq]
	}
	return nil
}

// Load implements store.Store. It yields copies, messages in the order in which they were
// committed. It yields the state at the moment when the sequence begins.
func (s *Store) Load(ctx context.Context) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) {
		s.mu.Lock()
		ops, closed := s.snapshot(), s.closed
		s.mu.Unlock()
		if closed {
			yield(nil, ErrClosed)
			return
		}
		for _, op := range ops {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			if !yield(op, nil) {
				return
			}
		}
	}
}

// snapshot returns operations that rebuild the state.
func (s *Store) snapshot() []store.Op {
	var ops, progress []store.Op
	publishes := make(map[*message]*store.Publish)
	publish := func(m *message) *store.Publish {
		if publishes[m] == nil {
			publishes[m] = &store.Publish{Message: cloneMessage(&m.Message)}
		}
		return publishes[m]
	}
	for _, id := range slices.Sorted(maps.Keys(s.sessions)) {
		c := s.sessions[id]
		ops = append(ops, cloneSession(&c.put))
		for _, filter := range slices.Sorted(maps.Keys(c.subs)) {
			sub := c.subs[filter]
			ops = append(ops, &sub)
		}
		for _, p := range slices.Sorted(maps.Keys(c.received)) {
			ops = append(ops, &store.Received{Session: id, ID: p})
		}
		for _, seq := range slices.Sorted(maps.Keys(c.queue)) {
			e := c.queue[seq]
			d := e.Delivery
			d.IDs = slices.Clone(d.IDs)
			p := publish(e.message)
			p.To = append(p.To, d)
			if e.id != 0 {
				progress = append(progress, &store.Sent{Session: id, Seq: seq, ID: e.id})
			}
			if e.released {
				progress = append(progress, &store.Released{Session: id, Seq: seq})
			}
		}
	}
	for _, m := range s.retained {
		publish(m).Retain = true
	}
	byBirth := func(a, b *message) int { return cmp.Compare(a.birth, b.birth) }
	for _, m := range slices.SortedFunc(maps.Keys(publishes), byBirth) {
		ops = append(ops, publishes[m])
	}
	return append(ops, progress...)
}

func cloneSession(op *store.PutSession) *store.PutSession {
	c := *op
	if op.Will != nil {
		w := *op.Will
		cloneSlices(&w.Message)
		c.Will = &w
	}
	return &c
}

func cloneMessage(m *store.Message) *store.Message {
	c := store.Message{Message: m.Message, Expires: m.Expires, From: m.From}
	cloneSlices(&c.Message)
	return &c
}

func cloneSlices(m *packets.Message) {
	m.Payload, m.Properties = slices.Clone(m.Payload), slices.Clone(m.Properties)
}
