package dunlin

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// check fails the test if the parts of t contradict one another.
func (t *tree) check(tb testing.TB) {
	tb.Helper()
	r := require.New(tb)
	t.lock()
	defer t.unlock()

	// Every node that is taken is found from its parent, is needed, and is counted there.
	free := map[uint32]bool{}
	for _, i := range t.nodes.free {
		r.False(free[i], "node %d is free twice", i)
		r.Zero(*t.nodes.at(i), "node %d is free but not empty", i)
		free[i] = true
	}
	kids := map[uint32]uint32{}
	edges, entries, groups := 0, 0, 0
	for i := uint32(wildRoot + 1); i < t.nodes.fresh; i++ {
		if free[i] {
			continue
		}
		n := t.nodes.at(i)
		switch n.kind {
		case nodePlus:
			r.Equal(i, t.nodes.at(n.parent).plus, "the + of node %d", n.parent)
		case nodeHash:
			r.Equal(i, t.nodes.at(n.parent).hash, "the # of node %d", n.parent)
		default:
			label := n.label[:n.size]
			x := edgeHash(n.parent, n.kind, maphash.Bytes(t.seed, label))
			r.Equal(i, t.child(n.parent, n.kind, label, x), "node %d is not found by its label", i)
			kids[n.parent]++
			edges++
		}
		r.False(n.list.n == 0 && n.groups == 0 && n.kids == 0 && n.plus == 0 && n.hash == 0, "node %d is of no use", i)
		entries += t.checkList(tb, nodeOwner(i))
		for g := t.groups[n.groups]; g != nil; g = g.after {
			r.Equal(i, g.node)
			r.NotZero(g.list.n, "group %s is empty", g.name)
			r.Same(g, t.byName[groupKey{i, g.name}])
			entries += t.checkList(tb, g.owner())
			groups++
		}
	}
	for i := uint32(wildRoot); i < t.nodes.fresh; i++ {
		r.Equal(kids[i], t.nodes.at(i).kids, "how many children node %d has", i)
	}
	r.Equal(t.total, entries, "entries in the lists")
	r.Equal(t.total, t.entries.used(), "entries in use")
	r.Len(t.byName, groups)
	r.Equal(groups, len(t.groups)-1-len(t.free))

	inEdges := 0
	for i, s := range t.edges.dir {
		if i == 0 || s != t.edges.dir[i-1] {
			inEdges += int(s.n)
		}
	}
	r.Equal(edges, inEdges, "edges in the table")

	inRings := 0
	for sub, s := range t.subs {
		i := s.newest
		for range s.n {
			e := t.entries.at(i)
			r.EqualValues(sub, e.sub)
			r.Equal(i, t.entries.at(e.older).newer)
			i = e.older
			inRings++
		}
		r.Equal(s.newest, i, "the ring of subscriber %d closes", sub)
	}
	r.Equal(t.total, inRings, "entries in the rings")
}

func (t *tree) checkList(tb testing.TB, ow owner) int {
	n, prev := 0, uint32(0)
	l := t.ownerList(ow)
	for i := l.first; i != 0; i = t.entries.at(i).next {
		e := t.entries.at(i)
		require.Equal(tb, ow, e.owner)
		require.Equal(tb, prev, e.prev)
		require.Equal(tb, i, t.find(ow, e.sub), "the entry of subscriber %d is not found", e.sub)
		prev = i
		n++
	}
	require.EqualValues(tb, n, l.n, "length of a list")
	return n
}

// A subscriptionKey names a subscription in the model.
type subscriptionKey struct {
	sub           uint32
	group, filter string
}

// A treeModel does what a tree does, slowly.
type treeModel map[subscriptionKey]subOptions

type modelMatch struct {
	QoS packets.QoS
	RAP bool
	IDs []uint32
}

type modelResult struct {
	Subs   map[uint32]modelMatch
	Groups map[string]map[uint32]subOptions // by "name filter"
}

