// Package histogram counts values in fixed buckets.
package histogram

import (
	"sort"
	"sync/atomic"
	"time"
)

// A Histogram counts values. Its methods may be called from any goroutine, with any lock held. The
// nil *Histogram does not count.
type Histogram struct {
	bounds []int64 // immutable
	counts []atomic.Uint64
	sum    atomic.Int64
}

// New returns a Histogram whose buckets have these upper bounds, in ascending order. One more
// bucket is for what is above all of them.
func New(bounds ...int64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// ForDurations returns a Histogram for times from 10 microseconds to 10 seconds.
func ForDurations() *Histogram {
	var bounds []int64
	for decade := 10 * time.Microsecond; decade < 10*time.Second; decade *= 10 {
		bounds = append(bounds, int64(decade), int64(decade*5/2), int64(decade*5))
	}
	return New(append(bounds, int64(10*time.Second))...)
}

// ForSizes returns a Histogram for numbers from 1 to 65,536.
func ForSizes() *Histogram {
	var bounds []int64
	for n := int64(1); n <= 1<<16; n *= 4 {
		bounds = append(bounds, n)
	}
	return New(bounds...)
}

// Add counts v.
func (h *Histogram) Add(v int64) {
	if h == nil {
		return
	}
	i := sort.Search(len(h.bounds), func(i int) bool { return v <= h.bounds[i] })
	h.counts[i].Add(1)
	h.sum.Add(v)
}

// Since counts the time since start.
func (h *Histogram) Since(start time.Time) { h.Add(int64(time.Since(start))) }

// A Snapshot is a copy. Counts has one number for each bound, and one for what is above all bounds.
type Snapshot struct {
	Bounds []int64
	Counts []uint64
	Sum    int64
}

// Snapshot copies h. What is counted meanwhile may be in Counts and not in Sum, or the other way
// round. The Bounds are shared: nobody may modify them.
func (h *Histogram) Snapshot() Snapshot {
	s := Snapshot{Bounds: h.bounds, Counts: make([]uint64, len(h.counts)), Sum: h.sum.Load()}
	for i := range h.counts {
		s.Counts[i] = h.counts[i].Load()
	}
	return s
}
