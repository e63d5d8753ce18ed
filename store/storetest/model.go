package storetest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A State is the result of operations: the model that a store is compared with. The zero value is
// not usable: see [NewState]. A State keeps the messages, Wills and Subscription Identifiers of the
// operations; the caller must not change them afterwards.
type State struct {
	Sessions map[uint64]*Session
	Retained map[string]*store.Message // by Topic Name

	broken []string // rules of package store that the operations broke
}

// A Session is a Session with everything that belongs to it.
type Session struct {
	store.PutSession                                   // the last one
	Subscriptions    map[string]*store.PutSubscription // by Topic Filter
	Queue            []*Entry                          // by Seq
	Received         map[uint16]bool
}

// An Entry is one entry in the queue of a Session.
type Entry struct {
	store.Delivery
	Message  *store.Message
	PacketID uint16 // 0 until it was sent
	Released bool
}

// NewState returns the empty state.
func NewState() *State {
	return &State{Sessions: make(map[uint64]*Session), Retained: make(map[string]*store.Message)}
}

// Fold applies operations to an empty state. It first reads all of them, and then applies them.
// This reveals a store that reuses memory that it has yielded. Fold returns the first error of the
// sequence.
func Fold(ops iter.Seq2[store.Op, error]) (*State, error) {
	var all []store.Op
	for op, err := range ops {
		if err != nil {
			return nil, err
		}
		if op == nil {
			return nil, errors.New("a nil operation was yielded")
		}
		all = append(all, op)
	}
	s := NewState()
	s.Apply(all...)
	return s, nil
}

// Apply applies operations to the state, in order.
func (s *State) Apply(ops ...store.Op) {
	for _, op := range ops {
		s.apply(op)
	}
}

func (s *State) apply(op store.Op) {
	switch op := op.(type) {
	case *store.PutSession:
		c := s.Sessions[op.Session]
		if c == nil {
			c = &Session{Subscriptions: make(map[string]*store.PutSubscription),
				Received: make(map[uint16]bool)}
			s.Sessions[op.Session] = c
		}
		c.PutSession = *op
	case *store.DeleteSession:
		delete(s.Sessions, op.Session)
	case *store.PutSubscription:
		if c := s.Sessions[op.Session]; c != nil {
			sub := *op
			c.Subscriptions[op.Filter] = &sub
		}
	case *store.DeleteSubscription:
		if c := s.Sessions[op.Session]; c != nil {
			delete(c.Subscriptions, op.Filter)
		}
	case *store.Publish:
		s.publish(op)
	case *store.Received:
		s.received(op.Session, op.ID)
	case *store.Forget:
		if c := s.Sessions[op.Session]; c != nil {
			delete(c.Received, op.ID)
		}
	case *store.PutRetained:
		s.Retained[op.Message.Topic] = op.Message
	case *store.DeleteRetained:
		delete(s.Retained, op.Topic)
	default:
		s.advance(op)
	}
}

// advance applies what happens to one entry of a queue.
func (s *State) advance(op store.Op) {
	switch op := op.(type) {
	case *store.Sent:
		if e := s.entry(op.Session, op.Seq); e != nil {
			e.PacketID = op.ID
		}
	case *store.Released:
		if e := s.entry(op.Session, op.Seq); e != nil {
			e.Released = true
		}
	case *store.Done:
		if c := s.Sessions[op.Session]; c != nil {
			if i, ok := c.find(op.Seq); ok {
				c.Queue = slices.Delete(c.Queue, i, i+1)
			}
		}
	default:
		panic(fmt.Sprintf("BUG: %T is no operation", op))
	}
}

func (s *State) publish(p *store.Publish) {
	for _, d := range p.To {
		c := s.Sessions[d.Session]
		if c == nil {
			continue
		}
		i, taken := c.find(d.Seq)
		if taken {
			s.broken = append(s.broken,
				fmt.Sprintf("session %d gets two entries with Seq %d\n", d.Session, d.Seq))
			continue
		}
		c.Queue = slices.Insert(c.Queue, i, &Entry{Delivery: d, Message: p.Message})
	}
	if p.Retain {
		s.Retained[p.Message.Topic] = p.Message
	}
	if p.FromSession != 0 {
		s.received(p.FromSession, p.FromID)
	}
}

func (s *State) received(session uint64, id uint16) {
	if c := s.Sessions[session]; c != nil {
		c.Received[id] = true
	}
}

func (s *State) entry(session, seq uint64) *Entry {
	if c := s.Sessions[session]; c != nil {
		if i, ok := c.find(seq); ok {
			return c.Queue[i]
		}
	}
	return nil
}

// find returns the position of the entry, or the position where it would be.
func (c *Session) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(c.Queue, seq, func(e *Entry, seq uint64) int {
		return cmp.Compare(e.Seq, seq)
	})
}

// Clone returns a copy of the state that can be changed independently. Messages are shared.
func (s *State) Clone() *State {
	c := &State{Sessions: make(map[uint64]*Session, len(s.Sessions)),
		Retained: maps.Clone(s.Retained)}
	for id, old := range s.Sessions {
		n := &Session{
			PutSession: old.PutSession, Subscriptions: maps.Clone(old.Subscriptions),
			Queue: make([]*Entry, len(old.Queue)), Received: maps.Clone(old.Received),
		}
		for i, e := range old.Queue {
			e := *e
			n.Queue[i] = &e
		}
		c.Sessions[id] = n
	}
	return c
}