func (m treeModel) match(topic string, from uint32) modelResult {
	r := modelResult{map[uint32]modelMatch{}, map[string]map[uint32]subOptions{}}
	for k, o := range m {
		if !packets.MatchTopic(k.filter, topic) {
			continue
		}
		if k.group != "" {
			g := k.group + " " + k.filter
			if r.Groups[g] == nil {
				r.Groups[g] = map[uint32]subOptions{}
			}
			r.Groups[g][k.sub] = o
			continue
		}
		if o.noLocal && k.sub == from {
			continue
		}
		x := r.Subs[k.sub]
		x.QoS, x.RAP = max(x.QoS, o.qos), x.RAP || o.retainAsPublished
		if o.id != 0 {
			x.IDs = append(x.IDs, o.id)
			slices.Sort(x.IDs)
		}
		r.Subs[k.sub] = x
	}
	return r
}

// result brings what a tree found into the form of the model.
func (m *matches) result(tb testing.TB, t *tree) modelResult {
	r := modelResult{map[uint32]modelMatch{}, map[string]map[uint32]subOptions{}}
	for _, x := range m.subs {
		require.NotContains(tb, r.Subs, x.sub, "a subscriber is there twice")
		ids := slices.Clone(m.ids[x.ids : x.ids+x.nids])
		slices.Sort(ids)
		r.Subs[x.sub] = modelMatch{x.qos, x.retainAsPublished, ids}
	}
	for _, g := range m.groups {
		name := g.group.name + " " + string(t.appendFilter(nil, g.group.node))
		require.NotContains(tb, r.Groups, name, "a group is there twice")
		r.Groups[name] = map[uint32]subOptions{}
		for _, x := range g.members {
			r.Groups[name][x.sub] = x.opts
		}
	}
	return r
}

func diffResults(want, got modelResult) string {
	for k, x := range want.Subs {
		if len(x.IDs) == 0 {
			x.IDs = nil
			want.Subs[k] = x
		}
	}
	for k, x := range got.Subs {
		if len(x.IDs) == 0 {
			x.IDs = nil
			got.Subs[k] = x
		}
	}
	return cmp.Diff(want, got, cmp.AllowUnexported(subOptions{}))
}

func TestTreeMatch(t *testing.T) {
	for _, tt := range []struct {
		name    string
		filter  string
		yes, no string // topics, by spaces
	}{
		{"a filter without wildcards matches itself only", "a/b", "a/b", "a a/b/c a/c /a/b a/b/ A/b"},
		{"levels may be empty", "a//b", "a//b", "a/b a/x/b"},
		{"a lone slash is two empty levels", "/", "/", "a a/ /a //"},
		{"+ matches one level, also an empty one", "a/+/b", "a/x/b a//b", "a/b a/x/y/b a/x/b/c a/x"},
		{"+ at the end needs a level", "a/+", "a/ a/b", "a a/b/c"},
		{"+ alone matches topics of one level", "+", "a", "/a a/ a/b"},
		{"/+ has an empty first level", "/+", "/a /", "a a/b"},
		{"+/+ matches a leading slash", "+/+", "/a a/ a/b /", "a a/b/c"},
		{"# matches the levels below and the parent", "a/#", "a a/ a/b a/b/c", "ab b/a A"},
		{"# alone matches everything", "#", "a /a a/b/c /", ""},
		{"+/# matches a topic of one level", "+/#", "a a/b /b", ""},
		{"+/+/# needs two levels", "+/+/#", "a/b a/b/c", "a"},
		{"# does not match topics that begin with $ [MQTT-4.7.2-1]", "#", "a$b a/$b", "$SYS $SYS/a $"},
		{"+ does not match a first level that begins with $ [MQTT-4.7.2-1]", "+/a", "x/a", "$SYS/a"},
		{"+/# does not match topics that begin with $ [MQTT-4.7.2-1]", "+/#", "x", "$SYS $SYS/a"},
		{"a named $ level is matched", "$SYS/#", "$SYS $SYS/a", "SYS/a $SYSX"},
		{"a named $ level may be followed by +", "$SYS/+", "$SYS/a $SYS/$a", "$SYS"},
		{"$ means nothing in later levels", "a/+/c", "a/$b/c", ""},
		{"a label of one node's length", strings.Repeat("x", labelMax), strings.Repeat("x", labelMax), strings.Repeat("x", labelMax-1) + " " + strings.Repeat("x", labelMax+1)},
		{"a label longer than a node", strings.Repeat("x", 100) + "/+", strings.Repeat("x", 100) + "/a", strings.Repeat("x", 68) + "/a " + strings.Repeat("x", 99) + "/a " + strings.Repeat("x", 102) + "/a"},
		{"a level of a node's length with levels below", strings.Repeat("x", labelMax) + "/y/#", strings.Repeat("x", labelMax) + "/y", strings.Repeat("x", labelMax) + "y " + strings.Repeat("x", labelMax) + "yy"},
		{"a filter without wildcards longer than a node", "a/" + strings.Repeat("b/", 50) + "c", "a/" + strings.Repeat("b/", 50) + "c", "a/" + strings.Repeat("b/", 50) + "d a/" + strings.Repeat("b/", 49) + "c"},
		{"letters beyond ASCII are bytes", "ä/+", "ä/ö", "a/ö"},
	} {
		for _, group := range []string{"", "g"} {
			t.Run(tt.name+map[string]string{"g": ", shared"}[group], func(t *testing.T) {
				tr := newTree()
				tr.add(1, group, tt.filter, subOptions{})
				var m matches
				count := func(topic string) int {
					tr.match([]byte(topic), 0, &m)
					return len(m.subs) + len(m.groups)
				}
				for _, topic := range strings.Fields(tt.yes) {
					require.Equal(t, 1, count(topic), "%s must match %s", tt.filter, topic)
					require.True(t, packets.MatchTopic(tt.filter, topic))
				}
				for _, topic := range strings.Fields(tt.no) {
					require.Zero(t, count(topic), "%s must not match %s", tt.filter, topic)
					require.False(t, packets.MatchTopic(tt.filter, topic))
				}
				tr.check(t)
				require.True(t, tr.remove(1, group, tt.filter))
				require.Zero(t, count(strings.Fields(tt.yes)[0]), "nothing matches once the filter is removed")
				tr.check(t)
				require.Equal(t, 1, tr.nodes.used(), "only the root is left")
			})
		}
	}
}

