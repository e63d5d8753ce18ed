package dunlin

import (
	"bytes"
	"hash/maphash"
	"math/bits"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the subscription tree: which subscribers a Topic Name goes to (4.7, 4.8.2). It is plain data that knows
// Sessions only by number. How it lies in memory is in topictree.go.
//
// A Topic Filter without wildcards is one node of its own, found by hashing the whole Topic Name. All others hang in a tree
// with a node for each level. Matching walks that tree level by level with the set of nodes reached so far, so its work is linear
// in the bytes of the topic and the number of nodes that match.

// subOptions are the options of one subscription as the tree keeps them (3.8.3.1).
type subOptions struct {
	qos               packets.QoS
	noLocal           bool
	retainAsPublished bool
	retainHandling    byte
	id                uint32 // Subscription Identifier, 0: none
}

// A tree holds the subscriptions of all Sessions. A subscriber is a small number, kept from 1 up and reused by who gives them out;
// 0 is nobody. All methods may be called from any goroutine. The locks of a tree are leaves: nothing is called
// while one is held.
//
// Memory that removed subscriptions leave is kept for later ones; it is given back when the tree becomes empty.
type tree struct {
	seed maphash.Seed // immutable

	// A reader holds one of the locks, a writer all of them, taken in order. Readers on different processors then
	// do not fight over one cache line.
	locks []paddedLock

	// Guarded by locks.
	nodes   arena[node]
	edges   edgeTable
	entries arena[subEntry]
	indexed map[uint64]uint32 // owner and subscriber -> entry, for lists that are too long to walk
	groups  []*group          // by number; [0] is nil, as are free ones
	free    []uint32          // free numbers of groups
	byName  map[groupKey]*group
	subs    []subscriber // by number
	total   int

	versions [versionSlots]atomic.Uint64
	anywhere atomic.Uint64 // version of the filters that begin with a wildcard
}

const versionSlots = 4096

type paddedLock struct {
	sync.RWMutex
	_ [104]byte
}

// newTree returns an empty tree.
func newTree() *tree {
	n := min(runtime.GOMAXPROCS(0), 8)
	t := &tree{seed: maphash.MakeSeed(), locks: make([]paddedLock, 1<<bits.Len(uint(n-1)))}
	t.reset()
	return t
}

func (t *tree) lock() {
	for i := range t.locks {
		t.locks[i].Lock()
	}
}

func (t *tree) unlock() {
	for i := range t.locks {
		t.locks[i].Unlock()
	}
}

// reader returns the lock that the reader number n takes.
func (t *tree) reader(n uint32) *sync.RWMutex {
	return &t.locks[int(n)&(len(t.locks)-1)].RWMutex
}

// add makes or replaces the subscription of sub to filter, which is valid; with a group it is a shared subscription to that
// filter. It returns the options that were replaced, if the subscription existed.
func (t *tree) add(sub uint32, group, filter string, o subOptions) (old subOptions, existed bool) {
	if sub == 0 {
		panic("BUG: subscriber 0")
	}
	var buf [256]byte
	b := append(buf[:0], filter...)
	t.lock()
	defer t.unlock()
	n := t.ensure(b)
	ow := nodeOwner(n)
	if group != "" {
		ow = t.ensureGroup(n, group).owner()
	}
	if i := t.find(ow, sub); i != 0 {
		e := t.entries.at(i)
		old, existed = e.options(), true
		if old == o {
			return old, true
		}
		e.set(o)
	} else {
		t.insert(ow, sub, o)
	}
	t.changed(ow, b)
	return old, existed
}

// remove ends one subscription and says whether there was one.
func (t *tree) remove(sub uint32, group, filter string) (existed bool) {
	var buf [256]byte
	b := append(buf[:0], filter...)
	t.lock()
	defer t.unlock()
	ow, i := t.lookup(sub, group, b)
	if i == 0 {
		return false
	}
	t.changed(ow, b)
	t.delete(i)
	t.shrink()
	return true
}

// removeAllBatch is how many subscriptions removeAll removes before it lets others have the locks.
const removeAllBatch = 256

// removeAll ends all subscriptions of sub, those that are added meanwhile included, and says how many.
func (t *tree) removeAll(sub uint32) (n int) {
	var buf [256]byte
	for more := true; more; {
		t.lock()
		for range removeAllBatch {
			if more = int(sub) < len(t.subs) && t.subs[sub].n > 0; !more {
				break
			}
			i := t.entries.at(t.subs[sub].newest).newer // the oldest
			ow := t.entries.at(i).owner
			t.changed(ow, t.appendFilter(buf[:0], t.ownerNode(ow)))
			t.delete(i)
			n++
		}
		t.shrink()
		t.unlock()
	}
	return n
}

// get returns the options of one subscription.
func (t *tree) get(sub uint32, group, filter string) (o subOptions, ok bool) {
	var buf [256]byte
	b := append(buf[:0], filter...)
	mu := t.reader(sub)
	mu.RLock()
	defer mu.RUnlock()
	if _, i := t.lookup(sub, group, b); i != 0 {
		return t.entries.at(i).options(), true
	}
	return o, false
}

// each calls yield for the subscriptions that sub had when each was called, oldest first, until yield returns false. Replacing a
// subscription does not change its place. yield may call the tree.
func (t *tree) each(sub uint32, yield func(group, filter string, o subOptions) bool) {
	type subscription struct {
		group, filter string
		subOptions
	}
	var all []subscription
	var buf []byte
	mu := t.reader(sub)
	mu.RLock()
	if int(sub) < len(t.subs) && t.subs[sub].n > 0 {
		all = make([]subscription, 0, t.subs[sub].n)
		i := t.subs[sub].newest
		for range t.subs[sub].n {
			i = t.entries.at(i).newer
			e := t.entries.at(i)
			s := subscription{subOptions: e.options()}
			if g := t.ownerGroup(e.owner); g != nil {
				s.group = g.name
			}
			buf = t.appendFilter(buf[:0], t.ownerNode(e.owner))
			s.filter = string(buf)
			all = append(all, s)
		}
	}
	mu.RUnlock()
	for _, s := range all {
		if !yield(s.group, s.filter, s.subOptions) {
			return
		}
	}
}

// count returns how many subscriptions sub has.
func (t *tree) count(sub uint32) int {
	mu := t.reader(sub)
	mu.RLock()
	defer mu.RUnlock()
	if int(sub) >= len(t.subs) {
		return 0
	}
	return int(t.subs[sub].n)
}

// len returns how many subscriptions there are.
func (t *tree) len() int {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	return t.total
}

// version returns a number that grows whenever a subscription that matches topic is added, replaced or removed, and now and then
// when another one is. So what match found may be kept for as long as version is what it was before that match:
//
//	v := t.version(topic)
//	t.match(topic, from, m) // good while t.version(topic) == v
//
// The order matters. A writer counts its change up while it holds the locks. Who sees the new version and then matches
// has to wait for that writer, and finds the change; who sees the old version and finds the change nevertheless
// has only one more miss to come. (To count up before taking the locks would be wrong: a reader could get the new
// version and the old subscriptions.) The three counters are read one after the other, but none ever goes down, so that two
// equal sums mean that none has moved between the readings. By the time that add or remove returns, the version has grown.
func (t *tree) version(topic []byte) uint64 { return t.watch(topic).version() }

// A watch is the counters that make up the version of one topic, for those who ask for it often.
type watch struct{ exact, level, anywhere *atomic.Uint64 }

func (w watch) version() uint64 { return w.exact.Load() + w.level.Load() + w.anywhere.Load() }

func (t *tree) watch(topic []byte) watch {
	first := topic
	if i := bytes.IndexByte(topic, '/'); i >= 0 {
		first = topic[:i]
	}
	return watch{t.exactVersion(topic), t.levelVersion(first), &t.anywhere}
}

// exactVersion counts the changes of a filter without wildcards.
func (t *tree) exactVersion(filter []byte) *atomic.Uint64 {
	return &t.versions[maphash.Bytes(t.seed, filter)%versionSlots]
}

// levelVersion counts the changes of filters with wildcards and this first level.
func (t *tree) levelVersion(first []byte) *atomic.Uint64 {
	return &t.versions[maphash.Bytes(t.seed, first)>>32%versionSlots]
}

// changed makes what has been cached for the topics that filter matches outdated. All locks are held.
func (t *tree) changed(ow owner, filter []byte) {
	if g := t.ownerGroup(ow); g != nil {
		g.snapshot.Store(nil)
	}
	if isExact(filter) {
		t.exactVersion(filter).Add(1)
		return
	}
	first, _, _ := bytes.Cut(filter, levelSeparator)
	if isExact(first) {
		t.levelVersion(first).Add(1)
	} else {
		t.anywhere.Add(1)
	}
}

var levelSeparator = []byte{'/'}

// isExact says whether filter, or one level of one, has no wildcard.
func isExact(filter []byte) bool {
	return bytes.IndexByte(filter, '+') < 0 && bytes.IndexByte(filter, '#') < 0
}

// matches is who gets the messages of one topic. Its memory is reused by the next match, except for the members of groups.
// The zero value is ready to use.
type matches struct {
	subs   []match       // at most one for each subscriber, in no order
	ids    []uint32      // Subscription Identifiers of all subs
	groups []sharedMatch // the shared subscriptions, one for each Share Name and filter

	nodes       []uint32 // those that match and have subscribers
	front, next []uint32 // the nodes that the levels so far lead to
	table       []uint64 // hash table of subs: its generation and the index
	gen         uint32   // slots of other generations are empty
	raw         []rawID
}

// A match is a subscriber with what its matching subscriptions come to (3.3.4): the highest QoS, Retain As Published if one of them
// asks for it, and the Subscription Identifier of each that has one.
type match struct {
	sub               uint32
	ids, nids         uint32 // matches.ids[ids:ids+nids]
	qos               packets.QoS
	retainAsPublished bool
}

// A sharedMatch is a group that the topic matches, and its members. They are never modified.
type sharedMatch struct {
	group   *group
	members []member
}

// A member is a subscriber of a shared subscription.
type member struct {
	sub  uint32
	opts subOptions
}

// A group is one shared subscription: a Share Name and a filter (4.8.2). It lives as long as it has a member.
type group struct {
	name     string
	filter   string                   // as a client writes it
	next     atomic.Uint32            // for who chooses the members in turn
	snapshot atomic.Pointer[[]member] // nil: to be made again

	// Guarded by the locks of the tree.
	number        uint32 // in tree.groups
	node          uint32 // of the filter
	list          subList
	before, after *group // of the same node
}

// A rawID is an identifier before those of one match are put together.
type rawID struct{ match, id uint32 }

// match resets m and fills it with the subscriptions that match topic, a valid Topic Name. from is the publisher: its
// subscriptions with No Local are left out [MQTT-3.8.3-3]; 0 is nobody. It does not allocate once m has grown and
// the members of the groups have not changed since the last match.
func (t *tree) match(topic []byte, from uint32, m *matches) {
	m.subs, m.ids, m.nodes, m.raw = m.subs[:0], m.ids[:0], m.nodes[:0], m.raw[:0]
	clear(m.groups)
	m.groups = m.groups[:0]
	if len(topic) == 0 {
		return
	}
	mu := t.reader(from)
	mu.RLock()
	t.reach(topic, m)
	t.collect(from, m)
	mu.RUnlock()
}

// reach finds the nodes with subscribers that topic matches.
func (t *tree) reach(topic []byte, m *matches) {
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
func (t *tree) reached(i uint32, m *matches) {
	if n := t.nodes.at(i); n.list.n > 0 || n.groups != 0 {
		m.nodes = append(m.nodes, i)
	}
}

// collect fills in what m.nodes hold.
func (t *tree) collect(from uint32, m *matches) {
	lists, most := 0, 0
	for _, i := range m.nodes {
		n := t.nodes.at(i)
		for g := t.groups[n.groups]; g != nil; g = g.after {
			m.groups = append(m.groups, sharedMatch{g, t.members(g)})
		}
		if n.list.n > 0 {
			lists++
			most += int(n.list.n)
		}
	}
	if most > cap(m.subs) {
		m.subs = slices.Grow(m.subs, most)
	}
	if lists > 1 {
		m.newTable(most)
	}
	for _, i := range m.nodes {
		for k := t.nodes.at(i).list.first; k != 0; {
			e := t.entries.at(k)
			k = e.next
			if e.sub == from && e.opts&optNoLocal != 0 {
				continue
			}
			at := len(m.subs)
			if lists > 1 {
				at = m.place(e.sub)
			}
			if at == len(m.subs) {
				m.subs = append(m.subs, match{sub: e.sub})
			}
			x := &m.subs[at]
			x.qos = max(x.qos, e.qos())
			x.retainAsPublished = x.retainAsPublished || e.opts&optRetainAsPublished != 0
			if e.id != 0 {
				x.nids++
				m.raw = append(m.raw, rawID{uint32(at), e.id})
			}
		}
	}
	m.gatherIDs()
}

// members returns the members of g, longest first. A lock is held, of readers at least.
func (t *tree) members(g *group) []member {
	if p := g.snapshot.Load(); p != nil {
		return *p
	}
	s := make([]member, g.list.n)
	k := len(s)
	for i := g.list.first; i != 0; {
		e := t.entries.at(i)
		k--
		s[k] = member{e.sub, e.options()}
		i = e.next
	}
	g.snapshot.Store(&s) // if two readers do this at once, they store the same
	return s
}

// newTable makes an empty hash table for up to n subscribers.
func (m *matches) newTable(n int) {
	if len(m.table) < 2*n {
		m.table, m.gen = make([]uint64, 1<<bits.Len(uint(2*n-1))), 0
	}
	if m.gen++; m.gen == 0 {
		clear(m.table)
		m.gen = 1
	}
}

// place returns the index of sub in m.subs; it is the next one if sub is not there yet.
func (m *matches) place(sub uint32) int {
	mask := uint32(len(m.table) - 1)
	for i := sub * 0x9E3779B1 >> 7; ; i++ {
		s := &m.table[i&mask]
		if uint32(*s>>32) != m.gen {
			*s = uint64(m.gen)<<32 | uint64(len(m.subs))
			return len(m.subs)
		}
		if at := uint32(*s); m.subs[at].sub == sub {
			return int(at)
		}
	}
}

// gatherIDs puts the identifiers of each match side by side.
func (m *matches) gatherIDs() {
	if len(m.raw) == 0 {
		return
	}
	at := uint32(0)
	for i := range m.subs {
		x := &m.subs[i]
		x.ids = at
		at += x.nids
		x.nids = 0
	}
	m.ids = slices.Grow(m.ids, int(at))[:at]
	for _, r := range m.raw {
		x := &m.subs[r.match]
		m.ids[x.ids+x.nids] = r.id
		x.nids++
	}
}

// ensureGroup returns the group of that Share Name at node n, a new one if there is none.
func (t *tree) ensureGroup(n uint32, name string) *group {
	g := t.byName[groupKey{n, name}]
	if g != nil {
		return g
	}
	g = &group{name: strings.Clone(name), node: n}
	g.filter = fullFilter(g.name, string(t.appendFilter(nil, n)))
	if k := len(t.free); k > 0 {
		g.number = t.free[k-1]
		t.free = t.free[:k-1]
		t.groups[g.number] = g
	} else {
		g.number = uint32(len(t.groups))
		t.groups = append(t.groups, g)
	}
	nd := t.nodes.at(n)
	if g.after = t.groups[nd.groups]; g.after != nil {
		g.after.before = g
	}
	nd.groups = g.number
	t.byName[groupKey{n, g.name}] = g
	return g
}

// group returns the shared subscription of that name and filter, nil if there is none.
func (t *tree) group(name, filter string) *group {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	ow, _ := t.lookup(0, name, []byte(filter))
	return t.ownerGroup(ow)
}

// dropGroup removes a group that has no member left.
func (t *tree) dropGroup(g *group) {
	if g.after != nil {
		g.after.before = g.before
	}
	if g.before != nil {
		g.before.after = g.after
	} else {
		t.nodes.at(g.node).groups = 0
		if g.after != nil {
			t.nodes.at(g.node).groups = g.after.number
		}
	}
	t.groups[g.number] = nil
	t.free = append(t.free, g.number)
	delete(t.byName, groupKey{g.node, g.name})
}

type groupKey struct {
	node uint32
	name string
}