// Equal says whether two states are the same. A nil slice equals an empty one. A state in which two
// entries of one queue got the same Seq equals no state.
func (s *State) Equal(t *State) bool {
	return len(s.broken) == 0 && len(t.broken) == 0 && maps.EqualFunc(s.Sessions, t.Sessions,
		(*Session).equal) && maps.EqualFunc(s.Retained, t.Retained, equalMessages)
}

func (c *Session) equal(d *Session) bool {
	a, b := c.PutSession, d.PutSession
	wills := (a.Will == nil) == (b.Will == nil)
	if wills && a.Will != nil {
		wills = a.Will.Delay == b.Will.Delay && a.Will.At == b.Will.At &&
			equalPackets(&a.Will.Message, &b.Will.Message)
	}
	a.Will, b.Will = nil, nil
	return wills && a == b && maps.Equal(c.Received, d.Received) &&
		maps.EqualFunc(c.Subscriptions, d.Subscriptions, func(x, y *store.PutSubscription) bool {
			return *x == *y
		}) &&
		slices.EqualFunc(c.Queue, d.Queue, (*Entry).equal)
}

func (e *Entry) equal(f *Entry) bool {
	return e.Session == f.Session && e.Seq == f.Seq && e.QoS == f.QoS && e.Retain == f.Retain &&
		e.Group == f.Group &&
		slices.Equal(e.IDs, f.IDs) && e.PacketID == f.PacketID && e.Released == f.Released &&
		equalMessages(e.Message, f.Message)
}

func equalMessages(m, n *store.Message) bool {
	return m == n || m.Expires == n.Expires && m.From == n.From &&
		equalPackets(&m.Message, &n.Message)
}

func equalPackets(m, n *packets.Message) bool {
	return m.Topic == n.Topic && m.QoS == n.QoS && m.Retain == n.Retain &&
		bytes.Equal(m.Payload, n.Payload) && bytes.Equal(m.Properties, n.Properties)
}

// Diff describes in a few lines how got differs from s, the wanted state. It returns "" if they are
// equal.
func (s *State) Diff(got *State) string {
	if s.Equal(got) {
		return ""
	}
	var b strings.Builder
	for _, rule := range slices.Concat(s.broken, got.broken) {
		b.WriteString(rule)
	}
	w, g := s.facts(), got.facts()
	keys := slices.AppendSeq(slices.Collect(maps.Keys(w)), func(yield func(string) bool) {
		for k := range g {
			if _, ok := w[k]; !ok && !yield(k) {
				return
			}
		}
	})
	slices.Sort(keys)
	n := 0
	for _, k := range keys {
		want, wanted := w[k]
		have, there := g[k]
		switch {
		case wanted && there && want == have:
			continue
		case n >= 12:
		case !there:
			fmt.Fprintf(&b, "%s is missing: %s\n", k, want)
		case !wanted:
			fmt.Fprintf(&b, "%s should not be there: %s\n", k, have)
		default:
			fmt.Fprintf(&b, "%s\n   want %s\n    got %s\n", k, want, have)
		}
		n++
	}
	if n > 12 {
		fmt.Fprintf(&b, "and %d more differences\n", n-12)
	}
	return b.String()
}

// facts flattens the state into a list of facts.
func (s *State) facts() map[string]string {
	f := make(map[string]string)
	seen := make(map[*store.Message]string)
	message := func(m *store.Message) string {
		if _, ok := seen[m]; !ok {
			seen[m] = fmt.Sprintf("from %q expires %d %s", m.From, m.Expires, describe(&m.Message))
		}
		return seen[m]
	}
	for topic, m := range s.Retained {
		f[fmt.Sprintf("retained %.40q", topic)] = message(m)
	}
	for id, c := range s.Sessions {
		name := fmt.Sprintf("session %d", id)
		will := "none"
		if w := c.Will; w != nil {
			will = fmt.Sprintf("delay %d at %d %s", w.Delay, w.At, describe(&w.Message))
		}
		f[name] = fmt.Sprintf(
			"client %.40q principal %.40q user %.40q named %t mount %.40q expiry %d at %d, will %s",
			c.ClientID, c.Principal, c.Username, c.Named, c.Mount, c.Expiry, c.ExpiresAt, will)
		for filter, sub := range c.Subscriptions {
			f[fmt.Sprintf("%s, subscription %.40q of %d bytes", name, filter,
				len(filter))] = fmt.Sprintf(
				"QoS %d no local %t retain as published %t handling %d id %d",
				sub.QoS, sub.NoLocal, sub.RetainAsPublished, sub.RetainHandling, sub.ID)
		}
		for _, e := range c.Queue {
			f[fmt.Sprintf("%s, queue entry %d", name,
				e.Seq)] = fmt.Sprintf(
				"QoS %d retain %t ids %d group %.40q packet id %d released %t, %s",
				e.QoS, e.Retain, e.IDs, e.Group, e.PacketID, e.Released, message(e.Message))
		}
		for id := range c.Received {
			f[fmt.Sprintf("%s, received %d", name, id)] = "yes"
		}
	}
	return f
}

func describe(m *packets.Message) string {
	sum := sha256.Sum256(slices.Concat([]byte(m.Topic), []byte{0}, m.Properties, []byte{0},
		m.Payload))
	return fmt.Sprintf("topic %.40q QoS %d retain %t properties %x payload of %d bytes %.24q (%x)",
		m.Topic, m.QoS, m.Retain, m.Properties[:min(len(m.Properties), 24)], len(m.Payload),
		m.Payload, sum[:3])
}
