package subs

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

	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestTreeMatch(t *testing.T) {
	xs := func(n int) string { return strings.Repeat("x", n) }
	for _, tt := range []struct {
		name    string
		filter  string
		yes, no string // topics, by spaces
	}{
		{"a filter without wildcards matches itself only", "a/b", "a/b",
			"a a/b/c a/c /a/b a/b/ A/b"},
		{"levels may be empty", "a//b", "a//b", "a/b a/x/b"},
		{"a lone slash is two empty levels", "/", "/", "a a/ /a //"},
		{"+ matches one level, also an empty one", "a/+/b", "a/x/b a//b",
			"a/b a/x/y/b a/x/b/c a/x"},
		{"+ at the end needs a level", "a/+", "a/ a/b", "a a/b/c"},
		{"+ alone matches topics of one level", "+", "a", "/a a/ a/b"},
		{"/+ has an empty first level", "/+", "/a /", "a a/b"},
		{"+/+ matches a leading slash", "+/+", "/a a/ a/b /", "a a/b/c"},
		{"# matches the levels below and the parent", "a/#", "a a/ a/b a/b/c", "ab b/a A"},
		{"# alone matches everything", "#", "a /a a/b/c /", ""},
		{"+/# matches a topic of one level", "+/#", "a a/b /b", ""},
		{"+/+/# needs two levels", "+/+/#", "a/b a/b/c", "a"},
		{"# does not match topics that begin with $ [MQTT-4.7.2-1]", "#", "a$b a/$b",
			"$SYS $SYS/a $"},
		{"+ does not match a first level that begins with $ [MQTT-4.7.2-1]", "+/a", "x/a",
			"$SYS/a"},
		{"+/# does not match topics that begin with $ [MQTT-4.7.2-1]", "+/#", "x", "$SYS $SYS/a"},
		{"a named $ level is matched", "$SYS/#", "$SYS $SYS/a", "SYS/a $SYSX"},
		{"a named $ level may be followed by +", "$SYS/+", "$SYS/a $SYS/$a", "$SYS"},
		{"$ means nothing in later levels", "a/+/c", "a/$b/c", ""},
		{"a label of one node's length", xs(labelMax), xs(labelMax),
			xs(labelMax-1) + " " + xs(labelMax+1)},
		{"a label longer than a node", xs(100) + "/+", xs(100) + "/a",
			xs(68) + "/a " + xs(99) + "/a " + xs(102) + "/a"},
		{"a level of a node's length with levels below", xs(labelMax) + "/y/#", xs(labelMax) + "/y",
			xs(labelMax) + "y " + xs(labelMax) + "yy"},
		{"a filter without wildcards longer than a node", "a/" + xs(50) + "/c",
			"a/" + xs(50) + "/c", "a/" + xs(50) + "/d a/" + xs(49) + "/c"},
		{"letters beyond ASCII are bytes", "ä/+", "ä/ö", "a/ö"},
	} {
		for _, group := range []string{"", "g"} {
			t.Run(tt.name+map[string]string{"g": ", shared"}[group], func(t *testing.T) {
				tr := joined(100)
				tr.Add(1, group, tt.filter, Options{})
				var m Matches
				count := func(topic string) int {
					tr.Match([]byte(topic), 0, &m)
					return len(m.Subs) + len(m.Groups)
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
				require.True(t, tr.Remove(1, group, tt.filter))
				require.Zero(t, count(strings.Fields(tt.yes)[0]),
					"nothing matches once the filter is removed")
				tr.check(t)
				require.Equal(t, 1, tr.nodes.n, "only the root is left")
			})
		}
	}
}

func TestTreeMerging(t *testing.T) {
	type sub struct {
		sub           uint32
		group, filter string
		o             Options
	}
	for _, tt := range []struct {
		name string
		subs []sub
		from uint32
		want map[uint32]modelMatch
	}{
		{"overlapping subscriptions of one subscriber are one match with the highest QoS",
			[]sub{{1, "", "a", Options{QoS: 1}}, {1, "", "+", Options{QoS: 2}},
				{1, "", "#", Options{QoS: 0}}}, 0,
			map[uint32]modelMatch{1: {QoS: 2}}},
		{"Retain As Published of any of them counts",
			[]sub{{1, "", "a", Options{}}, {1, "", "#", Options{RetainAsPublished: true}}}, 0,
			map[uint32]modelMatch{1: {RAP: true}}},
		{"all Subscription Identifiers are kept, also equal ones",
			[]sub{{1, "", "a", Options{ID: 7}}, {1, "", "+", Options{}},
				{1, "", "#", Options{ID: 7}},
				{2, "", "#", Options{ID: 9}}}, 0,
			map[uint32]modelMatch{1: {IDs: []uint32{7, 7}}, 2: {IDs: []uint32{9}}}},
		{"identifiers of subscribers of one filter do not mix",
			[]sub{{1, "", "a", Options{ID: 1}}, {2, "", "a", Options{}},
				{3, "", "a", Options{ID: 268435455}}}, 0,
			map[uint32]modelMatch{1: {IDs: []uint32{1}}, 2: {}, 3: {IDs: []uint32{268435455}}}},
		{"No Local leaves the publisher out [MQTT-3.8.3-3]",
			[]sub{{1, "", "a", Options{NoLocal: true}}, {2, "", "a", Options{NoLocal: true}}}, 1,
			map[uint32]modelMatch{2: {}}},
		{"another subscription of the publisher still matches, with its own options",
			[]sub{{1, "", "a", Options{NoLocal: true, QoS: 2, ID: 5}},
				{1, "", "+", Options{QoS: 1, ID: 6}}}, 1,
			map[uint32]modelMatch{1: {QoS: 1, IDs: []uint32{6}}}},
		{"without No Local the publisher gets its own",
			[]sub{{1, "", "a", Options{}}}, 1,
			map[uint32]modelMatch{1: {}}},
		{"a shared subscription does not merge with others",
			[]sub{{1, "g", "a", Options{QoS: 2}}, {1, "", "a", Options{QoS: 1}}}, 0,
			map[uint32]modelMatch{1: {QoS: 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := joined(100)
			for _, s := range tt.subs {
				tr.Add(s.sub, s.group, s.filter, s.o)
			}
			var m Matches
			for range 2 {
				tr.Match([]byte("a"), tt.from, &m)
				got := m.result(t, tr)
				got.Groups = map[string]map[uint32]Options{}
				require.Empty(t, diffResults(modelResult{tt.want, got.Groups}, got))
			}
		})
	}
}

func TestMatchesAreUsedAgain(t *testing.T) {
	tr := joined(100)
	for i := range uint32(50) {
		tr.Add(i+1, "", "a/b", Options{ID: i})
		tr.Add(i+1, "", "a/+", Options{ID: i})
		tr.Add(i+1, "g", "a/+", Options{})
	}
	tr.Add(7, "", "c", Options{})
	m := Matches{table: make([]uint64, 256), gen: 1<<32 - 3}
	for range 6 { // the generation wraps around
		tr.Match([]byte("a/b"), 0, &m)
		require.Len(t, m.Subs, 50)
		require.Len(t, m.IDs, 2*49)
		require.Len(t, m.Groups, 1)
	}
	require.EqualValues(t, 4, m.gen)
	tr.Match([]byte("c"), 0, &m)
	require.Equal(t, []Match{{Sub: 7}}, m.Subs)
	require.Empty(t, m.IDs)
	require.Empty(t, m.Groups)
	tr.Match(nil, 0, &m)
	require.Empty(t, m.Subs, "no topic matches nothing")
}

func TestTreeGroups(t *testing.T) {
	t.Run("names and filters make groups, and members keep the order they came in",
		func(t *testing.T) {
			tr := joined(100)
			for i := range uint32(3) {
				tr.Add(i+1, "g", "a/+", Options{QoS: packets.QoS(i)})
			}
			tr.Add(4, "h", "a/+", Options{})
			tr.Add(1, "g", "#", Options{})
			var m Matches
			tr.Match([]byte("a/b"), 1, &m)
			require.Len(t, m.Groups, 3)
			require.Empty(t, m.Subs)
			i := slices.IndexFunc(m.Groups, func(g SharedMatch) bool { return len(g.Members) == 3 })
			require.Equal(t, []Member{{1, Options{QoS: 0}}, {2, Options{QoS: 1}},
				{3, Options{QoS: 2}}},
				m.Groups[i].Members)
			require.Equal(t, "g", m.Groups[i].Group.Name)
		})
	t.Run("members that were given out do not change", func(t *testing.T) {
		tr := joined(100)
		tr.Add(1, "g", "a", Options{})
		var m, later Matches
		tr.Match([]byte("a"), 0, &m)
		tr.Add(2, "g", "a", Options{})
		tr.Add(1, "g", "a", Options{QoS: 2})
		require.Equal(t, []Member{{1, Options{}}}, m.Groups[0].Members)
		tr.Match([]byte("a"), 0, &later)
		require.Equal(t, []Member{{1, Options{QoS: 2}}, {2, Options{}}}, later.Groups[0].Members)
		require.Same(t, m.Groups[0].Group, later.Groups[0].Group,
			"the group is the same as long as it has members")
	})
	t.Run("a group ends with its last member, wherever it stands", func(t *testing.T) {
		tr := joined(100)
		names := []string{"a", "b", "c", "d"}
		for _, gone := range names {
			for _, n := range names {
				tr.Add(1, n, "x", Options{})
			}
			require.True(t, tr.Remove(1, gone, "x"))
			require.False(t, tr.Remove(1, gone, "x"))
			tr.check(t)
			var m Matches
			tr.Match([]byte("x"), 0, &m)
			require.Len(t, m.Groups, 3)
		}
		require.Equal(t, 3, tr.RemoveAll(1))
		tr.check(t)
		require.Equal(t, 1, tr.nodes.n)
	})
}

func TestTreeSubscriptions(t *testing.T) {
	tr := joined(100)
	long := strings.Repeat("long/", 100) + "+"
	type sub struct {
		group, filter string
		o             Options
	}
	want := []sub{
		{"", "a", Options{QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 2,
			ID: 268435455}},
		{"g", "a", Options{QoS: 1}},
		{"", "a/#", Options{RetainHandling: 1}},
		{"", "/", Options{ID: 1}},
		{"", "#", Options{}},
		{"", "+//+", Options{}},
		{"h", long, Options{}},
		{"", long + "/x", Options{}},
		{"", "$SYS/+", Options{}},
	}
	for _, s := range want {
		old, existed, _ := tr.Add(3, s.group, s.filter, s.o)
		require.False(t, existed)
		require.Zero(t, old)
	}
	tr.Add(4, "", "a", Options{})
	list := func() (got []sub) {
		tr.Each(3, func(group, filter string, o Options) bool {
			got = append(got, sub{group, filter, o})
			require.Equal(t, len(want), tr.Count(3), "yield may call the tree")
			return true
		})
		return got
	}
	require.Equal(t, want, list(), "each gives everything back, oldest first")
	require.Equal(t, len(want), tr.Count(3))
	require.Equal(t, len(want)+1, tr.Len())

	old, existed, _ := tr.Add(3, "", "a", Options{QoS: 1})
	require.True(t, existed)
	require.Equal(t, want[0].o, old)
	want[0].o = Options{QoS: 1}
	require.Equal(t, want, list(), "a subscription that is replaced keeps its place")

	o, ok := tr.Get(3, "g", "a")
	require.True(t, ok)
	require.Equal(t, want[1].o, o)
	for _, k := range []subscriptionKey{
		{3, "h", "a", ByClient}, {4, "g", "a", ByClient}, {3, "", "b", ByClient},
		{3, "", "a/+", ByClient}, {3, "", "a/+/b/#", ByClient}, {9, "", "a", ByClient},
		{0, "", "a", ByClient}, {3, "g", "a", ByServer},
	} {
		_, ok = tr.GetBy(k.by, k.sub, k.group, k.filter)
		require.False(t, ok, "%v is not there", k)
		require.False(t, tr.RemoveBy(k.by, k.sub, k.group, k.filter))
	}
	n := 0
	tr.Each(3, func(string, string, Options) bool { n++; return n < 2 })
	require.Equal(t, 2, n, "yield ends it")

	require.True(t, tr.Remove(3, "", "#"))
	want = slices.Delete(want, 4, 5)
	require.Equal(t, want, list())
	tr.check(t)
	require.Equal(t, len(want), tr.RemoveAll(3))
	require.Zero(t, tr.RemoveAll(3))
	require.Zero(t, tr.RemoveAll(77))
	require.Zero(t, tr.Count(3))
	require.Zero(t, tr.Count(77))
	require.Empty(t, list())
	require.Equal(t, 1, tr.Len())
	tr.check(t)
	require.PanicsWithValue(t, "BUG: subscriber 0", func() { tr.Add(0, "", "a", Options{}) })
}

func TestTreeManySubscribersOfOneFilter(t *testing.T) {
	for _, group := range []string{"", "g"} {
		const n = 1000
		tr := joined(n)
		for i := range uint32(n) {
			tr.Add(i+1, group, "a/+", Options{QoS: packets.QoS(i % 3)})
			_, existed, _ := tr.Add(i+1, group, "a/+", Options{QoS: packets.QoS(i % 3)})
			require.True(t, existed)
		}
		tr.check(t)
		require.Equal(t, n, tr.index.len())
		for i := range uint32(n) {
			if i > n-30 {
				tr.check(t)
			}
			require.True(t, tr.Remove((i*7)%n+1, group, "a/+"))
		}
		tr.check(t)
		require.Zero(t, tr.index.len())
		require.Zero(t, tr.Len())
	}
}

func TestTreeVersion(t *testing.T) {
	// The tables of counters may collide, so nothing is said of what does not match.
	for _, tt := range []struct{ filter, topic string }{
		{"a", "a"}, {"a/b/c", "a/b/c"}, {"a/+", "a/b"}, {"a/#", "a"}, {"+", "a"}, {"#", "a/b"},
		{"+/b", "/b"}, {"/+", "/b"}, {"$SYS/#", "$SYS/a"},
	} {
		for _, group := range []string{"", "g"} {
			tr := joined(100)
			last := tr.version([]byte(tt.topic))
			grown := func(what string) {
				t.Helper()
				v := tr.version([]byte(tt.topic))
				require.Greater(t, v, last, "%s %s is seen in the version of %s", what, tt.filter,
					tt.topic)
				last = v
			}
			same := func(what string) {
				t.Helper()
				require.Equal(t, last, tr.version([]byte(tt.topic)), what)
			}
			tr.Add(1, group, tt.filter, Options{})
			grown("adding")
			tr.Add(1, group, tt.filter, Options{})
			same("an add that changes nothing")
			tr.Add(1, group, tt.filter, Options{QoS: 1})
			grown("changing the options of")
			tr.Add(2, group, tt.filter, Options{QoS: 1})
			grown("a second subscriber of")
			tr.Remove(1, group, tt.filter)
			grown("removing")
			tr.Remove(1, group, tt.filter)
			same("a remove of nothing")
			tr.RemoveAll(2)
			grown("removing all of the subscriber of")
		}
	}
}

// A versionedCache is what a connection does with the tree.
type versionedCache struct {
	version uint64
	m       Matches
	there   map[uint32]bool
}

func (c *versionedCache) has(t *Tree, topic []byte) map[uint32]bool {
	if v := t.version(topic); c.there == nil || v != c.version {
		c.version, c.there = v, map[uint32]bool{}
		t.Match(topic, 0, &c.m)
		for _, x := range c.m.Subs {
			c.there[x.Sub] = true
		}
		for _, g := range c.m.Groups {
			for _, x := range g.Members {
				c.there[x.Sub] = true
			}
		}
	}
	return c.there
}

func TestTreeVersionWithWriters(t *testing.T) {
	tr := joined(100)
	topic := []byte("a/b")
	filters := []string{"a/b", "a/+", "+/b", "#"}
	// The steps of each writer. After an odd one its subscription is there, after an even one it
	// is not.
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
					tr.Add(sub, group, filter, Options{ID: i})
				case i%4 == 1:
					tr.Remove(sub, group, filter)
				default:
					tr.RemoveAll(sub)
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
					// Where no step was under way meanwhile, the cache must show what the last
					// one did.
					if before[w] == started[w].Load() {
						checks.Add(1)
						if there[uint32(w+1)] != (before[w]%2 == 1) {
							t.Errorf("after step %d of its writer, the cache has subscriber %d: %v",
								before[w], w+1, there[uint32(w+1)])
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
	require.Zero(t, tr.Len())
}

func TestTreeMatchDoesNotAllocate(t *testing.T) {
	if lock.Checked {
		t.Skip("locks that know their holder allocate")
	}
	tr := joined(100)
	for k := range 2000 {
		tr.Add(uint32(k%20+1), "", wildFilter(k), Options{QoS: 1, ID: uint32(k)})
	}
	for i := range uint32(100) {
		tr.Add(i+1, "", "w/#", Options{ID: i})
		tr.Add(i+1, "g", "w/#", Options{})
	}
	var m Matches
	topics := [][]byte{[]byte("w/s1/d1/t"), []byte("w/s15/d0/x/y"), []byte("none"),
		[]byte("$SYS/x")}
	require.Zero(t, testing.AllocsPerRun(200, func() {
		for _, topic := range topics {
			tr.version(topic)
			tr.Match(topic, 1, &m)
		}
	}))
	tr.Add(1, "", "z/+", Options{})
	require.Zero(t, testing.AllocsPerRun(200, func() {
		tr.Add(1, "", "z/y", Options{})
		tr.Get(1, "", "z/y")
		tr.Remove(1, "", "z/y")
	}), "neither do add and remove where there is room")
}

func TestTreeDeepTopics(t *testing.T) {
	const levels = 32_000
	deep := strings.Repeat("/", levels)
	tr := joined(100)
	filters := []string{deep, strings.Repeat("+/", levels) + "+",
		strings.Repeat("/", levels-1) + "/#", "/+" + strings.Repeat("/", levels-1)}
	for i, f := range filters {
		tr.Add(uint32(i+1), "", f, Options{})
		tr.Each(uint32(i+1), func(_, filter string, _ Options) bool {
			require.True(t, f == filter, "the filter comes back as it was")
			return true
		})
	}
	var m Matches
	tr.Match([]byte(deep), 0, &m)
	require.Len(t, m.Subs, len(filters))
	tr.Match([]byte(deep+"/"), 0, &m)
	require.Len(t, m.Subs, 1, "one level more is for # only")
	tr.check(t)
	for i, f := range filters {
		require.True(t, tr.Remove(uint32(i+1), "", f))
	}
	tr.check(t)
	require.Equal(t, 1, tr.nodes.n)
}

func TestTreeManyFiltersForOneTopic(t *testing.T) {
	const levels = 10
	tr := joined(100)
	for i := range 1 << levels {
		var f []string
		for l := range levels {
			f = append(f, []string{"a", "+"}[i>>l&1])
		}
		tr.Add(1, "", strings.Join(f, "/"), Options{ID: uint32(i + 1)})
	}
	var m Matches
	topic := strings.TrimSuffix(strings.Repeat("a/", levels), "/")
	tr.Match([]byte(topic), 0, &m)
	require.Len(t, m.Subs, 1)
	slices.Sort(m.IDs)
	require.EqualValues(t, 1, m.IDs[0])
	require.Len(t, slices.Compact(m.IDs), 1<<levels, "each identifier is there once")
	tr.check(t)
	require.Equal(t, 1<<levels, tr.RemoveAll(1))
	require.Equal(t, 1, tr.nodes.n)
}

func TestTreeNodeIsACacheLine(t *testing.T) {
	require.EqualValues(t, 64, unsafe.Sizeof(node{}))
	require.EqualValues(t, 32, unsafe.Sizeof(subEntry{}))
	require.EqualValues(t, 8192, unsafe.Sizeof(segment{}))
}

// Pages show each subscription once that is there all the time, in the order of Each.
func TestPagesOfSubscriptions(t *testing.T) {
	tr := New(Limits{})
	other, sub := tr.Join(), tr.Join()
	require.Empty(t, tr.Page(sub, nil, 10))
	var want []string
	for i := range 100 {
		filter, group := fmt.Sprint("f/", i), ""
		if i%3 == 0 {
			filter, group = filter+"/#", "g"
		}
		want = append(want, group+" "+filter)
		tr.Restore(sub, group, filter, Options{QoS: 1, ID: uint32(i)})
		tr.Restore(other, group, filter, Options{})
	}
	all := func(size int, between func(last *Subscription)) (got []string) {
		var after *Subscription
		for range 1000 {
			page := tr.Page(sub, after, size)
			require.LessOrEqual(t, len(page), size)
			if len(page) == 0 {
				return got
			}
			for i := range page {
				require.EqualValues(t, len(got), page[i].Number)
				got = append(got, page[i].Group+" "+page[i].Filter)
				require.Equal(t, packets.QoS1, page[i].QoS)
			}
			after = &page[len(page)-1]
			between(after)
		}
		return got
	}
	for _, size := range []int{1, 7, 50, 100, 1000} {
		require.Equal(t, want, all(size, func(*Subscription) {}), "pages of %d", size)
	}
	// The last one of a page ends, and the reader goes on behind it.
	tr.Remove(sub, "", "f/10")
	page := tr.Page(sub, &Subscription{Filter: "f/10", Number: 10}, 2)
	require.Equal(t, "f/11", page[0].Filter)
	require.Empty(t, tr.Page(sub, &Subscription{Filter: "f/10", Number: 1000}, 2))
	tr.Leave(sub)
	require.Empty(t, tr.Page(sub, &Subscription{Filter: "f/11", Number: 11}, 2))
}

// What is there all the time is in some page, whatever else ends and begins between two pages.
func TestPagesMissNothingThatStays(t *testing.T) {
	for name, between := range map[string]func(tr *Tree, sub uint32, last *Subscription){
		"the last one of the page is made anew": func(tr *Tree, sub uint32, last *Subscription) {
			tr.Remove(sub, "", last.Filter)
			tr.Restore(sub, "", last.Filter, Options{})
		},
		"all of the page end": func(tr *Tree, sub uint32, last *Subscription) {
			for _, s := range tr.Page(sub, nil, 1000) {
				if s.Number <= last.Number {
					tr.Remove(sub, "", s.Filter)
				}
			}
		},
		"all of the page are made anew, the last one first": func(tr *Tree, sub uint32,
			last *Subscription) {
			for _, s := range slices.Backward(tr.Page(sub, nil, 1000)) {
				if s.Number <= last.Number {
					tr.Remove(sub, "", s.Filter)
					tr.Restore(sub, "", s.Filter, Options{})
				}
			}
		},
		"the options of the last one change": func(tr *Tree, sub uint32, last *Subscription) {
			tr.Restore(sub, "", last.Filter, Options{QoS: 2})
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := New(Limits{})
			sub := tr.Join()
			for i := range 20 {
				tr.Restore(sub, "", fmt.Sprint("f/", i), Options{QoS: 1})
			}
			first := tr.Page(sub, nil, 5)
			between(tr, sub, &first[4])
			var got []string
			for _, s := range tr.Page(sub, &first[4], 1000) {
				got = append(got, s.Filter)
			}
			for i := 5; i < 20; i++ {
				require.Contains(t, got, fmt.Sprint("f/", i))
			}
			require.Equal(t, "f/5", got[0])
		})
	}
}

// The numbers of entries go round: then the order stays.
func TestNumbersOfEntriesGoRound(t *testing.T) {
	tr := New(Limits{})
	sub := tr.Join()
	tr.Restore(sub, "", "a", Options{})
	e := tr.entries.at(tr.subs.at(sub).newest)
	e.opts = (1<<25-2)<<optNumber | e.opts
	for _, filter := range []string{"b", "c", "d"} {
		tr.Restore(sub, "", filter, Options{QoS: 1, RetainHandling: 2, By: ByServer})
	}
	page := tr.Page(sub, nil, 2)
	require.Equal(t, []string{"a", "b"}, []string{page[0].Filter, page[1].Filter})
	require.Equal(t, Options{QoS: 1, RetainHandling: 2, By: ByServer}, page[1].Options)
	tr.RemoveBy(ByServer, sub, "", "b")
	tr.Restore(sub, "", "b", Options{})
	rest := tr.Page(sub, &page[1], 10)
	require.Equal(t, []string{"c", "d", "b"},
		[]string{rest[0].Filter, rest[1].Filter, rest[2].Filter})
}

func TestFindNamesEachSubscriptionThatMatches(t *testing.T) {
	tree := New(Limits{})
	a, b := tree.Join(), tree.Join()
	add := func(sub uint32, group, filter string, o Options) {
		_, _, err := tree.Add(sub, group, filter, o)
		require.NoError(t, err)
	}
	add(a, "", "x/y", Options{QoS: 1})
	add(a, "", "x/#", Options{QoS: 2, NoLocal: true})
	add(b, "g", "x/+", Options{})
	add(a, "g", "x/+", Options{QoS: 1})
	add(b, "", "y", Options{})
	var found []string
	all, more := tree.Find([]byte("x/y"), 100)
	require.False(t, more)
	for _, f := range all {
		name := ""
		if f.Group != nil {
			name = f.Group.Name
			require.Equal(t, 2, tree.Members(f.Group))
		}
		found = append(found, fmt.Sprint(f.Sub, name, f.Filter, f.QoS, f.NoLocal))
	}
	slices.Sort(found)
	require.Equal(t, []string{
		fmt.Sprint(a, "g", "x/+", 1, false), fmt.Sprint(a, "", "x/#", 2, true),
		fmt.Sprint(a, "", "x/y", 1, false), fmt.Sprint(b, "g", "x/+", 0, false),
	}, found)
	for most := range 6 {
		some, more := tree.Find([]byte("x/y"), most)
		require.Equal(t, all[:min(most, 4)], append([]Found{}, some...))
		require.Equal(t, most < 4, more)
	}
	all, more = tree.Find([]byte("z"), 1)
	require.Empty(t, all)
	require.False(t, more)
}
