// Package retained keeps the retained message of each topic (3.3.1.3), finds those that match a
// Topic Filter, and says which have expired. It knows neither Sessions nor connections.
package retained

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/google/btree"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A Message is an Application Message as the broker keeps it.
type Message = store.Message

// Why Set does not take a message.
var (
	ErrMessages = errors.New("there are as many retained messages as are allowed")
	ErrBytes    = errors.New("the retained messages would have more bytes than are allowed")
)

// Limits bound a Store.
type Limits struct {
	Messages int
	Bytes    int64 // of topics, payloads and properties
}

// Options are what New is given.
type Options struct {
	Limits Limits

	// Hold and Release count a message that begins and ends to be retained. Admit says why m must
	// not be retained in the place of old, which is nil if there is none. They are called with the
	// lock of the Store held, must not call it, and may be nil.
	Hold, Release func(m *Message)
	Admit         func(m, old *Message) error
}

type rank struct{}

func (rank) Rank() lock.Rank { return lock.Rank{Order: lock.BeforeLeaf, Name: "retained.Store.mu"} }

// A Store keeps the retained messages in the order of the topics' bytes. Its methods may be called
// from any goroutine. While its lock is held, for a bounded piece of work, only leaves are taken.
type Store struct {
	opts    Options       // immutable but for Limits, which mu guards
	version atomic.Uint64 // changes; written with mu held

	mu    lock.RWMutex[rank]
	tree  *tree                   // guarded by mu, as are the next ones
	size  int64                   // bytes of topics, payloads and properties
	dying *btree.BTreeG[*Message] // those that expire, in the order in which they do
	wake  func(at time.Time)      // set by OnExpiry
	waked int64                   // what wake was told last; 0: nothing that is still to come
}

// New returns an empty Store.
func New(o Options) *Store {
	sooner := func(a, b *Message) bool {
		return a.Expires < b.Expires || a.Expires == b.Expires && a.Topic < b.Topic
	}
	return &Store{opts: o, tree: newTree(), dying: btree.NewG(32, sooner)}
}

// Limit sets the limits from now on. What is beyond them stays.
func (s *Store) Limit(l Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts.Limits = l
}

// Size is what m counts in bytes.
func Size(m *Message) int64 {
	return int64(len(m.Topic) + len(m.Payload) + len(m.Properties))
}

// Set makes m, which nobody modifies any more, the retained message of its topic, and returns the
// one that it replaces, nil for none. The error is ErrMessages, ErrBytes or that of Admit, and then
// nothing has changed. What makes the Store smaller is taken unless Admit has something against it.
// at is the time of this for Since, above 0, in a unit of the caller; 0: unknown.
func (s *Store) Set(m *Message, at uint32) (old *Message, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it := s.tree.get(m.Topic)
	if it != nil {
		old = it.msg
	}
	if err := s.admit(m, old); err != nil {
		return nil, err
	}
	s.replace(it, m, at)
	return old, nil
}

// Restore is Set without limits, and with 0 as its time: for what was retained before.
func (s *Store) Restore(m *Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replace(s.tree.get(m.Topic), m, 0)
}

// admit says why m may not be there in the place of old, nil if it may.
func (s *Store) admit(m, old *Message) error {
	grows := Size(m)
	if old != nil {
		grows -= Size(old)
	}
	switch {
	case old == nil && s.tree.count >= s.opts.Limits.Messages:
		return ErrMessages
	case (grows > 0 || old == nil) && s.size+grows > s.opts.Limits.Bytes:
		return ErrBytes
	case s.opts.Admit != nil:
		return s.opts.Admit(m, old)
	}
	return nil
}

// Shrinks says whether a message for topic whose payload and properties have these lengths would
// make the Store smaller: there is a larger one, or there is one and the payload is empty, which
// removes it.
func (s *Store) Shrinks(topic string, payload, properties int) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	it := s.tree.get(topic)
	return it != nil && (payload == 0 || int64(len(topic)+payload+properties) < Size(it.msg))
}

// replace puts m into the place of it, nil for a new one. Store.mu is held.
func (s *Store) replace(it *item, m *Message, at uint32) {
	s.size += Size(m)
	if s.opts.Hold != nil {
		s.opts.Hold(m)
	}
	if it != nil {
		old := it.msg
		it.topic, it.msg, it.at = m.Topic, m, at
		s.forget(old)
	} else {
		s.tree.insert(m, at)
	}
	s.version.Add(1)
	if m.Expires != 0 {
		s.dying.ReplaceOrInsert(m)
		s.rouse()
	}
}

// forget is the end of a message that is not in the tree any more. Store.mu is held.
func (s *Store) forget(m *Message) {
	s.size -= Size(m)
	if m.Expires != 0 {
		s.dying.Delete(m)
	}
	if s.opts.Release != nil {
		s.opts.Release(m)
	}
}

// Remove removes the retained message of topic and returns it, nil if there is none.
func (s *Store) Remove(topic string) *Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(topic)
}

func (s *Store) remove(topic string) *Message {
	old := s.tree.remove(topic)
	if old != nil {
		s.forget(old)
		s.version.Add(1)
	}
	return old
}

// RemoveExactly removes m if it still is the retained message of its topic, and says whether it
// was.
func (s *Store) RemoveExactly(m *Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	it := s.tree.get(m.Topic)
	if it == nil || it.msg != m {
		return false
	}
	s.remove(m.Topic)
	return true
}

// Get returns the retained message of topic, nil if there is none.
func (s *Store) Get(topic string) *Message {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if it := s.tree.get(topic); it != nil {
		return it.msg
	}
	return nil
}

// Since returns when m was set, which must be the Message of one that Get or Scan returned. It is 0
// if m was restored, or is not the retained message of its topic any more.
func (s *Store) Since(m *packets.Message) uint32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if it := s.tree.get(m.Topic); it != nil && &it.msg.Message == m {
		return it.at
	}
	return 0
}

// Current returns what is now the retained message of the topic of m, which was found at the given
// version: mostly m itself. It is nil if there is none any more.
func (s *Store) Current(m *Message, version uint64) *Message {
	if s.version.Load() == version {
		return m
	}
	return s.Get(m.Topic)
}

// Len returns how many messages there are.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tree.count
}

// Bytes returns how many bytes of topics, payloads and properties there are.
func (s *Store) Bytes() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.size
}

// OnExpiry has wake called whenever a message expires before the time that wake was told last, and
// at once if one is there that expires. Then it is time for Expired. wake is called with the lock
// of the Store held and must not call it.
func (s *Store) OnExpiry(wake func(at time.Time)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake, s.waked = wake, 0
	s.rouse()
}

// rouse tells wake about the message that expires first, if that is needed. Store.mu is held.
func (s *Store) rouse() {
	first, ok := s.dying.Min()
	if !ok || s.wake == nil || s.waked != 0 && s.waked <= first.Expires {
		return
	}
	s.waked = first.Expires
	s.wake(time.Unix(0, s.waked))
}

// Expired returns up to limit messages that have expired by now and are still there: RemoveExactly
// removes them. When it returns none, wake is told about the next one.
func (s *Store) Expired(now time.Time, limit int) (all []*Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dying.Ascend(func(m *Message) bool {
		if m.Expires > now.UnixNano() || len(all) == limit {
			return false
		}
		all = append(all, m)
		return true
	})
	if len(all) == 0 {
		s.waked = 0
		s.rouse()
	}
	return all
}
