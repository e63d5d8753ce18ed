package memory

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// bus is what a Backend has of Interest, messages and calls. Engine.mu guards it, and is held in
// this file, except in the methods of cluster.Backend.
type bus struct {
	filters map[string]struct{} // the Interest of this node
	version uint64              // of filters
	changes []change            // the last ones, up to version
	telling []bool              // by node: a message with filters is on its way
	knows   []knowledge         // by node: what this node knows of the Interest of the others
	acked   []acked             // by node: what the others know
	heard   chan struct{}       // closed and replaced when acked or live changes
	inbox   []*store.Message
	calls   map[uint64]*call // of this node, which wait
	asked   []func()         // calls of Handler.Called that have to wait
	running int              // calls of Handler.Called
}

type change struct {
	filter string
	drop   bool
}

type knowledge struct {
	of      *Backend
	version uint64
	filters map[string]struct{}
}

type acked struct {
	by      *Backend
	version uint64
}

type call struct {
	name        string
	incarnation uint64
	body        []byte
	err         error
	done        chan struct{}
}

func newBus(nodes int) bus {
	return bus{
		filters: map[string]struct{}{}, telling: make([]bool, nodes), heard: make(chan struct{}),
		knows: make([]knowledge, nodes), acked: make([]acked, nodes), calls: map[uint64]*call{},
	}
}

// Interest is that of cluster.Backend.
func (b *Backend) Interest(add, drop []string) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	if b.dead {
		return
	}
	note := func(filter string, drop bool) {
		b.version++
		b.changes = append(b.changes, change{filter, drop})
	}
	for _, f := range add {
		if _, ok := b.filters[f]; !ok {
			b.filters[f] = struct{}{}
			note(f, false)
		}
	}
	for _, f := range drop {
		if _, ok := b.filters[f]; ok {
			delete(b.filters, f)
			note(f, true)
		}
	}
	if n := len(b.changes) - maxChanges; n > 0 {
		b.changes = slices.Clone(b.changes[n:])
	}
	b.e.tellInterest(b.node.i)
}

// tellInterest sends the Interest of a node to those that do not know it.
func (e *Engine) tellInterest(i int) {
	b := e.nodes[i].process
	if b == nil || !e.alive(i) {
		return
	}
	for j, n := range e.nodes {
		to := n.process
		if i == j || to == nil || b.telling[j] ||
			to.knows[i].of == b && to.knows[i].version == b.version {
			continue
		}
		b.telling[j] = true
		e.fly(kindBus, [2]int{i, j}, func() { b.telling[j] = false }, func() {
			if !b.dead && !to.dead {
				to.knows[i].learn(b)
			}
		})
	}
}

// learn brings what a node knows of another one up to date.
func (k *knowledge) learn(b *Backend) {
	missed := b.version - k.version
	if k.of != b || missed > uint64(len(b.changes)) {
		*k = knowledge{of: b, version: b.version, filters: maps.Clone(b.filters)}
		return
	}
	for _, c := range b.changes[uint64(len(b.changes))-missed:] {
		if c.drop {
			delete(k.filters, c.filter)
		} else {
			k.filters[c.filter] = struct{}{}
		}
	}
	k.version = b.version
}

// matches says whether a node has Interest in a topic.
func (k *knowledge) matches(topic string) bool {
	if _, ok := k.filters[topic]; ok {
		return true
	}
	for f := range k.filters {
		if packets.MatchTopic(f, topic) {
			return true
		}
	}
	return false
}

