package dunlin

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestTreeMatch(t *testing.T) {
	xs := func(n int) string { return strings.Repeat("x", n) }
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
		{"a label of one node's length", xs(labelMax), xs(labelMax), xs(labelMax-1) + " " + xs(labelMax+1)},
		{"a label longer than a node", xs(100) + "/+", xs(100) + "/a", xs(68) + "/a " + xs(99) + "/a " + xs(102) + "/a"},
		{"a level of a node's length with levels below", xs(labelMax) + "/y/#", xs(labelMax) + "/y", xs(labelMax) + "y " + xs(labelMax) + "yy"},
		{"a filter without wildcards longer than a node", "a/" + xs(50) + "/c", "a/" + xs(50) + "/c", "a/" + xs(50) + "/d a/" + xs(49) + "/c"},
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
			[]sub{{1, "", "a", subOptions{id: 7}}, {1, "", "+", subOptions{}}, {1, "", "#", subOptions{id: 7}},
				{2, "", "#", subOptions{id: 9}}}, 0,
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

func TestMatchesAreUsedAgain(t *testing.T) {
	tr := newTree()
	for i := range uint32(50) {
		tr.add(i+1, "", "a/b", subOptions{id: i})
		tr.add(i+1, "", "a/+", subOptions{id: i})
		tr.add(i+1, "g", "a/+", subOptions{})
	}
	tr.add(7, "", "c", subOptions{})
	m := matches{table: make([]uint64, 256), gen: 1<<32 - 3}
	for range 6 { // the generation wraps around
		tr.match([]byte("a/b"), 0, &m)
		require.Len(t, m.subs, 50)
		require.Len(t, m.ids, 2*49)
		require.Len(t, m.groups, 1)
	}
	require.EqualValues(t, 4, m.gen)
	tr.match([]byte("c"), 0, &m)
	require.Equal(t, []match{{sub: 7}}, m.subs)
	require.Empty(t, m.ids)
	require.Empty(t, m.groups)
	tr.match(nil, 0, &m)
	require.Empty(t, m.subs, "no topic matches nothing")
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
	for _, k := range []subscriptionKey{
		{3, "h", "a"}, {4, "g", "a"}, {3, "", "b"}, {3, "", "a/+"}, {3, "", "a/+/b/#"}, {9, "", "a"}, {0, "", "a"},
	} {
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
		{"a", "a"}, {"a/b/c", "a/b/c"}, {"a/+", "a/b"}, {"a/#", "a"}, {"+", "a"}, {"#", "a/b"},
		{"+/b", "/b"}, {"/+", "/b"}, {"$SYS/#", "$SYS/a"},
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

// A versionedCache is what a connection does with the tree.
type versionedCache struct {
	version uint64
	m       matches
	there   map[uint32]bool
}

func (c *versionedCache) has(t *tree, topic []byte) map[uint32]bool {
	if v := t.version(topic); c.there == nil || v != c.version {
		c.version, c.there = v, map[uint32]bool{}
		t.match(topic, 0, &c.m)
		for _, x := range c.m.subs {
			c.there[x.sub] = true
		}
		for _, g := range c.m.groups {
			for _, x := range g.members {
				c.there[x.sub] = true
			}
		}
	}
	return c.there
}

func TestTreeVersionWithWriters(t *testing.T) {
	tr := newTree()
	topic := []byte("a/b")
	filters := []string{"a/b", "a/+", "+/b", "#"}
	// The steps of each writer. After an odd one its subscription is there, after an even one it is not.
	var started, finished [8]atomic.Uint32
	var writers, readers sync.WaitGroup
	var stop atomic.Bool
	for w := range finished {
		writers.Add(1)
		go func() { // waited for below
			defer writers.Done()
			filter, sub := filters[w%len(filters)], uint32(w+1)
			group := []string{"", "g"}[w/len(filters)]
			for i := range uint32(400) {
				started[w].Add(1)
				switch {
				case i%2 == 0:
					tr.add(sub, group, filter, subOptions{id: i})
				case i%4 == 1:
					tr.remove(sub, group, filter)
				default:
					tr.removeAll(sub)
				}
				finished[w].Add(1)
				runtime.Gosched()
			}
		}()
	}
	var checks atomic.Uint32
	for range 2 {
		readers.Add(1)
		go func() { // waited for below
			defer readers.Done()
			var cache versionedCache
			for last := false; !last; runtime.Gosched() {
				last = stop.Load() // and once more, when no step is under way
				var before [len(finished)]uint32
				for w := range before {
					before[w] = finished[w].Load()
				}
				there := cache.has(tr, topic)
				for w := range before {
					// Where no step was under way meanwhile, the cache must show what the last one did.
					if before[w] == started[w].Load() {
						checks.Add(1)
						if there[uint32(w+1)] != (before[w]%2 == 1) {
							t.Errorf("after step %d of its writer, the cache has subscriber %d: %v", before[w], w+1, there[uint32(w+1)])
							return
						}
					}
				}
			}
		}()
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()
	require.NotZero(t, checks.Load())
	t.Logf("%d checks", checks.Load())
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

func TestTreeDeepTopics(t *testing.T) {
	const levels = 32_000
	deep := strings.Repeat("/", levels)
	tr := newTree()
	filters := []string{deep, strings.Repeat("+/", levels) + "+", strings.Repeat("/", levels-1) + "/#", "/+" + strings.Repeat("/", levels-1)}
	for i, f := range filters {
		tr.add(uint32(i+1), "", f, subOptions{})
		tr.each(uint32(i+1), func(_, filter string, _ subOptions) bool {
			require.True(t, f == filter, "the filter comes back as it was")
			return true
		})
	}
	var m matches
	tr.match([]byte(deep), 0, &m)
	require.Len(t, m.subs, len(filters))
	tr.match([]byte(deep+"/"), 0, &m)
	require.Len(t, m.subs, 1, "one level more is for # only")
	tr.check(t)
	for i, f := range filters {
		require.True(t, tr.remove(uint32(i+1), "", f))
	}
	tr.check(t)
	require.Equal(t, 1, tr.nodes.used())
}

func TestTreeManyFiltersForOneTopic(t *testing.T) {
	const levels = 10
	tr := newTree()
	for i := range 1 << levels {
		var f []string
		for l := range levels {
			f = append(f, []string{"a", "+"}[i>>l&1])
		}
		tr.add(1, "", strings.Join(f, "/"), subOptions{id: uint32(i + 1)})
	}
	var m matches
	topic := strings.TrimSuffix(strings.Repeat("a/", levels), "/")
	tr.match([]byte(topic), 0, &m)
	require.Len(t, m.subs, 1)
	slices.Sort(m.ids)
	require.EqualValues(t, 1, m.ids[0])
	require.Len(t, slices.Compact(m.ids), 1<<levels, "each identifier is there once")
	tr.check(t)
	require.Equal(t, 1<<levels, tr.removeAll(1))
	require.Equal(t, 1, tr.nodes.used())
}

func TestTreeNodeIsACacheLine(t *testing.T) {
	require.EqualValues(t, 64, unsafe.Sizeof(node{}))
	require.EqualValues(t, 32, unsafe.Sizeof(subEntry{}))
	require.EqualValues(t, 8192, unsafe.Sizeof(edgeSegment{}))
}
