// Package subs is the subscription tree: which subscribers a Topic Name goes to (4.7, 4.8.2). It
// is plain data that knows subscribers only by number.
package subs

import (
	"bytes"
	"errors"
	"hash/maphash"
	"math"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Topic Filter without wildcards is one node of its own, found by hashing the whole Topic Name.
// All others hang in a tree with a node for each level. Matching walks that tree level by level
// with the set of nodes reached so far, so its work is linear in the bytes of the topic and the
// number of nodes that match. How the tree lies in memory is in memory.go.

// Options are the options of one subscription as the tree keeps them (3.8.3.1).
type Options struct {
	QoS               packets.QoS
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
	By                Maker
	ID                uint32 // Subscription Identifier, 0: none
}

// A Maker says who made a subscription. A subscriber can have two subscriptions to one filter, one
// of each Maker. They then count as overlapping ones: a message comes once.
type Maker byte

// The Makers.
const (
	ByClient Maker = iota
	ByServer
)

// Limits are what New is given. The zero value is no limits.
type Limits struct {
	// Overlapping is how many subscriptions of one subscriber may match one topic; 0: any number.
	Overlapping int
	// Fits says whether n bytes more may be held, Count is told that n bytes more, or less, are.
	// Both may be nil. They are called with the locks of the tree held.
	Fits  func(n int64) bool
	Count func(n int64)
}

// Why Add does not make a subscription.
var (
	ErrOverlapping = errors.New("too many of the subscriptions can match the same topic")
	ErrMemory      = errors.New("the subscriptions would take too much of the broker's memory")
)

// A Tree holds the subscriptions of all Sessions. A subscriber is a number that Join gives out; 0
// is nobody. All methods may be called from any goroutine. The locks of a tree are leaves.
type Tree struct {
	limits Limits       // immutable, as are the next two
	seed   maphash.Seed // of the hashes of labels
	salt   uint64       // of other hashes

	// A reader holds one of the locks, a writer all of them, taken in order. Readers on different
	// processors then do not fight over one cache line.
	locks []paddedLock

	// Guarded by locks.
	nodes   arena[node]
	edges   table // from a parent and a label to the child
	entries arena[subEntry]
	index   table // from a list that is too long to walk and a subscriber to the entry
	groups  arena[*Group]
	names   table // from a node and a Share Name to the group
	subs    arena[subscriber]
	many    map[uint32]*patterns // of subscribers with many subscriptions
	other   int64                // bytes of groups and patterns
	shared  int                  // how many subscriptions are shared
	served  int                  // how many subscriptions the server made
	twins   int                  // of how many of them the client has one, too, to the same filter
	base    int64                // bytes of the empty tree
	counted int64                // bytes that Count knows of, base included

	versions [versionSlots]atomic.Uint64
	anywhere atomic.Uint64 // version of the filters that begin with a wildcard
}

const versionSlots = 4096

type leaf struct{}

func (leaf) Rank() lock.Rank {
	return lock.Rank{Order: lock.Leaf, Name: "a lock of subs.Tree", Several: true}
}

type paddedLock struct {
	lock.RWMutex[leaf]
	_ [104]byte
}

// New returns an empty tree.
func New(l Limits) *Tree {
	n := min(runtime.GOMAXPROCS(0), 8)
	t := &Tree{
		limits: l, seed: maphash.MakeSeed(), salt: rand.Uint64(),
		locks: make([]paddedLock, 1<<bits.Len(uint(n-1))),
		edges: newTable(), index: newTable(), names: newTable(), many: make(map[uint32]*patterns),
	}
	t.nodes.take() // wildRoot
	t.base = t.bytes()
	t.counted = t.base
	return t
}

// Bytes returns what the tree takes beyond an empty one.
func (t *Tree) Bytes() int64 {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	return t.bytes() - t.base
}

// bytes is what the tree takes.
func (t *Tree) bytes() int64 {
	return t.nodes.bytes + t.entries.bytes + t.groups.bytes + t.subs.bytes +
		t.edges.bytes() + t.index.bytes() + t.names.bytes() + t.other
}

func (t *Tree) lock() {
	for i := range t.locks {
		t.locks[i].Lock()
	}
}

func (t *Tree) unlock() {
	if n := t.bytes(); n != t.counted {
		if t.limits.Count != nil {
			t.limits.Count(n - t.counted)
		}
		t.counted = n
	}
	for i := range t.locks {
		t.locks[i].Unlock()
	}
}

// reader returns the lock that the reader number n takes.
func (t *Tree) reader(n uint32) *lock.RWMutex[leaf] {
	return &t.locks[int(n)&(len(t.locks)-1)].RWMutex
}

// Join returns a number for a new subscriber.
func (t *Tree) Join() uint32 {
	t.lock()
	defer t.unlock()
	return t.subs.take()
}

// Subscribers returns how many numbers are given out.
func (t *Tree) Subscribers() int {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	return t.subs.n
}

// Leave ends all subscriptions of sub and takes its number back.
func (t *Tree) Leave(sub uint32) {
	for {
		t.RemoveAll(sub)
		t.lock()
		none := t.subs.at(sub).n == 0
		if none {
			t.subs.give(sub)
		}
		t.unlock()
		if none {
			return
		}
	}
}

// Add makes or replaces the subscription of sub to filter, which is valid, by the Maker of o; with
// a group it is a shared subscription to that filter. It returns the options that were replaced, if
// the subscription existed. The error is ErrOverlapping or ErrMemory: then nothing has changed.
// What replaces a subscription is always taken.
func (t *Tree) Add(
	sub uint32, group, filter string, o Options,
) (old Options, existed bool, err error) {
	return t.put(sub, group, filter, o, &t.limits)
}

// Restore is Add without limits: for what was there before.
func (t *Tree) Restore(sub uint32, group, filter string, o Options) (existed bool) {
	_, existed, _ = t.put(sub, group, filter, o, new(Limits))
	return existed
}

func (t *Tree) put(
	sub uint32, group, filter string, o Options, l *Limits,
) (old Options, existed bool, err error) {
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
	if i := t.find(ow, sub, o.By); i != 0 {
		e := t.entries.at(i)
		if old = e.options(); old != o {
			e.set(o)
			t.changed(ow, b)
		}
		return old, true, nil
	}
	p := t.patternsOf(sub)
	if l.Overlapping > 0 && p != nil && p.full(t.patternKey(p, group, b), l.Overlapping) {
		t.drop(ow)
		return old, false, ErrOverlapping
	}
	i := t.insert(ow, sub, o)
	if grown := t.bytes() - t.counted; grown > 0 && l.Fits != nil && !l.Fits(grown) {
		t.delete(i)
		return old, false, ErrMemory
	}
	if p != nil {
		t.other += p.add(t.patternKey(p, group, b), t.filterKey(group, b))
	}
	t.changed(ow, b)
	return old, false, nil
}

// Remove ends one subscription that the client made, and says whether there was one.
func (t *Tree) Remove(sub uint32, group, filter string) (existed bool) {
	return t.RemoveBy(ByClient, sub, group, filter)
}

// RemoveBy is Remove for one that by made.
func (t *Tree) RemoveBy(by Maker, sub uint32, group, filter string) (existed bool) {
	var buf [256]byte
	b := append(buf[:0], filter...)
	t.lock()
	defer t.unlock()
	ow := t.lookup(group, b)
	i := t.find(ow, sub, by)
	if i == 0 {
		return false
	}
	t.changed(ow, b)
	t.delete(i)
	if p := t.many[sub]; p != nil {
		t.other += p.remove(t, group, b)
		if t.count(sub) < t.limits.Overlapping/2 {
			t.forgetPatterns(sub)
		}
	}
	return true
}

// removeAllBatch is how many subscriptions removeAll removes before it lets others have the locks.
const removeAllBatch = 256

// RemoveAll ends all subscriptions of sub, those that are added meanwhile included, and says how
// many.
func (t *Tree) RemoveAll(sub uint32) (n int) {
	var buf [256]byte
	for more := true; more; {
		t.lock()
		t.forgetPatterns(sub)
		for range removeAllBatch {
			if more = t.count(sub) > 0; !more {
				break
			}
			i := t.entries.at(t.subs.at(sub).newest).newer // the oldest
			ow := t.entries.at(i).owner
			t.changed(ow, t.appendFilter(buf[:0], t.ownerNode(ow)))
			t.delete(i)
			n++
		}
		t.unlock()
	}
	return n
}

// Get returns the options of one subscription that the client made.
func (t *Tree) Get(sub uint32, group, filter string) (o Options, ok bool) {
	return t.GetBy(ByClient, sub, group, filter)
}

// GetBy is Get for one that by made.
func (t *Tree) GetBy(by Maker, sub uint32, group, filter string) (o Options, ok bool) {
	var buf [256]byte
	b := append(buf[:0], filter...)
	mu := t.reader(sub)
	mu.RLock()
	defer mu.RUnlock()
	if i := t.find(t.lookup(group, b), sub, by); i != 0 {
		return t.entries.at(i).options(), true
	}
	return o, false
}

// Each calls yield for the subscriptions that sub had when each was called, oldest first, until
// yield returns false. Replacing a subscription does not change its place. yield may call the
// tree.
func (t *Tree) Each(sub uint32, yield func(group, filter string, o Options) bool) {
	for _, s := range t.Page(sub, nil, math.MaxInt) {
		if !yield(s.Group, s.Filter, s.Options) {
			return
		}
	}
}

// A Subscription is one subscription of a subscriber.
type Subscription struct {
	Group, Filter string
	Options
	Number uint32 // orders the subscriptions of one subscriber
}

// Page returns up to most of the subscriptions of sub, oldest first: those behind after, or, with
// nil, the first. after may have ended meanwhile, and may have been made anew.
func (t *Tree) Page(sub uint32, after *Subscription, most int) (page []Subscription) {
	var key, buf []byte
	if after != nil {
		key = []byte(after.Filter)
	}
	mu := t.reader(sub)
	mu.RLock()
	defer mu.RUnlock()
	n := t.count(sub)
	if n == 0 {
		return nil
	}
	newest := t.subs.at(sub).newest
	i := newest // before the oldest: it is a ring
	if after != nil {
		if i = t.before(sub, after, key); i == newest {
			return nil
		} else if i == 0 {
			i = newest
		}
	}
	page = make([]Subscription, 0, min(n, most))
	for len(page) < most {
		i = t.entries.at(i).newer
		e := t.entries.at(i)
		s := Subscription{Options: e.options(), Number: e.number()}
		if g := t.ownerGroup(e.owner); g != nil {
			s.Group = g.Name
		}
		buf = t.appendFilter(buf[:0], t.ownerNode(e.owner))
		s.Filter = string(buf)
		page = append(page, s)
		if i == newest {
			break
		}
	}
	return page
}

// before returns the entry of after, or, if it has ended, the newest one of sub that is older; 0 if
// there is none. sub has entries, and key is the filter.
func (t *Tree) before(sub uint32, after *Subscription, key []byte) uint32 {
	i := t.find(t.lookup(after.Group, key), sub, after.By)
	if i != 0 && t.entries.at(i).number() == after.Number {
		return i
	}
	i = t.subs.at(sub).newest
	for range t.count(sub) {
		if compareNumbers(t.entries.at(i).number(), after.Number) <= 0 {
			return i
		}
		i = t.entries.at(i).older
	}
	return 0
}

// Count returns how many subscriptions sub has.
func (t *Tree) Count(sub uint32) int {
	mu := t.reader(sub)
	mu.RLock()
	defer mu.RUnlock()
	return t.count(sub)
}

func (t *Tree) count(sub uint32) int {
	if !t.subs.has(sub) {
		return 0
	}
	return int(t.subs.at(sub).n)
}

// Len returns how many subscriptions there are.
func (t *Tree) Len() int {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	return t.entries.n
}

// Shared returns how many of the subscriptions are shared.
func (t *Tree) Shared() int {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	return t.shared
}

// version returns a number that grows whenever a subscription that matches topic is added,
// replaced or removed, and now and then when another one is. So what match found may be kept for
// as long as version is what it was before that match:
//
//	v := t.version(topic)
//	t.Match(topic, from, m) // good while t.version(topic) == v
//
// The order matters. A writer counts its change up while it holds the locks. Who sees the new
// version and then Matches has to wait for that writer, and finds the change; who sees the old
// version and finds the change nevertheless has only one more miss to come. (To count up before
// taking the locks would be wrong: a reader could get the new version and the old subscriptions.)
// The three counters are read one after the other, but none ever goes down, so that two equal
// sums mean that none has moved between the readings. By the time that add or remove returns, the
// version has grown.
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

// changed makes what has been cached for the topics that filter matches outdated. All locks are
// held.
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

// A Group is one shared subscription: a Share Name and a filter (4.8.2). It lives as long as it
// has a member.
type Group struct {
	Name     string
	Filter   string                   // as a client writes it
	Next     atomic.Uint32            // for who chooses the members in turn
	Last     atomic.Uint32            // for who notes the member that got a message; 0: nobody has
	snapshot atomic.Pointer[[]Member] // nil: to be made again

	// Guarded by the locks of the tree.
	number        uint32 // in Tree.groups
	node          uint32 // of the filter
	list          subList
	before, after *Group // of the same node
}

// groupCost is what a group takes besides its names; memberCost what a member takes besides its
// entry.
const (
	groupCost  = 112
	memberCost = 16
)

// bytes is what g takes.
func (g *Group) bytes() int64 {
	return groupCost + int64(len(g.Name)+len(g.Filter)) + int64(g.list.n)*memberCost
}

// nameHash is the hash in Tree.names of the group of that Share Name at node n.
func (t *Tree) nameHash(n uint32, name string) uint32 {
	return edgeHash(n, 0, maphash.String(t.seed, name))
}

// named returns the group of that Share Name at node n, nil if there is none.
func (t *Tree) named(n uint32, name string) *Group {
	i := t.names.find(t.nameHash(n, name), func(i uint32) bool {
		g := *t.groups.at(i)
		return g.node == n && g.Name == name
	})
	return t.groupAt(i)
}

// groupAt returns group number i, nil for 0.
func (t *Tree) groupAt(i uint32) *Group {
	if i == 0 {
		return nil
	}
	return *t.groups.at(i)
}

// ensureGroup returns the group of that Share Name at node n, a new one if there is none.
func (t *Tree) ensureGroup(n uint32, name string) *Group {
	if g := t.named(n, name); g != nil {
		return g
	}
	g := &Group{Name: strings.Clone(name), node: n, number: t.groups.take()}
	g.Filter = packets.JoinShared(g.Name, string(t.appendFilter(nil, n)))
	*t.groups.at(g.number) = g
	nd := t.nodes.at(n)
	if g.after = t.groupAt(nd.groups); g.after != nil {
		g.after.before = g
	}
	nd.groups = g.number
	t.names.add(t.nameHash(n, g.Name), g.number)
	t.other += g.bytes()
	return g
}

// Group returns the shared subscription of that name and filter, nil if there is none.
func (t *Tree) Group(name, filter string) *Group {
	mu := t.reader(0)
	mu.RLock()
	defer mu.RUnlock()
	return t.ownerGroup(t.lookup(name, []byte(filter)))
}

// drop removes the group and the nodes of ow if nothing needs them.
func (t *Tree) drop(ow owner) {
	n := t.ownerNode(ow)
	if g := t.ownerGroup(ow); g != nil && g.list.n == 0 {
		t.dropGroup(g)
	}
	t.prune(n)
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
	t.names.remove(t.nameHash(g.node, g.Name), g.number)
	t.groups.give(g.number)
	t.other -= g.bytes()
}
