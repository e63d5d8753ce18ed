package subs

import (
	"bytes"
	"cmp"
	"hash/maphash"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is how the subscription tree lies in memory: nodes and entries in arenas, addressed
// by number, and tables from a parent and a label to the child, and from a list and a subscriber
// to the entry. The caller holds the locks of the tree.

// A node is the end of a filter or a step on the way to one. It fills a cache line.
//
// A label longer than labelMax goes on in a child of kind nodeRest.
type node struct {
	parent uint32
	plus   uint32 // child for +, 0: none
	hash   uint32 // child for #, 0: none
	kids   uint32 // how many other children there are; the edge table knows them
	groups uint32 // number of the first group, 0: none
	list   subList
	size   uint8 // of label
	kind   nodeKind
	label  [labelMax]byte
}

const labelMax = 34

type nodeKind uint8

const (
	nodeWhole nodeKind = iota // a level, or the whole of a filter without wildcards
	nodeRest                  // goes on with the label of the parent
	nodePlus
	nodeHash
)

// The two places where filters begin: those without wildcards are labels below exactRoot, which
// is no node, and the others begin at wildRoot.
const (
	exactRoot = 0
	wildRoot  = 1
)

// pieceHash hashes as much of a label as one node holds.
func (t *Tree) pieceHash(label []byte) uint64 {
	return maphash.Bytes(t.seed, label[:min(len(label), labelMax)])
}

// path returns the node that label leads to from parent, or 0. h is the pieceHash of label.
func (t *Tree) path(parent uint32, label []byte, h uint64) uint32 {
	kind := nodeWhole
	for len(label) > labelMax {
		if parent = t.child(parent, kind, label[:labelMax],
			edgeHash(parent, kind, h)); parent == 0 {
			return 0
		}
		label, kind = label[labelMax:], nodeRest
		h = t.pieceHash(label)
	}
	return t.child(parent, kind, label, edgeHash(parent, kind, h))
}

// child returns the child of parent with that label, or 0.
func (t *Tree) child(parent uint32, kind nodeKind, label []byte, x uint32) uint32 {
	s := t.edges.segment(x)
	for i := slotOf(x); s.slots[i] != 0; {
		if edge := s.slots[i]; uint32(edge>>32) == x {
			n := t.nodes.at(uint32(edge))
			if n.parent == parent && n.kind == kind && string(n.label[:n.size]) == string(label) {
				return uint32(edge)
			}
		}
		if i++; i == segmentSlots {
			i = 0
		}
	}
	return 0
}

// ensurePath returns the node that label leads to from parent, making what is missing.
func (t *Tree) ensurePath(parent uint32, label []byte) uint32 {
	for kind := nodeWhole; ; kind = nodeRest {
		piece := label[:min(len(label), labelMax)]
		x := edgeHash(parent, kind, maphash.Bytes(t.seed, piece))
		i := t.child(parent, kind, piece, x)
		if i == 0 {
			i = t.newNode(parent, kind, piece)
			t.edges.add(x, i)
			if parent != exactRoot {
				t.nodes.at(parent).kids++
			}
		}
		if parent, label = i, label[len(piece):]; len(label) == 0 {
			return parent
		}
	}
}

func (t *Tree) newNode(parent uint32, kind nodeKind, label []byte) uint32 {
	i := t.nodes.take()
	n := t.nodes.at(i)
	n.parent, n.kind, n.size = parent, kind, uint8(copy(n.label[:], label))
	return i
}

// ensure returns the node of filter, making what is missing.
func (t *Tree) ensure(filter []byte) uint32 {
	if isExact(filter) {
		return t.ensurePath(exactRoot, filter)
	}
	i := uint32(wildRoot)
	for more := true; more; {
		var level []byte
		level, filter, more = bytes.Cut(filter, levelSeparator)
		switch string(level) {
		case "+":
			if t.nodes.at(i).plus == 0 {
				t.nodes.at(i).plus = t.newNode(i, nodePlus, level)
			}
			i = t.nodes.at(i).plus
		case "#":
			if t.nodes.at(i).hash == 0 {
				t.nodes.at(i).hash = t.newNode(i, nodeHash, level)
			}
			i = t.nodes.at(i).hash
		default:
			i = t.ensurePath(i, level)
		}
	}
	return i
}

// lookup returns where the subscriptions to filter belong, 0 if there is no such place.
func (t *Tree) lookup(group string, filter []byte) owner {
	i := uint32(wildRoot)
	if isExact(filter) {
		i = t.path(exactRoot, filter, t.pieceHash(filter))
	} else {
		for more := true; more && i != 0; {
			var level []byte
			level, filter, more = bytes.Cut(filter, levelSeparator)
			switch string(level) {
			case "+":
				i = t.nodes.at(i).plus
			case "#":
				i = t.nodes.at(i).hash
			default:
				i = t.path(i, level, t.pieceHash(level))
			}
		}
	}
	if i == 0 || group == "" {
		return nodeOwner(i)
	}
	if g := t.named(i, group); g != nil {
		return g.owner()
	}
	return 0
}

// appendFilter appends the filter of node i.
func (t *Tree) appendFilter(dst []byte, i uint32) []byte {
	size := 0
	for j := i; j > wildRoot; j = t.nodes.at(j).parent {
		n := t.nodes.at(j)
		size += int(n.size)
		if n.kind != nodeRest && n.parent > wildRoot {
			size++
		}
	}
	at := len(dst) + size
	dst = append(dst, make([]byte, size)...)
	for i > wildRoot {
		n := t.nodes.at(i)
		at -= int(n.size)
		copy(dst[at:], n.label[:n.size])
		if n.kind != nodeRest && n.parent > wildRoot {
			at--
			dst[at] = '/'
		}
		i = n.parent
	}
	return dst
}

// prune frees node i if nothing needs it, and then its parent likewise.
func (t *Tree) prune(i uint32) {
	for i > wildRoot {
		n := t.nodes.at(i)
		if n.list.n > 0 || n.groups != 0 || n.kids > 0 || n.plus != 0 || n.hash != 0 {
			return
		}
		up := n.parent
		switch n.kind {
		case nodePlus:
			t.nodes.at(up).plus = 0
		case nodeHash:
			t.nodes.at(up).hash = 0
		default:
			t.edges.remove(edgeHash(up, n.kind, maphash.Bytes(t.seed, n.label[:n.size])), i)
			if up != exactRoot {
				t.nodes.at(up).kids--
			}
		}
		t.nodes.give(i)
		i = up
	}
}

// A subList is the subscribers of a node or a group: the first of a chain of entries, and how many.
type subList struct{ first, n uint32 }

// listWalk is how many entries are walked to find one; those of longer lists are in Tree.index.
const listWalk = 8

// An owner is a node or a group: whose list an entry is in.
type owner uint32

func nodeOwner(i uint32) owner { return owner(i << 1) }
func (g *Group) owner() owner  { return owner(g.number<<1 | 1) }

// indexHash is the hash in Tree.index of the entry of sub in the list of ow.
func (t *Tree) indexHash(ow owner, sub uint32) uint32 {
	x := (uint64(ow)<<32 | uint64(sub)) ^ t.salt
	x = (x ^ x>>31) * 0x9E3779B97F4A7C15
	x = (x ^ x>>29) * 0xBF58476D1CE4E5B9
	return uint32(x >> 32)
}

// ownerGroup returns the group, nil if o is a node.
func (t *Tree) ownerGroup(o owner) *Group {
	if o&1 == 0 {
		return nil
	}
	return *t.groups.at(uint32(o >> 1))
}

// ownerNode returns the node of the filter.
func (t *Tree) ownerNode(o owner) uint32 {
	if g := t.ownerGroup(o); g != nil {
		return g.node
	}
	return uint32(o >> 1)
}

func (t *Tree) ownerList(o owner) *subList {
	if g := t.ownerGroup(o); g != nil {
		return &g.list
	}
	return &t.nodes.at(uint32(o >> 1)).list
}

// A subEntry is one subscription.
type subEntry struct {
	sub          uint32
	owner        owner
	next, prev   uint32 // of the same list
	newer, older uint32 // of the same subscriber, as a ring
	id           uint32 // Subscription Identifier
	opts         uint32 // the bits below, and its number
}

// The bits of subEntry.opts.
const (
	optQoS               = 3
	optNoLocal           = 1 << 2
	optRetainAsPublished = 1 << 3
	optRetainHandling    = 4 // shift, of two bits
	optServer            = 1 << 6
	optNumber            = 7 // shift, of all other bits
)

// number is larger than those of the older entries of the same subscriber: see compareNumbers.
func (e *subEntry) number() uint32 { return e.opts >> optNumber }

// compareNumbers orders the numbers of two entries. They have 25 bits and go round, so that it is
// wrong about two with 16 million others between them.
func compareNumbers(a, b uint32) int { return cmp.Compare(int32((a-b)<<optNumber), 0) }

func (e *subEntry) qos() packets.QoS { return packets.QoS(e.opts & optQoS) }

func (e *subEntry) by() Maker {
	if e.opts&optServer != 0 {
		return ByServer
	}
	return ByClient
}

func (e *subEntry) options() Options {
	return Options{
		QoS:               e.qos(),
		NoLocal:           e.opts&optNoLocal != 0,
		RetainAsPublished: e.opts&optRetainAsPublished != 0,
		RetainHandling:    byte(e.opts>>optRetainHandling) & 3,
		By:                e.by(),
		ID:                e.id,
	}
}

func (e *subEntry) set(o Options) {
	e.opts = e.number()<<optNumber | uint32(o.QoS) | uint32(o.RetainHandling)<<optRetainHandling
	if o.NoLocal {
		e.opts |= optNoLocal
	}
	if o.RetainAsPublished {
		e.opts |= optRetainAsPublished
	}
	if o.By == ByServer {
		e.opts |= optServer
	}
	e.id = o.ID
}

// A subscriber is the ring of its entries.
type subscriber struct{ newest, n uint32 }

// find returns the entry of sub, made by by, in the list of ow, or 0. ow may be 0.
func (t *Tree) find(ow owner, sub uint32, by Maker) uint32 {
	if ow == 0 {
		return 0
	}
	l := t.ownerList(ow)
	if l.n > listWalk {
		return t.index.find(t.indexHash(ow, sub), func(i uint32) bool {
			e := t.entries.at(i)
			return e.sub == sub && e.owner == ow && e.by() == by
		})
	}
	i := l.first
	for i != 0 && (t.entries.at(i).sub != sub || t.entries.at(i).by() != by) {
		i = t.entries.at(i).next
	}
	return i
}

// countServed counts entry i, if the server made it or another one beside it. sign is positive for
// a new entry, and negative for one that goes.
func (t *Tree) countServed(i uint32, sign int) {
	e := t.entries.at(i)
	by := e.by()
	if by == ByServer {
		t.served += sign
	} else if t.served == 0 {
		return
	}
	if t.find(e.owner, e.sub, ByServer-by) != 0 {
		t.twins += sign
	}
}

// insert makes an entry and returns its number.
func (t *Tree) insert(ow owner, sub uint32, o Options) uint32 {
	i := t.entries.take()
	e := t.entries.at(i)
	e.sub, e.owner = sub, ow
	e.set(o)
	t.countServed(i, 1)

	if t.ownerGroup(ow) != nil {
		t.other += memberCost
		t.shared++
	}
	l := t.ownerList(ow)
	if e.next = l.first; e.next != 0 {
		t.entries.at(e.next).prev = i
	}
	l.first = i
	switch l.n++; {
	case l.n == listWalk+1:
		for j := i; j != 0; j = t.entries.at(j).next {
			t.index.add(t.indexHash(ow, t.entries.at(j).sub), j)
		}
	case l.n > listWalk:
		t.index.add(t.indexHash(ow, sub), i)
	}

	s := t.subs.at(sub)
	if s.n == 0 {
		e.newer, e.older = i, i
	} else {
		last := t.entries.at(s.newest)
		e.older, e.newer = s.newest, last.newer
		e.opts |= (last.number() + 1) << optNumber
		t.entries.at(last.newer).older = i
		last.newer = i
	}
	s.newest = i
	s.n++
	return i
}

// delete removes entry i, with the group and the nodes that nothing else needs.
func (t *Tree) delete(i uint32) {
	t.countServed(i, -1)
	e := t.entries.at(i)
	ow, sub := e.owner, e.sub
	if t.ownerGroup(ow) != nil {
		t.other -= memberCost
		t.shared--
	}
	l := t.ownerList(ow)
	if e.next != 0 {
		t.entries.at(e.next).prev = e.prev
	}
	if e.prev != 0 {
		t.entries.at(e.prev).next = e.next
	} else {
		l.first = e.next
	}
	if l.n > listWalk {
		t.index.remove(t.indexHash(ow, sub), i)
	}
	if l.n--; l.n == listWalk {
		for j := l.first; j != 0; j = t.entries.at(j).next {
			t.index.remove(t.indexHash(ow, t.entries.at(j).sub), j)
		}
	}

	s := t.subs.at(sub)
	t.entries.at(e.newer).older = e.older
	t.entries.at(e.older).newer = e.newer
	if s.newest == i {
		s.newest = e.older
	}
	if s.n--; s.n == 0 {
		s.newest = 0
	}
	t.entries.give(i)

	t.drop(ow)
}

// edgeHash mixes parent and kind into the hash of a piece. Neither is spread well by itself, but
// a piece under many parents is.
func edgeHash(parent uint32, kind nodeKind, h uint64) uint32 {
	return uint32((h + (uint64(parent)<<1|uint64(kind))*0x9E3779B97F4A7C15) >> 32)
}
