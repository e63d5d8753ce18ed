package subs

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file holds what the tree may take, and that it gives it back.

// overlapping makes filter i of those that have a or + at each of so many levels: all match
// a/a/a...
func overlapping(i, levels int) string {
	s := make([]string, levels)
	for k := range s {
		if s[k] = "a"; i>>k&1 != 0 {
			s[k] = "+"
		}
	}
	return strings.Join(s, "/")
}

func TestOneSubscriberGetsAMessageBySoManySubscriptionsAtMost(t *testing.T) {
	const most = 100
	tr := New(Limits{Overlapping: most})
	tr.joins(3)
	n := 0
	for i := range 1 << 10 {
		if _, _, err := tr.Add(1, "", overlapping(i, 10), Options{ID: uint32(i + 1)}); err == nil {
			n++
		} else {
			require.ErrorIs(t, err, ErrOverlapping)
		}
	}
	require.Equal(t, most, n)
	tr.check(t)
	var m Matches
	topic := []byte(strings.TrimSuffix(strings.Repeat("a/", 10), "/"))
	tr.Match(topic, 0, &m)
	require.Len(t, m.IDs, most)

	_, existed, err := tr.Add(1, "", overlapping(0, 10), Options{ID: 7})
	require.True(t, existed)
	require.NoError(t, err, "what replaces a subscription is taken")
	for i := range 2000 {
		_, _, err = tr.Add(1, "", fmt.Sprint("b/", i, "/c"), Options{})
		require.NoError(t, err, "filters without wildcards never match together")
		_, _, err = tr.Add(2, "", fmt.Sprint("b/", i, "/#"), Options{})
		require.NoError(t, err, "nor do filters that have their wildcards in the same places")
	}
	require.True(t, tr.Remove(1, "", overlapping(5, 10)))
	_, _, err = tr.Add(1, "", overlapping(1000, 10), Options{})
	require.NoError(t, err, "one that has gone makes room")
	_, _, err = tr.Add(1, "", overlapping(1001, 10), Options{})
	require.ErrorIs(t, err, ErrOverlapping)
	tr.check(t)
	tr.RemoveAll(1)
	require.NotContains(t, tr.many, uint32(1))
	tr.check(t)

	n = 0 // shared ones to one filter
	for i := range 1000 {
		_, _, err := tr.Add(3, fmt.Sprint("g", i), "x", Options{})
		_, _, err2 := tr.Add(3, fmt.Sprint("h", i), fmt.Sprint("y/", i), Options{})
		require.NoError(t, err2, "groups of different filters do not match together")
		if err == nil {
			n++
		}
	}
	tr.Match([]byte("x"), 0, &m)
	require.Len(t, m.Groups, n)
	require.InDelta(t, most, n, 1)
	tr.check(t)
}

func TestSubscriptionsThatDoNotFitAreRefused(t *testing.T) {
	var used int64
	const most = 1 << 20
	tr := New(Limits{
		Fits:  func(n int64) bool { return used+n <= most },
		Count: func(n int64) { used += n },
	})
	tr.joins(2)
	n := 0
	filter := func(i int) string { return fmt.Sprint(i, strings.Repeat("/+", 30)) }
	for ; ; n++ {
		_, _, err := tr.Add(1, "", filter(n), Options{})
		if err != nil {
			require.ErrorIs(t, err, ErrMemory)
			break
		}
		require.LessOrEqual(t, used, int64(most))
	}
	require.Greater(t, n, 300)
	require.Equal(t, n, tr.Len())
	tr.check(t)
	_, existed, err := tr.Add(1, "", filter(0), Options{QoS: 1})
	require.True(t, existed)
	require.NoError(t, err)
	require.False(t, tr.Restore(2, "", filter(n), Options{}), "what was there before is taken")
	require.Greater(t, used, int64(most))
	tr.Leave(1)
	tr.Leave(2)
	require.Zero(t, used)
	require.EqualValues(t, 1, tr.Join())
}

// What counts is what the memory of the process shows.
func TestTheTreeCountsWhatItTakes(t *testing.T) {
	for _, tt := range []struct {
		name string
		add  func(tr *Tree, i int)
	}{
		{"filters without wildcards", func(tr *Tree, i int) {
			tr.Add(1, "", fmt.Sprint("devices/", i, "/temperature"), Options{})
		}},
		{"deep filters", func(tr *Tree, i int) {
			tr.Add(1, "", fmt.Sprint(i, strings.Repeat("/+", 9)), Options{})
		}},
		{"shared ones", func(tr *Tree, i int) {
			tr.Add(1, fmt.Sprint("g", i), fmt.Sprint("a/", i%100, "/+"), Options{})
		}},
		{"many subscribers of one filter", func(tr *Tree, i int) {
			tr.Add(tr.Join(), "", "a/#", Options{})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var used int64
			before := heapInUse()
			tr := New(Limits{Count: func(n int64) { used += n }})
			tr.joins(1)
			empty := heapInUse() - before
			for i := range 50_000 {
				tt.add(tr, i)
			}
			var m Matches // members that were asked for are kept
			for i := range 100 {
				tr.Match(fmt.Append(nil, "a/", i, "/x"), 0, &m)
			}
			m = Matches{}
			heap := heapInUse() - before - empty
			require.InEpsilon(t, heap, used, 0.15, "%d bytes of the heap", heap)
			runtime.KeepAlive(tr)
		})
	}
}

// Filters of one subscriber that leaves, among those of another one that stays.
func TestTheTreeGivesMemoryBack(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var used int64
	tr := New(Limits{Count: func(n int64) { used += n }})
	tr.joins(2)
	stays := func(i int) string { return fmt.Sprint("stays/", i, "/+") }
	for i := range 100 {
		tr.Add(2, "", stays(i), Options{})
	}
	before, heap := used, heapInUse()
	for i := range 100_000 {
		tr.Add(1, "", fmt.Sprint(i, "/+/x/+"), Options{})
		tr.Add(1, fmt.Sprint("g", i), "a", Options{})
		if rng.IntN(10_000) == 0 {
			tr.Add(2, "", stays(100+i), Options{})
		}
	}
	most := used
	require.Greater(t, most, int64(20<<20))
	for i := range 50_000 {
		tr.Remove(1, "", fmt.Sprint(i, "/+/x/+"))
	}
	require.Less(t, used, most-before-most/5, "chunks and segments go one by one")
	tr.Leave(1)
	tr.check(t)
	require.Less(t, used-before, int64(500<<10), "10 that came meanwhile keep a chunk each at most")
	require.Less(t, heapInUse()-heap, int64(1<<20))
	tr.Leave(2)
	require.Zero(t, used)
}
