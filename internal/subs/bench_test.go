package subs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"testing"
)

// The shape is that of the load generator's scenario "wild": filters over 20 subscribers, 3 in 5
// of them without wildcards.
const benchSubscribers = 20

func wildFilters(n int) []string {
	s := make([]string, n)
	for k := range s {
		s[k] = wildFilter(k)
	}
	return s
}

func wildTree(filters []string) *Tree {
	t := joined(benchSubscribers)
	for k, f := range filters {
		t.Add(uint32(k%benchSubscribers+1), "", f, Options{QoS: 1})
	}
	return t
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

var benchSizes = []int{1_000, 100_000, 1_000_000}

func BenchmarkTreeMatch(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			filters := wildFilters(n)
			before := heapInUse()
			t := wildTree(filters)
			perSub := float64(heapInUse()-before) / float64(n)
			r := rand.New(rand.NewPCG(1, 2))
			topics := make([][]byte, 1<<16)
			for i := range topics {
				topics[i] = wildTopic(r.IntN(n), r)
			}
			var m Matches
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				t.Match(topics[i%len(topics)], 0, &m)
				if len(m.Subs) != 1 {
					b.Fatalf("%d matches for %s", len(m.Subs), topics[i%len(topics)])
				}
			}
			b.ReportMetric(perSub, "B/sub")
			runtime.KeepAlive(t)
			runtime.KeepAlive(filters)
		})
	}
}

// Adds all filters to an empty tree, growing included; then removes them in the same order (as
// clients do), at random (which misses every cache, with the filters themselves), or with
// removeAll.
func BenchmarkTreeAddRemove(b *testing.B) {
	for _, n := range benchSizes {
		filters := wildFilters(n)
		order := rand.New(rand.NewPCG(3, 4)).Perm(n)
		phase := func(name string, before, timed func(t *Tree)) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for range b.N {
					b.StopTimer()
					t := joined(benchSubscribers)
					before(t)
					b.StartTimer()
					timed(t)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n),
					"ns/filter")
			})
		}
		fill := func(t *Tree) {
			for k, f := range filters {
				t.Add(uint32(k%benchSubscribers+1), "", f, Options{QoS: 1})
			}
		}
		phase("add", func(*Tree) {}, fill)
		phase("remove in order", fill, func(t *Tree) {
			for k, f := range filters {
				t.Remove(uint32(k%benchSubscribers+1), "", f)
			}
		})
		phase("remove at random", fill, func(t *Tree) {
			for _, k := range order {
				t.Remove(uint32(k%benchSubscribers+1), "", filters[k])
			}
		})
		phase("removeAll", fill, func(t *Tree) {
			for s := range uint32(benchSubscribers) {
				t.RemoveAll(s + 1)
			}
		})
	}
}

func BenchmarkTreeVersion(b *testing.B) {
	t := joined(0)
	r := rand.New(rand.NewPCG(1, 2))
	topics := make([][]byte, 1024)
	for i := range topics {
		topics[i] = wildTopic(r.IntN(100_000), r)
	}
	b.ReportAllocs()
	var sum uint64
	for i := range b.N {
		sum += t.version(topics[i%len(topics)])
	}
	_ = sum
}

// One filter with many subscribers.
func BenchmarkTreeFanOut(b *testing.B) {
	const n = 10_000
	for _, overlap := range []bool{false, true} {
		t := joined(n)
		for i := range uint32(n) {
			t.Add(i+1, "", "b/o", Options{ID: i % 2})
		}
		if overlap {
			t.Add(1, "", "b/#", Options{})
		}
		b.Run(fmt.Sprintf("match/overlap=%v", overlap), func(b *testing.B) {
			var m Matches
			b.ReportAllocs()
			for range b.N {
				t.Match([]byte("b/o"), 0, &m)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/subscriber")
		})
	}
	for _, group := range []string{"", "g"} {
		t := joined(n)
		for i := range uint32(n) {
			t.Add(i+1, group, "b/o", Options{})
		}
		b.Run("leave and join/group="+group, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				s := uint32(i*7919%n + 1)
				t.Remove(s, group, "b/o")
				t.Add(s, group, "b/o", Options{})
			}
		})
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
