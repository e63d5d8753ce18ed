package dunlin

import (
	"iter"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/histogram"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the types that Stats and SessionInfo are made of.

// Traffic is PUBLISH packets in one direction.
type Traffic struct {
	Messages uint64 // PUBLISH packets
	Bytes    uint64 // of these packets, headers included
}

// dropReasons is how many values hooks.DropReason has, with that of none.
const dropReasons = hooks.DropIntercepted + 1

// Drops counts messages that were dropped, by reason. The zero value has none.
type Drops struct{ by [dropReasons]uint64 }

// Of returns how many were dropped for a reason.
func (d Drops) Of(why hooks.DropReason) uint64 {
	if why >= dropReasons {
		return 0
	}
	return d.by[why]
}

// Total returns how many were dropped.
func (d Drops) Total() (n uint64) {
	for _, k := range d.by {
		n += k
	}
	return n
}

// All yields the reasons for which messages were dropped, in the order of the constants, and how
// many.
func (d Drops) All() iter.Seq2[hooks.DropReason, uint64] {
	return func(yield func(hooks.DropReason, uint64) bool) {
		for why, n := range d.by {
			if n > 0 && !yield(hooks.DropReason(why), n) {
				return
			}
		}
	}
}

// dropCounts counts Drops for all Sessions together.
type dropCounts [dropReasons]atomic.Uint64

func (c *dropCounts) snapshot() (d Drops) {
	for why := range c {
		d.by[why] = c[why].Load()
	}
	return d
}

// codeCounts counts by Reason Code.
type codeCounts [256]atomic.Uint64

func (c *codeCounts) snapshot() (of map[ReasonCode]uint64, total uint64) {
	of = make(map[ReasonCode]uint64)
	for code := range c {
		if n := c[code].Load(); n > 0 {
			of[ReasonCode(code)] = n
			total += n
		}
	}
	return of, total
}

// TrafficStats is the traffic of all connections that one listener has accepted and that use one
// version of the protocol.
type TrafficStats struct {
	// Listener is the Name of the hooks.Listener that was given to ServeListener. It is empty for
	// Serve and ServeConn, and for the listeners beyond the first hundred names.
	Listener string
	// Version is zero for connections that have not sent a CONNECT of a known version.
	Version packets.Version
	// Connections is how many are open now. The other fields count since New.
	Connections int

	MessagesReceived, MessagesSent [3]uint64 // PUBLISH packets, by QoS
	PayloadReceived, PayloadSent   uint64    // bytes of payload in them
	PacketsReceived, PacketsSent   uint64    // of all types
	BytesReceived, BytesSent       uint64    // on the wire
}

// MemoryStats is what counts against Config.MaxMemory, in bytes, by what it is held for.
type MemoryStats struct {
	Queued        int64 // messages in queues. A message that several places hold counts once
	Inflight      int64 // messages that were sent and may have to be sent again
	Retained      int64 // retained messages
	Output        int64 // what was sent and sockets have not taken
	Partial       int64 // packets that have come in part
	Subscriptions int64 // the subscription tree
	Routes        int64 // what is remembered of who gets which topic, and Topic Aliases
	Sessions      int64 // what Sessions have besides
	Uncommitted   int64 // what waits for the Store
	Connections   int64 // Network Connections
}

func memoryStats(b *budget.Budget) MemoryStats {
	return MemoryStats{
		Queued: b.Of(budget.Queued), Inflight: max(b.Of(budget.InFlight), 0),
		Retained: b.Of(budget.Retained), Output: b.Of(budget.Output), Partial: b.Of(budget.Partial),
		Subscriptions: b.Of(budget.Subscriptions), Routes: b.Of(budget.Routes),
		Sessions: b.Of(budget.Sessions), Uncommitted: b.Of(budget.Uncommitted),
		Connections: b.Of(budget.Connections),
	}
}

// A Histogram is how many values were in which range, since New.
type Histogram struct {
	// Bounds are the upper bounds of the buckets, in ascending order. Times are in seconds.
	Bounds []float64
	// Counts has one number more than Bounds. Counts[i] is how many values were at most Bounds[i]
	// and above Bounds[i-1]. The last one is those above all Bounds.
	Counts []uint64
	// Sum is the sum of all values.
	Sum float64
}

// Count returns how many values there were.
func (h *Histogram) Count() (n uint64) {
	for _, k := range h.Counts {
		n += k
	}
	return n
}

// Quantile returns about the value below which a share q of all values is, such as 0.99: the upper
// bound of its bucket, or the highest bound for what is above. It returns 0 if there are no values.
func (h *Histogram) Quantile(q float64) float64 {
	rank, n := q*float64(h.Count()), uint64(0)
	if rank <= 0 {
		return 0
	}
	for i, k := range h.Counts {
		if n += k; float64(n) >= rank || i == len(h.Bounds)-1 {
			return h.Bounds[i]
		}
	}
	return 0
}

// histogramOf returns a Histogram whose unit is so many of those of h.
func histogramOf(h *histogram.Histogram, unit float64) Histogram {
	s := h.Snapshot()
	out := Histogram{Counts: s.Counts, Sum: float64(s.Sum) / unit}
	out.Bounds = make([]float64, len(s.Bounds))
	for i, bound := range s.Bounds {
		out.Bounds[i] = float64(bound) / unit
	}
	return out
}

// secondsOf returns the Histogram of times that h is, in seconds.
func secondsOf(h *histogram.Histogram) Histogram { return histogramOf(h, float64(time.Second)) }

// times are the Histograms of a Broker.
type times struct {
	commits, committed, hooks, late *histogram.Histogram
}

func newTimes() times {
	return times{
		commits: histogram.ForSizes(), committed: histogram.ForDurations(),
		hooks: histogram.ForDurations(), late: histogram.ForDurations(),
	}
}

// tried counts a Commit of the Store.
func (t *times) tried(began time.Time, ops int) {
	t.committed.Since(began)
	t.commits.Add(int64(ops))
}
