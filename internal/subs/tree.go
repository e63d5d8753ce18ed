// Package subs is the subscription tree: which subscribers a Topic Name goes to (4.7, 4.8.2). It is plain data that knows
// subscribers only by number.
package subs

import (
	"bytes"
	"hash/maphash"
	"math/bits"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Topic Filter without wildcards is one node of its own, found by hashing the whole Topic Name. All others hang in a tree
// with a node for each level. Matching walks that tree level by level with the set of nodes reached so far, so its work is linear
// in the bytes of the topic and the number of nodes that match. How the tree lies in memory is in memory.go.

// Options are the options of one subscription as the tree keeps them (3.8.3.1).
type Options struct {
	QoS               packets.QoS
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
	ID                uint32 // Subscription Identifier, 0: none
}

// A Tree holds the subscriptions of all Sessions. A subscriber is a small number, kept from 1 up and reused by who gives them out;
// 0 is nobody. All methods may be called from any goroutine. The locks of a tree are leaves: nothing is called
// while one is held.
//
// Memory that removed subscriptions leave is kept for later ones; it is given back when the tree becomes empty.
type Tree struct {
	seed maphash.Seed // immutable

	// A reader holds one of the locks, a writer all of them, taken in order. Readers on different processors then
	// do not fight over one cache line.
	locks []paddedLock

	// Guarded by locks.
	nodes   arena[node]
	edges   edgeTable
	entries arena[subEntry]
	indexed map[uint64]uint32 // owner and subscriber -> entry, for lists that are too long to walk
	groups  []*Group          // by number; [0] is nil, as are free ones
	free    []uint32          // free numbers of groups
	byName  map[groupKey]*Group
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
func New() *Tree {
	n := min(runtime.GOMAXPROCS(0), 8)
	t := &Tree{seed: maphash.MakeSeed(), locks: make([]paddedLock, 1<<bits.Len(uint(n-1)))}
	t.reset()
	return t
}

func (t *Tree) lock() {
	for i := range t.locks {
		t.locks[i].Lock()
	}
}

func (t *Tree) unlock() {
	for i := range t.locks {
		t.locks[i].Unlock()
	}
}

// reader returns the lock that the reader number n takes.
func (t *Tree) reader(n uint32) *sync.RWMutex {
	return &t.locks[int(n)&(len(t.locks)-1)].RWMutex
}

// Add makes or replaces the subscription of sub to filter, which is valid; with a group it is a shared subscription to that
// filter. It returns the options that were replaced, if the subscription existed.
func (t *Tree) Add(sub uint32, group, filter string, o Options) (old Options, existed bool) {
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

// Remove ends one subscription and says whether there was one.
func (t *Tree) Remove(sub uint32, group, filter string) (existed bool) {
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

// RemoveAll ends all subscriptions of sub, those that are added meanwhile included, and says how many.
func (t *Tree) RemoveAll(sub uint32) (n int) {
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

// Get returns the options of one subscription.
func (t *Tree) Get(sub uint32, group, filter string) (o Options, ok bool) {
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

// Each calls yield for the subscriptions that sub had when each was called, oldest first, until yield returns false. Replacing a
// subscription does not change its place. yield may call the tree.
func (t *Tree) Each(sub uint32, yield func(group, filter string, o Options) bool) {
	type subscription struct {
		group, filter string
		Options
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
			s := subscription{Options: e.options()}
			if g := t.ownerGroup(e.owner); g != nil {
				s.group = g.Name
			}
			buf = t.appendFilter(buf[:0], t.ownerNode(e.owner))
			s.filter = string(buf)
			all = append(all, s)
		}
	}
	mu.RUnlock()
	for _, s := range all {
		if !yield(s.group, s.filter, s.Options) {
			return
		}
	}
}

// Count returns how many subscriptions sub has.
func (t *Tree) Count(sub uint32) int {
	mu := t.reader(sub)
	mu.RLock()
	defer mu.RUnlock()
	if int(sub) >= len(t.subs) {
		return 0
	}
	return int(t.subs[sub].n)
}

// Len returns how many subscriptions there are.
func (t *Tree) Len() int {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	return t.total
}

// version returns a number that grows whenever a subscription that matches topic is added, replaced or removed, and now and then
// when another one is. So what match found may be kept for as long as version is what it was before that match:
//
//	v := t.version(topic)
//	t.Match(topic, from, m) // good while t.version(topic) == v
//
// The order matters. A writer counts its change up while it holds the locks. Who sees the new version and then Matches
// has to wait for that writer, and finds the change; who sees the old version and finds the change nevertheless
// has only one more miss to come. (To count up before taking the locks would be wrong: a reader could get the new
// version and the old subscriptions.) The three counters are read one after the other, but none ever goes down, so that two
// equal sums mean that none has moved between the readings. By the time that add or remove returns, the version has grown.
func (t *Tree) version(topic []byte) uint64 { return t.Watch(topic).Version() }

// A Watch is the counters that make up the version of one topic, for those who ask for it often.
type Watch struct{ exact, level, anywhere *atomic.Uint64 }

func (w Watch) Version() uint64 { return w.exact.Load() + w.level.Load() + w.anywhere.Load() }

func (t *Tree) Watch(topic []byte) Watch {
	first := topic
	if i := bytes.IndexByte(topic, '/'); i >= 0 {
		first = topic[:i]
	}
	return Watch{t.exactVersion(topic), t.levelVersion(first), &t.anywhere}
}

// exactVersion counts the changes of a filter without wildcards.
func (t *Tree) exactVersion(filter []byte) *atomic.Uint64 {
	return &t.versions[maphash.Bytes(t.seed, filter)%versionSlots]
}

// levelVersion counts the changes of filters with wildcards and this first level.
func (t *Tree) levelVersion(first []byte) *atomic.Uint64 {
	return &t.versions[maphash.Bytes(t.seed, first)>>32%versionSlots]
}

// changed makes what has been cached for the topics that filter matches outdated. All locks are held.
func (t *Tree) changed(ow owner, filter []byte) {
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

// A Group is one shared subscription: a Share Name and a filter (4.8.2). It lives as long as it has a member.
type Group struct {
	Name     string
	Filter   string                   // as a client writes it
	Next     atomic.Uint32            // for who chooses the members in turn
	snapshot atomic.Pointer[[]Member] // nil: to be made again

	// Guarded by the locks of the tree.
	number        uint32 // in Tree.groups
	node          uint32 // of the filter
	list          subList
	before, after *Group // of the same node
}

// ensureGroup returns the group of that Share Name at node n, a new one if there is none.
func (t *Tree) ensureGroup(n uint32, name string) *Group {
	g := t.byName[groupKey{n, name}]
	if g != nil {
		return g
	}
	g = &Group{Name: strings.Clone(name), node: n}
	g.Filter = FullFilter(g.Name, string(t.appendFilter(nil, n)))
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
	t.byName[groupKey{n, g.Name}] = g
	return g
}

// Group returns the shared subscription of that name and filter, nil if there is none.
func (t *Tree) Group(name, filter string) *Group {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	ow, _ := t.lookup(0, name, []byte(filter))
	return t.ownerGroup(ow)
}

// dropGroup removes a group that has no member left.
func (t *Tree) dropGroup(g *Group) {
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
	delete(t.byName, groupKey{g.node, g.Name})
}

// FullFilter returns the filter of a shared subscription as a client writes it, and filter itself if group is empty.
func FullFilter(group, filter string) string {
	if group == "" {
		return filter
	}
	return "$share/" + group + "/" + filter
}

type groupKey struct {
	node uint32
	name string
}
