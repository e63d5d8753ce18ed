package subs

import (
	"bytes"
	"math/bits"
	"slices"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file finds the subscriptions that a Topic Name matches.

// Matches is who gets the messages of one topic. Its memory is reused by the next match, except
// for the members of groups. The zero value is ready to use.
type Matches struct {
	Subs   []Match       // at most one for each subscriber, in no order
	IDs    []uint32      // Subscription Identifiers of all Subs
	Groups []SharedMatch // the shared subscriptions, one for each Share Name and filter

	nodes       []uint32 // those that match and have subscribers
	front, next []uint32 // the nodes that the levels so far lead to
	table       []uint64 // hash table of subs: its generation and the index
	gen         uint32   // slots of other generations are empty
	raw         []rawID
}

// A Match is a subscriber with what its matching subscriptions come to (3.3.4): the highest QoS,
// Retain As Published if one of them asks for it, and the Subscription Identifier of each that
// has one.
type Match struct {
	Sub               uint32
	ids, nids         uint32 // Matches.IDs[ids:ids+nids]
	QoS               packets.QoS
	RetainAsPublished bool
}

// IDs returns the Subscription Identifiers of x. all is Matches.IDs, or a copy of it.
func (x *Match) IDs(all []uint32) []uint32 { return all[x.ids : x.ids+x.nids] }

// A SharedMatch is a group that the topic matches, and its members. They are never modified.
type SharedMatch struct {
	Group   *Group
	Members []Member
}

// A Member is a subscriber of a shared subscription.
type Member struct {
	Sub uint32
	Options
}

// Bytes is what m takes.
func (m *Matches) Bytes() int {
	return cap(m.Subs)*20 + cap(m.Groups)*32 + 8*cap(m.table) + 8*cap(m.raw) +
		4*(cap(m.IDs)+cap(m.nodes)+cap(m.front)+cap(m.next))
}

// A rawID is an identifier before those of one match are put together.
type rawID struct{ match, id uint32 }

// Match resets m and fills it with the subscriptions that match topic, a valid Topic Name. from
// is the publisher: its subscriptions with No Local are left out [MQTT-3.8.3-3]; 0 is nobody. It
// does not allocate once m has grown and the members of the groups have not changed since the
// last match.
func (t *Tree) Match(topic []byte, from uint32, m *Matches) {
	m.Subs, m.IDs, m.nodes, m.raw = m.Subs[:0], m.IDs[:0], m.nodes[:0], m.raw[:0]
	clear(m.Groups)
	m.Groups = m.Groups[:0]
	if len(topic) == 0 {
		return
	}
	mu := t.reader(from)
	mu.RLock()
	t.reach(topic, m)
	t.collect(from, m)
	mu.RUnlock()
}

// A Found is one subscription that matches a topic.
type Found struct {
	Sub    uint32
	Group  *Group // nil: it is not shared
	Filter string // without the Share Name
	Options
}

// Find returns the subscriptions that match topic, a valid Topic Name: at most so many, and more
// says that there are others. It allocates, and is for people who ask; Match is for messages.
// Changes of the tree wait for it.
func (t *Tree) Find(topic []byte, most int) (all []Found, more bool) {
	var m Matches
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	t.reach(topic, &m)
	for _, i := range m.nodes {
		n := t.nodes.at(i)
		filter := string(t.appendFilter(nil, i))
		for k := n.list.first; k != 0; k = t.entries.at(k).next {
			if len(all) == most {
				return all, true
			}
			e := t.entries.at(k)
			all = append(all, Found{e.sub, nil, filter, e.options()})
		}
		for g := t.groupAt(n.groups); g != nil; g = g.after {
			for _, x := range t.members(g) {
				if len(all) == most {
					return all, true
				}
				all = append(all, Found{x.Sub, g, filter, x.Options})
			}
		}
	}
	return all, false
}

// Members returns how many members g has.
func (t *Tree) Members(g *Group) int {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	return int(g.list.n)
}

// reach finds the nodes with subscribers that topic matches.
func (t *Tree) reach(topic []byte, m *Matches) {
	if i := t.path(exactRoot, topic, t.pieceHash(topic)); i != 0 {
		t.reached(i, m)
	}
	front, next := append(m.front[:0], wildRoot), m.next[:0]
	wild := topic[0] != '$' // a wildcard at the beginning does not match those [MQTT-4.7.2-1]
	for more := true; more && len(front) > 0; {
		level := topic
		i := bytes.IndexByte(topic, '/')
		if more = i >= 0; more {
			level, topic = topic[:i], topic[i+1:]
		}
		var h uint64
		hashed := false
		next = next[:0]
		for _, i := range front {
			n := t.nodes.at(i)
			if n.hash != 0 && wild {
				t.reached(n.hash, m)
			}
			if n.plus != 0 && wild {
				next = append(next, n.plus)
			}
			if n.kids == 0 {
				continue
			}
			if !hashed {
				h, hashed = t.pieceHash(level), true
			}
			if c := t.path(i, level, h); c != 0 {
				next = append(next, c)
			}
		}
		front, next = next, front
		wild = true
	}
	for _, i := range front {
		t.reached(i, m)
		if h := t.nodes.at(i).hash; h != 0 { // a/# matches a as well (4.7.1.2)
			t.reached(h, m)
		}
	}
	m.front, m.next = front, next
}

// reached notes that the filter of node i matches.
func (t *Tree) reached(i uint32, m *Matches) {
	if n := t.nodes.at(i); n.list.n > 0 || n.groups != 0 {
		m.nodes = append(m.nodes, i)
	}
}

// collect fills in what m.nodes hold.
func (t *Tree) collect(from uint32, m *Matches) {
	lists, most := 0, 0
	for _, i := range m.nodes {
		n := t.nodes.at(i)
		for g := t.groupAt(n.groups); g != nil; g = g.after {
			m.Groups = append(m.Groups, SharedMatch{g, t.members(g)})
		}
		if n.list.n > 0 {
			lists++
			most += int(n.list.n)
		}
	}
	if most > cap(m.Subs) {
		m.Subs = slices.Grow(m.Subs, most)
	}
	overlap := lists > 1 || t.twins > 0
	if overlap {
		m.newTable(most)
	}
	for _, i := range m.nodes {
		for k := t.nodes.at(i).list.first; k != 0; {
			e := t.entries.at(k)
			k = e.next
			if e.sub == from && e.opts&optNoLocal != 0 {
				continue
			}
			at := len(m.Subs)
			if overlap {
				at = m.place(e.sub)
			}
			if at == len(m.Subs) {
				m.Subs = append(m.Subs, Match{Sub: e.sub})
			}
			x := &m.Subs[at]
			x.QoS = max(x.QoS, e.qos())
			x.RetainAsPublished = x.RetainAsPublished || e.opts&optRetainAsPublished != 0
			if e.id != 0 {
				x.nids++
				m.raw = append(m.raw, rawID{uint32(at), e.id})
			}
		}
	}
	m.gatherIDs()
}

// members returns the members of g, longest first. A lock of the Tree is held, for
// reading at least.
func (t *Tree) members(g *Group) []Member {
	if p := g.snapshot.Load(); p != nil {
		return *p
	}
	s := make([]Member, g.list.n)
	k := len(s)
	for i := g.list.first; i != 0; {
		e := t.entries.at(i)
		k--
		s[k] = Member{e.sub, e.options()}
		i = e.next
	}
	if t.twins > 0 {
		s = mergeTwins(s)
	}
	g.snapshot.Store(&s) // if two readers do this at once, they store the same
	return s
}

// mergeTwins makes one member of two of the same subscriber: the one of the client, with the higher
// QoS.
func mergeTwins(s []Member) []Member {
	at, out := make(map[uint32]int, len(s)), s[:0]
	for _, m := range s {
		i, twin := at[m.Sub]
		if !twin {
			at[m.Sub] = len(out)
			out = append(out, m)
			continue
		}
		qos := max(out[i].QoS, m.QoS)
		if m.By == ByClient {
			out[i] = m
		}
		out[i].QoS = qos
	}
	return out
}

// newTable makes an empty hash table for up to n subscribers.
func (m *Matches) newTable(n int) {
	if len(m.table) < 2*n {
		m.table, m.gen = make([]uint64, 1<<bits.Len(uint(2*n-1))), 0
	}
	if m.gen++; m.gen == 0 {
		clear(m.table)
		m.gen = 1
	}
}

// place returns the index of sub in m.Subs; it is the next one if sub is not there yet.
func (m *Matches) place(sub uint32) int {
	mask := uint32(len(m.table) - 1)
	for i := sub * 0x9E3779B1 >> 7; ; i++ {
		s := &m.table[i&mask]
		if uint32(*s>>32) != m.gen {
			*s = uint64(m.gen)<<32 | uint64(len(m.Subs))
			return len(m.Subs)
		}
		if at := uint32(*s); m.Subs[at].Sub == sub {
			return int(at)
		}
	}
}

// gatherIDs puts the identifiers of each match side by side.
func (m *Matches) gatherIDs() {
	if len(m.raw) == 0 {
		return
	}
	at := uint32(0)
	for i := range m.Subs {
		x := &m.Subs[i]
		x.ids = at
		at += x.nids
		x.nids = 0
	}
	m.IDs = slices.Grow(m.IDs, int(at))[:at]
	for _, r := range m.raw {
		x := &m.Subs[r.match]
		m.IDs[x.ids+x.nids] = r.id
		x.nids++
	}
}
