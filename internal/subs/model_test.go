package subs

import (
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file checks the subscription tree from inside and against a model.

// check fails the test if the parts of t contradict one another.
func (t *Tree) check(tb testing.TB) {
	tb.Helper()
	r := require.New(tb)
	t.lock()
	defer t.unlock()

	// Every node that is taken is found from its parent, is needed, and is counted there.
	t.nodes.check(tb)
	t.entries.check(tb)
	t.groups.check(tb)
	t.subs.check(tb)
	kids := map[uint32]uint32{}
	edges, entries, groups := 0, 0, 0
	for i := range t.nodes.all() {
		if i == wildRoot {
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
		r.False(n.list.n == 0 && n.groups == 0 && n.kids == 0 && n.plus == 0 && n.hash == 0,
			"node %d is of no use", i)
		entries += t.checkList(tb, nodeOwner(i))
		for g := t.groupAt(n.groups); g != nil; g = g.after {
			r.Equal(i, g.node)
			r.NotZero(g.list.n, "group %s is empty", g.Name)
			r.Same(g, t.named(i, g.Name))
			entries += t.checkList(tb, g.owner())
			groups++
		}
	}
	for i := range t.nodes.all() {
		r.Equal(kids[i], t.nodes.at(i).kids, "how many children node %d has", i)
	}
	served, twins := t.countAllServed()
	r.Equal([]int{served, twins}, []int{t.served, t.twins}, "made by the server; and beside another")
	r.Equal(t.entries.n, entries, "entries in the lists")
	r.Equal(groups, t.groups.n)
	r.Equal(groups, t.names.len())
	r.Equal(edges, t.edges.len(), "edges in the table")
	for _, d := range []*table{&t.edges, &t.index, &t.names} {
		d.check(tb)
	}
	t.checkBytes(tb)

	inRings := 0
	for sub := range t.subs.all() {
		s := t.subs.at(sub)
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
	r.Equal(t.entries.n, inRings, "entries in the rings")
}

// countAllServed counts what the server made, and of it what is beside one of the client.
func (t *Tree) countAllServed() (served, twins int) {
	for i := range t.entries.all() {
		if e := t.entries.at(i); e.by() == ByServer {
			served++
			if t.find(e.owner, e.sub, ByClient) != 0 {
				twins++
			}
		}
	}
	return served, twins
}

// checkBytes fails the test if what is counted of groups and patterns is not what there is.
func (t *Tree) checkBytes(tb testing.TB) {
	var n int64
	for i := range t.groups.all() {
		n += t.groupAt(i).bytes()
	}
	for sub, p := range t.many {
		n += int64(len(p.of)+len(p.shared)) * patternCost
		want := &patterns{of: map[uint64]uint32{}, shared: map[uint64]uint32{}}
		i := t.subs.at(sub).newest
		for range t.count(sub) {
			e, group := t.entries.at(i), ""
			if g := t.ownerGroup(e.owner); g != nil {
				group = g.Name
			}
			b := t.appendFilter(nil, t.ownerNode(e.owner))
			want.add(t.patternKey(want, group, b), t.filterKey(group, b))
			i = e.older
		}
		require.Equal(tb, want, p, "the patterns of subscriber %d", sub)
	}
	require.Equal(tb, n, t.other, "bytes of groups and patterns")
	require.GreaterOrEqual(tb, t.counted, int64(0))
}

func (t *Tree) checkList(tb testing.TB, ow owner) int {
	n, prev := 0, uint32(0)
	l := t.ownerList(ow)
	for i := l.first; i != 0; i = t.entries.at(i).next {
		e := t.entries.at(i)
		require.Equal(tb, ow, e.owner)
		require.Equal(tb, prev, e.prev)
		require.Equal(tb, i, t.find(ow, e.sub, e.by()), "the entry of subscriber %d is not found", e.sub)
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
	by            Maker
}

// A treeModel does what a tree does, slowly.
type treeModel map[subscriptionKey]Options

type modelMatch struct {
	QoS packets.QoS
	RAP bool
	IDs []uint32
}

type modelResult struct {
	Subs   map[uint32]modelMatch
	Groups map[string]map[uint32]Options // by "name filter"
}

func (m treeModel) match(topic string, from uint32) modelResult {
	r := modelResult{map[uint32]modelMatch{}, map[string]map[uint32]Options{}}
	for k, o := range m {
		if !packets.MatchTopic(k.filter, topic) {
			continue
		}
		if k.group != "" {
			g := k.group + " " + k.filter
			if r.Groups[g] == nil {
				r.Groups[g] = map[uint32]Options{}
			}
			if twin, ok := r.Groups[g][k.sub]; ok {
				qos := max(twin.QoS, o.QoS)
				if k.by == ByServer {
					o = twin
				}
				o.QoS = qos
			}
			r.Groups[g][k.sub] = o
			continue
		}
		if o.NoLocal && k.sub == from {
			continue
		}
		x := r.Subs[k.sub]
		x.QoS, x.RAP = max(x.QoS, o.QoS), x.RAP || o.RetainAsPublished
		if o.ID != 0 {
			x.IDs = append(x.IDs, o.ID)
			slices.Sort(x.IDs)
		}
		r.Subs[k.sub] = x
	}
	return r
}

// result brings what a tree found into the form of the model.
func (m *Matches) result(tb testing.TB, t *Tree) modelResult {
	r := modelResult{map[uint32]modelMatch{}, map[string]map[uint32]Options{}}
	for _, x := range m.Subs {
		require.NotContains(tb, r.Subs, x.Sub, "a subscriber is there twice")
		ids := slices.Clone(x.IDs(m.IDs))
		slices.Sort(ids)
		r.Subs[x.Sub] = modelMatch{x.QoS, x.RetainAsPublished, ids}
	}
	for _, g := range m.Groups {
		name := g.Group.Name + " " + string(t.appendFilter(nil, g.Group.node))
		require.NotContains(tb, r.Groups, name, "a group is there twice")
		r.Groups[name] = map[uint32]Options{}
		for _, x := range g.Members {
			require.NotContains(tb, r.Groups[name], x.Sub, "a member is there twice")
			r.Groups[name][x.Sub] = x.Options
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
	return cmp.Diff(want, got, cmp.AllowUnexported(Options{}))
}

// patterns counts the patterns of a subscriber, in another way than the tree: of each the filter
// with the most shared subscriptions.
func (m treeModel) patterns(sub uint32) (n int) {
	filters := map[string]int{}
	plain := map[string]bool{}
	for k := range m {
		if k.sub != sub {
			continue
		}
		if k.group != "" {
			filters[k.filter]++
		} else {
			plain[pattern(k.filter)] = true
		}
	}
	most := map[string]int{}
	for f, n := range filters {
		most[pattern(f)] = max(most[pattern(f)], n)
	}
	for _, k := range most {
		n += k
	}
	return n + len(plain)
}

func pattern(filter string) string {
	if !strings.ContainsAny(filter, "+#") {
		return ""
	}
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		if l != "+" && l != "#" {
			levels[i] = "x"
		}
	}
	return strings.Join(levels, "/")
}

// FuzzTree drives a tree and a model with the same steps. The tree hashes with a new seed each
// time, so that coverage is never the same twice: fuzz with -fuzzminimizetime 1x.
func FuzzTree(f *testing.F) {
	for i := range 8 {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		b := make([]byte, 400)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		runTree(t, steps[:min(len(steps), 2000)]) // the model is quadratic
	})
}

func TestTreeAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 40 {
		b := make([]byte, 2000)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		runTree(t, b)
	}
}

var fuzzLevels = []string{"a", "b", "", "$x", "+", "+", "#", strings.Repeat("y", labelMax),
	strings.Repeat("y", labelMax+3)}

// fuzzName makes a topic of two bytes, or with wild a filter.
func fuzzName(a, b byte, wild bool) string {
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

// runTree reads steps of four bytes and compares after each.
func runTree(tb testing.TB, steps []byte) {
	var counted int64
	tr, model := New(Limits{Overlapping: 12, Count: func(n int64) { counted += n }}), treeModel{}
	tr.joins(16)
	empty := counted
	var m Matches
	for ; len(steps) >= 4; steps = steps[4:] {
		op, who, a, b := steps[0], steps[1], steps[2], steps[3]
		sub := uint32(who%16) + 1
		k := subscriptionKey{sub, []string{"", "", "g", "h"}[who>>4&3], fuzzName(a, b, true), Maker(a >> 7)}
		old, existed := model[k]
		if got, ok := tr.GetBy(k.by, k.sub, k.group, k.filter); got != old || ok != existed {
			tb.Fatalf("get of %v: %v %v, want %v %v", k, got, ok, old, existed)
		}
		switch op % 16 {
		case 0, 1, 2, 3, 4, 5, 6, 7:
			o := Options{packets.QoS(op >> 4 % 3), k.group == "" && op&64 != 0, op&128 != 0,
				who >> 6 % 3, k.by, uint32(who >> 5)}
			gotOld, got, err := tr.Add(k.sub, k.group, k.filter, o)
			if gotOld != old || got != existed {
				tb.Fatalf("add of %v: %v %v, want %v %v", k, gotOld, got, old, existed)
			}
			if err == nil {
				model[k] = o
			} else if existed || err != ErrOverlapping || model.patterns(k.sub) < 12 {
				tb.Fatalf("add of %v is refused: %v", k, err)
			}
			if n := model.patterns(k.sub); n > 12 {
				tb.Fatalf("%d has %d patterns", k.sub, n)
			}
		case 8, 9, 10, 11, 12:
			if got := tr.RemoveBy(k.by, k.sub, k.group, k.filter); got != existed {
				tb.Fatalf("remove of %v: %v, want %v", k, got, existed)
			}
			delete(model, k)
		case 13:
			want := len(model)
			maps.DeleteFunc(model, func(k subscriptionKey, _ Options) bool { return k.sub == sub })
			if got := tr.RemoveAll(sub); got != want-len(model) {
				tb.Fatalf("removeAll of %d: %d, want %d", sub, got, want-len(model))
			}
		default:
			want := treeModel{}
			maps.Copy(want, model)
			maps.DeleteFunc(want, func(k subscriptionKey, _ Options) bool { return k.sub != sub })
			got := treeModel{}
			tr.Each(sub, func(group, filter string, o Options) bool {
				got[subscriptionKey{sub, group, filter, o.By}] = o
				return true
			})
			if !maps.Equal(want, got) || tr.Count(sub) != len(want) {
				tb.Fatalf("subscriptions of %d (%d of them): %v, want %v", sub, tr.Count(sub), got,
					want)
			}
		}
		topic := fuzzName(b, a, false)
		tr.Match([]byte(topic), sub, &m)
		if d := diffResults(model.match(topic, sub), m.result(tb, tr)); d != "" {
			tb.Fatalf("match of %s: %s", topic, d)
		}
		if tr.Len() != len(model) {
			tb.Fatalf("%d subscriptions, want %d", tr.Len(), len(model))
		}
	}
	tr.check(tb)
	for sub := range uint32(16) {
		tr.RemoveAll(sub + 1)
	}
	tr.check(tb)
	if n := tr.nodes.n; n != 1 {
		tb.Fatalf("%d nodes in an empty tree", n)
	}
	if counted != empty {
		tb.Fatalf("%d bytes in an empty tree", counted-empty)
	}
}