func TestTreeMerging(t *testing.T) {
	type sub struct {
		sub           uint32
		group, filter string
		o             subOptions
	}
	for _, tt := range []struct {
		name string
		subs []sub
		from uint32
		want map[uint32]modelMatch
	}{
		{"overlapping subscriptions of one subscriber are one match with the highest QoS",
			[]sub{{1, "", "a", subOptions{qos: 1}}, {1, "", "+", subOptions{qos: 2}}, {1, "", "#", subOptions{qos: 0}}}, 0,
			map[uint32]modelMatch{1: {QoS: 2}}},
		{"Retain As Published of any of them counts",
			[]sub{{1, "", "a", subOptions{}}, {1, "", "#", subOptions{retainAsPublished: true}}}, 0,
			map[uint32]modelMatch{1: {RAP: true}}},
		{"all Subscription Identifiers are kept, also equal ones",
			[]sub{{1, "", "a", subOptions{id: 7}}, {1, "", "+", subOptions{}}, {1, "", "#", subOptions{id: 7}}, {2, "", "#", subOptions{id: 9}}}, 0,
			map[uint32]modelMatch{1: {IDs: []uint32{7, 7}}, 2: {IDs: []uint32{9}}}},
		{"identifiers of subscribers of one filter do not mix",
			[]sub{{1, "", "a", subOptions{id: 1}}, {2, "", "a", subOptions{}}, {3, "", "a", subOptions{id: 268435455}}}, 0,
			map[uint32]modelMatch{1: {IDs: []uint32{1}}, 2: {}, 3: {IDs: []uint32{268435455}}}},
		{"No Local leaves the publisher out [MQTT-3.8.3-3]",
			[]sub{{1, "", "a", subOptions{noLocal: true}}, {2, "", "a", subOptions{noLocal: true}}}, 1,
			map[uint32]modelMatch{2: {}}},
		{"another subscription of the publisher still matches, with its own options",
			[]sub{{1, "", "a", subOptions{noLocal: true, qos: 2, id: 5}}, {1, "", "+", subOptions{qos: 1, id: 6}}}, 1,
			map[uint32]modelMatch{1: {QoS: 1, IDs: []uint32{6}}}},
		{"without No Local the publisher gets its own",
			[]sub{{1, "", "a", subOptions{}}}, 1,
			map[uint32]modelMatch{1: {}}},
		{"a shared subscription does not merge with others",
			[]sub{{1, "g", "a", subOptions{qos: 2}}, {1, "", "a", subOptions{qos: 1}}}, 0,
			map[uint32]modelMatch{1: {QoS: 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTree()
			for _, s := range tt.subs {
				tr.add(s.sub, s.group, s.filter, s.o)
			}
			var m matches
			for range 2 {
				tr.match([]byte("a"), tt.from, &m)
				got := m.result(t, tr)
				got.Groups = map[string]map[uint32]subOptions{}
				require.Empty(t, diffResults(modelResult{tt.want, got.Groups}, got))
			}
		})
	}
}

func TestTreeGroups(t *testing.T) {
	t.Run("names and filters make groups, and members keep the order they came in", func(t *testing.T) {
		tr := newTree()
		for i := range uint32(3) {
			tr.add(i+1, "g", "a/+", subOptions{qos: packets.QoS(i)})
		}
		tr.add(4, "h", "a/+", subOptions{})
		tr.add(1, "g", "#", subOptions{})
		var m matches
		tr.match([]byte("a/b"), 1, &m)
		require.Len(t, m.groups, 3)
		require.Empty(t, m.subs)
		i := slices.IndexFunc(m.groups, func(g sharedMatch) bool { return len(g.members) == 3 })
		require.Equal(t, []member{{1, subOptions{qos: 0}}, {2, subOptions{qos: 1}}, {3, subOptions{qos: 2}}}, m.groups[i].members)
		require.Equal(t, "g", m.groups[i].group.name)
	})
	t.Run("members that were given out do not change", func(t *testing.T) {
		tr := newTree()
		tr.add(1, "g", "a", subOptions{})
		var m, later matches
		tr.match([]byte("a"), 0, &m)
		tr.add(2, "g", "a", subOptions{})
		tr.add(1, "g", "a", subOptions{qos: 2})
		require.Equal(t, []member{{1, subOptions{}}}, m.groups[0].members)
		tr.match([]byte("a"), 0, &later)
		require.Equal(t, []member{{1, subOptions{qos: 2}}, {2, subOptions{}}}, later.groups[0].members)
		require.Same(t, m.groups[0].group, later.groups[0].group, "the group is the same as long as it has members")
	})
	t.Run("a group ends with its last member, wherever it stands", func(t *testing.T) {
		tr := newTree()
		names := []string{"a", "b", "c", "d"}
		for _, gone := range names {
			for _, n := range names {
				tr.add(1, n, "x", subOptions{})
			}
			require.True(t, tr.remove(1, gone, "x"))
			require.False(t, tr.remove(1, gone, "x"))
			tr.check(t)
			var m matches
			tr.match([]byte("x"), 0, &m)
			require.Len(t, m.groups, 3)
		}
		require.Equal(t, 3, tr.removeAll(1))
		tr.check(t)
		require.Equal(t, 1, tr.nodes.used())
	})
}

func TestTreeSubscriptions(t *testing.T) {
	tr := newTree()
	long := strings.Repeat("long/", 100) + "+"
	type sub struct {
		group, filter string
		o             subOptions
	}
	want := []sub{
		{"", "a", subOptions{qos: 2, noLocal: true, retainAsPublished: true, retainHandling: 2, id: 268435455}},
		{"g", "a", subOptions{qos: 1}},
		{"", "a/#", subOptions{retainHandling: 1}},
		{"", "/", subOptions{id: 1}},
		{"", "#", subOptions{}},
		{"", "+//+", subOptions{}},
		{"h", long, subOptions{}},
		{"", long + "/x", subOptions{}},
		{"", "$SYS/+", subOptions{}},
	}
	for _, s := range want {
		old, existed := tr.add(3, s.group, s.filter, s.o)
		require.False(t, existed)
		require.Zero(t, old)
	}
	tr.add(4, "", "a", subOptions{})
	list := func() (got []sub) {
		tr.each(3, func(group, filter string, o subOptions) bool {
			got = append(got, sub{group, filter, o})
			require.Equal(t, len(want), tr.count(3), "yield may call the tree")
			return true
		})
		return got
	}
	require.Equal(t, want, list(), "each gives everything back, oldest first")
	require.Equal(t, len(want), tr.count(3))
	require.Equal(t, len(want)+1, tr.len())

	old, existed := tr.add(3, "", "a", subOptions{qos: 1})
	require.True(t, existed)
	require.Equal(t, want[0].o, old)
	want[0].o = subOptions{qos: 1}
	require.Equal(t, want, list(), "a subscription that is replaced keeps its place")

	o, ok := tr.get(3, "g", "a")
	require.True(t, ok)
	require.Equal(t, want[1].o, o)
	for _, k := range []subscriptionKey{{3, "h", "a"}, {4, "g", "a"}, {3, "", "b"}, {3, "", "a/+"}, {3, "", "a/+/b/#"}, {9, "", "a"}, {0, "", "a"}} {
		_, ok = tr.get(k.sub, k.group, k.filter)
		require.False(t, ok, "%v is not there", k)
		require.False(t, tr.remove(k.sub, k.group, k.filter))
	}
	n := 0
	tr.each(3, func(string, string, subOptions) bool { n++; return n < 2 })
	require.Equal(t, 2, n, "yield ends it")

	require.True(t, tr.remove(3, "", "#"))
	want = slices.Delete(want, 4, 5)
	require.Equal(t, want, list())
	tr.check(t)
	require.Equal(t, len(want), tr.removeAll(3))
	require.Zero(t, tr.removeAll(3))
	require.Zero(t, tr.removeAll(77))
	require.Zero(t, tr.count(3))
	require.Zero(t, tr.count(77))
	require.Empty(t, list())
	require.Equal(t, 1, tr.len())
	tr.check(t)
	require.PanicsWithValue(t, "BUG: subscriber 0", func() { tr.add(0, "", "a", subOptions{}) })
}

func TestTreeManySubscribersOfOneFilter(t *testing.T) {
	for _, group := range []string{"", "g"} {
		tr := newTree()
		const n = 1000
		for i := range uint32(n) {
			tr.add(i+1, group, "a/+", subOptions{qos: packets.QoS(i % 3)})
			_, existed := tr.add(i+1, group, "a/+", subOptions{qos: packets.QoS(i % 3)})
			require.True(t, existed)
		}
		tr.check(t)
		require.Len(t, tr.indexed, n)
		for i := range uint32(n) {
			if i > n-30 {
				tr.check(t)
			}
			require.True(t, tr.remove((i*7)%n+1, group, "a/+"))
		}
		tr.check(t)
		require.Empty(t, tr.indexed)
		require.Zero(t, tr.len())
	}
}

func TestTreeGivesMemoryBack(t *testing.T) {
	tr := newTree()
	for i := range 20_000 {
		tr.add(uint32(i%5+1), "", fmt.Sprintf("a/%d/+", i), subOptions{})
	}
	tr.check(t)
	for i := range uint32(5) {
		require.Equal(t, 4000, tr.removeAll(i+1))
	}
	tr.check(t)
	require.Len(t, tr.nodes.chunks, 1)
	require.Empty(t, tr.entries.chunks)
	require.Len(t, tr.edges.dir, 1)
	tr.add(1, "", "a", subOptions{})
	tr.check(t)
}

func TestTreeVersion(t *testing.T) {
	// The tables of counters may collide, so nothing is said of what does not match.
	for _, tt := range []struct{ filter, topic string }{
		{"a", "a"}, {"a/b/c", "a/b/c"}, {"a/+", "a/b"}, {"a/#", "a"}, {"+", "a"}, {"#", "a/b"}, {"+/b", "/b"}, {"/+", "/b"}, {"$SYS/#", "$SYS/a"},
	} {
		for _, group := range []string{"", "g"} {
			tr := newTree()
			last := tr.version([]byte(tt.topic))
			grown := func(what string) {
				t.Helper()
				v := tr.version([]byte(tt.topic))
				require.Greater(t, v, last, "%s %s is seen in the version of %s", what, tt.filter, tt.topic)
				last = v
			}
			same := func(what string) {
				t.Helper()
				require.Equal(t, last, tr.version([]byte(tt.topic)), what)
			}
			tr.add(1, group, tt.filter, subOptions{})
			grown("adding")
			tr.add(1, group, tt.filter, subOptions{})
			same("an add that changes nothing")
			tr.add(1, group, tt.filter, subOptions{qos: 1})
			grown("changing the options of")
			tr.add(2, group, tt.filter, subOptions{qos: 1})
			grown("a second subscriber of")
			tr.remove(1, group, tt.filter)
			grown("removing")
			tr.remove(1, group, tt.filter)
			same("a remove of nothing")
			tr.removeAll(2)
			grown("removing all of the subscriber of")
		}
	}
}

// A cache that is valid for one version must never hold less than what writers finished before it was looked at.
func TestTreeVersionWithWriters(t *testing.T) {
	tr := newTree()
	topic := []byte("a/b")
	filters := []string{"a/b", "a/+", "+/b", "#"}
	var finished [8]atomic.Uint32 // generation of the subscription of each writer, even: there, odd: not
	var wg, readers sync.WaitGroup
	var stop atomic.Bool
	for w := range finished {
		wg.Add(1)
		go func() { // waited for below
			defer wg.Done()
			filter, sub := filters[w%len(filters)], uint32(w+1)
			group := []string{"", "g"}[w/len(filters)]
			for range 500 {
				tr.add(sub, group, filter, subOptions{id: finished[w].Load()})
				finished[w].Add(1)
				if w%2 == 0 {
					tr.remove(sub, group, filter)
				} else {
					tr.removeAll(sub)
				}
				finished[w].Add(1)
			}
		}()
	}
	for r := range 2 {
		readers.Add(1)
		go func() { // waited for below
			defer readers.Done()
			var m matches
			var version uint64
			there := map[uint32]bool{}
			for !stop.Load() {
				var before, after [len(finished)]uint32
				for w := range before {
					before[w] = finished[w].Load()
				}
				if v := tr.version(topic); v != version || len(there) == 0 {
					version = v
					tr.match(topic, uint32(r), &m)
					clear(there)
					for _, x := range m.subs {
						there[x.sub] = true
					}
					for _, g := range m.groups {
						for _, x := range g.members {
							there[x.sub] = true
						}
					}
				}
				for w := range after {
					after[w] = finished[w].Load()
				}
				for w := range before {
					// Between two steps of its writer, nothing is said. One that stands still must be seen as it is:
					// 'before' counts finished steps, so the next one may already be under way.
					if before[w] == after[w] && before[w] == 2*500 && there[uint32(w+1)] {
						t.Errorf("subscriber %d is still in a cache that counts as fresh", w+1)
					}
				}
			}
		}()
	}
	wg.Wait()
	stop.Store(true)
	readers.Wait()
	tr.check(t)
	require.Zero(t, tr.len())
}

func TestTreeMatchDoesNotAllocate(t *testing.T) {
	tr := newTree()
	for k := range 2000 {
		tr.add(uint32(k%20+1), "", wildFilter(k), subOptions{qos: 1, id: uint32(k)})
	}
	for i := range uint32(100) {
		tr.add(i+1, "", "w/#", subOptions{id: i})
		tr.add(i+1, "g", "w/#", subOptions{})
	}
	var m matches
	topics := [][]byte{[]byte("w/s1/d1/t"), []byte("w/s15/d0/x/y"), []byte("none"), []byte("$SYS/x")}
	require.Zero(t, testing.AllocsPerRun(200, func() {
		for _, topic := range topics {
			tr.version(topic)
			tr.match(topic, 1, &m)
		}
	}))
	tr.add(1, "", "z/+", subOptions{})
	require.Zero(t, testing.AllocsPerRun(200, func() {
		tr.add(1, "", "z/y", subOptions{})
		tr.get(1, "", "z/y")
		tr.remove(1, "", "z/y")
	}), "neither do add and remove where there is room")
}

func TestTreeNodeIsACacheLine(t *testing.T) {
	require.EqualValues(t, 64, unsafe.Sizeof(node{}))
	require.EqualValues(t, 32, unsafe.Sizeof(subEntry{}))
	require.EqualValues(t, 8192, unsafe.Sizeof(edgeSegment{}))
}

// FuzzTree drives a tree and a model with the same steps.
func FuzzTree(f *testing.F) {
	for i := range 8 {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		b := make([]byte, 400)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, steps []byte) { runTree(t, steps) })
}

func TestTreeAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 60 {
		b := make([]byte, 3000)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		runTree(t, b)
	}
}

var fuzzLevels = []string{"a", "b", "", "$x", "+", "+", "#", strings.Repeat("y", labelMax), strings.Repeat("y", labelMax+3)}

// runTree reads steps of four bytes.
func runTree(tb testing.TB, steps []byte) {
	tr, model := newTree(), treeModel{}
	var m matches
	name := func(a, b byte, wild bool) string {
		x := int(a)<<8 | int(b)
		var levels []string
		for n := x%4 + 1; n > 0; n-- {
			x = x/4*31 + 7
			l := fuzzLevels[x%len(fuzzLevels)]
			if !wild && (l == "+" || l == "#") {
				l = "a"
			}
			levels = append(levels, l)
			if l == "#" {
				break
			}
		}
		if s := strings.Join(levels, "/"); s != "" {
			return s
		}
		return "a"
	}
	for len(steps) >= 4 {
		op, who, a, b := steps[0], steps[1], steps[2], steps[3]
		steps = steps[4:]
		sub := uint32(who%16) + 1
		group := []string{"", "", "g", "h"}[who>>4&3]
		k := subscriptionKey{sub, group, name(a, b, true)}
		o := subOptions{qos: packets.QoS(op >> 4 % 3), noLocal: group == "" && op&64 != 0, retainAsPublished: op&128 != 0, retainHandling: who >> 6 % 3, id: uint32(who >> 5)}
		old, existed := model[k]
		got, ok := tr.get(k.sub, k.group, k.filter)
		if got != old || ok != existed {
			tb.Fatalf("get of %v: %v %v, want %v %v", k, got, ok, old, existed)
		}
		switch op % 16 {
		case 0, 1, 2, 3, 4, 5, 6, 7:
			if gotOld, got := tr.add(k.sub, k.group, k.filter, o); gotOld != old || got != existed {
				tb.Fatalf("add of %v: %v %v, want %v %v", k, gotOld, got, old, existed)
			}
			model[k] = o
		case 8, 9, 10, 11, 12:
			if got := tr.remove(k.sub, k.group, k.filter); got != existed {
				tb.Fatalf("remove of %v: %v, want %v", k, got, existed)
			}
			delete(model, k)
		case 13:
			n := 0
			for k := range model {
				if k.sub == sub {
					delete(model, k)
					n++
				}
			}
			if got := tr.removeAll(sub); got != n {
				tb.Fatalf("removeAll of %d: %d, want %d", sub, got, n)
			}
		default:
			var got, want []string
			tr.each(sub, func(group, filter string, o subOptions) bool {
				got = append(got, fmt.Sprint(group, " ", filter, o))
				return true
			})
			for k, o := range model {
				if k.sub == sub {
					want = append(want, fmt.Sprint(k.group, " ", k.filter, o))
				}
			}
			sort.Strings(got)
			sort.Strings(want)
			if d := cmp.Diff(want, got); d != "" || tr.count(sub) != len(want) {
				tb.Fatalf("subscriptions of %d (%d of them): %s", sub, tr.count(sub), d)
			}
		}
		topic := name(b, a, false)
		tr.match([]byte(topic), sub, &m)
		if d := diffResults(model.match(topic, sub), m.result(tb, tr)); d != "" {
			tb.Fatalf("match of %s: %s", topic, d)
		}
		if tr.len() != len(model) {
			tb.Fatalf("%d subscriptions, want %d", tr.len(), len(model))
		}
	}
	tr.check(tb)
	for sub := range uint32(16) {
		tr.removeAll(sub + 1)
	}
	tr.check(tb)
	if n := tr.nodes.used(); n != 1 {
		tb.Fatalf("%d nodes in an empty tree", n)
	}
}

// wildFilter and wildTopic: topic k matches filter k and, of that shape, no other.
func wildFilter(k int) string {
	a, d := k%1000, k/1000
	switch m := k / 7 % 20; {
	case m < 12:
		return fmt.Sprintf("w/s%d/d%d/t", a, d)
	case m < 15:
		return fmt.Sprintf("w/s%d/d%d/+/v", a, d)
	case m < 18:
		return fmt.Sprintf("w/+/e%d/q%d", d, a)
	default:
		return fmt.Sprintf("w/s%d/d%d/x/#", a, d)
	}
}

func wildTopic(k int, r *rand.Rand) []byte {
	a, d := k%1000, k/1000
	var b bytes.Buffer
	switch m := k / 7 % 20; {
	case m < 12:
		fmt.Fprintf(&b, "w/s%d/d%d/t", a, d)
	case m < 15:
		fmt.Fprintf(&b, "w/s%d/d%d/%d/v", a, d, r.IntN(10))
	case m < 18:
		fmt.Fprintf(&b, "w/s%d/e%d/q%d", r.IntN(1000), d, a)
	default:
		fmt.Fprintf(&b, "w/s%d/d%d/x/%d/y", a, d, r.IntN(10))
	}
	return b.Bytes()
}