// hearInterest waits until this node knows the Interest that the members had at the beginning, or
// for the time of a lease.
func (b *Backend) hearInterest(ctx context.Context) error {
	need := map[*member]uint64{}
	b.e.mu.Lock()
	for _, m := range b.e.members {
		if m.b != b {
			need[m] = m.b.version
		}
	}
	end := b.e.now() + cluster.Lease
	for len(need) > 0 && b.e.now() < end {
		for m, version := range need {
			k := &b.knows[m.b.node.i]
			if !m.renewed || !slices.Contains(b.e.members, m) || k.of == m.b && k.version >= version {
				delete(need, m)
			}
		}
		d := b.e.o.Delay
		b.e.mu.Unlock()
		if err := b.pause(ctx, d); err != nil {
			return err
		}
		b.e.mu.Lock()
	}
	b.e.mu.Unlock()
	return nil
}

// Synced is that of cluster.Backend.
func (b *Backend) Synced(ctx context.Context) error {
	if err := b.enter(ctx); err != nil {
		return err
	}
	version := b.version
	for {
		missing := false
		for _, m := range b.e.members {
			if a := &b.acked[m.b.node.i]; m.b != b && !m.hidden && b.sees(m) &&
				(a.by != m.b || a.version < version) {
				missing = true
				b.probe(m.b)
			}
		}
		heard, patience := b.heard, max(100*time.Millisecond, 4*b.e.o.Delay)
		b.e.mu.Unlock()
		if !missing {
			return nil
		}
		again, stop := context.WithTimeout(ctx, patience)
		err := b.wait(again, heard)
		stop()
		if err != nil && (ctx.Err() != nil || again.Err() == nil) {
			return err
		}
		if err := b.enter(ctx); err != nil {
			return err
		}
	}
}

// sees says whether a member is in the list that this node has, or will be when it has the newest.
func (b *Backend) sees(m *member) bool {
	return b.listed < b.e.listed || slices.ContainsFunc(b.live, func(n cluster.Node) bool {
		return n.Name == m.Name && n.Incarnation == m.Incarnation
	})
}

// probe asks a node what it knows of the Interest of this one.
func (b *Backend) probe(to *Backend) {
	i, j := b.node.i, to.node.i
	b.e.tellInterest(i)
	b.e.send(kindBus, i, j, func() {
		k := to.knows[i]
		if to.dead || k.of != b {
			return
		}
		b.e.send(kindBus, j, i, func() {
			if b.dead || b.acked[j].by == to && b.acked[j].version >= k.version {
				return
			}
			b.acked[j] = acked{to, k.version}
			b.hear()
		})
	})
}

// hear wakes whoever waits for acked or live.
func (b *Backend) hear() {
	close(b.heard)
	b.heard = make(chan struct{})
}

// Send is that of cluster.Backend. Engine.Dropped counts what is dropped for want of room.
func (b *Backend) Send(m *store.Message) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	if !b.ready || !b.works() {
		return
	}
	i := b.node.i
	var c *store.Message
	for j, n := range b.e.nodes {
		k := &b.knows[j]
		if i == j || k.of == nil || !k.matches(m.Topic) {
			continue
		}
		if b.e.flying[i][j] == maxWaiting {
			n.dropped++
			continue
		}
		if c == nil {
			c = copyMessage(m)
		}
		own := &store.Message{Message: c.Message, Expires: c.Expires, From: c.From}
		b.e.flying[i][j]++
		b.e.fly(kindBus, [2]int{i, j}, func() { b.e.flying[i][j]-- }, func() {
			switch to := n.process; {
			case to == nil:
			case len(to.inbox) == maxWaiting:
				n.dropped++
			default:
				to.inbox = append(to.inbox, own)
				poke(to.messages)
			}
		})
	}
}

// tellMessages gives messages to the Handler.
func (b *Backend) tellMessages() {
	for {
		var m *store.Message
		b.e.mu.Lock()
		if b.works() && len(b.inbox) > 0 {
			m = b.inbox[0]
			b.inbox[0] = nil
			b.inbox = b.inbox[1:]
		}
		b.e.mu.Unlock()
		switch {
		case m == nil:
			if !b.idle(b.messages) {
				return
			}
		case b.h.Message != nil:
			b.h.Message(m)
		}
	}
}
