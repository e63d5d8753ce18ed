// Package traffic counts packets, messages and bytes. Each goroutine counts for itself and adds up
// now and then, which costs less than an atomic addition to each counter.
package traffic

import (
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// Counts is traffic of which one goroutine knows.
type Counts struct {
	Received, Sent               uint64 // PUBLISH packets
	ReceivedPayload, SentPayload uint64 // bytes of payload in them
	ReceivedPackets, Answers     uint64 // all packets; sent ones other than PUBLISH
	ReceivedBytes, SentBytes     uint64
}

// Add adds x to t.
func (t *Counts) Add(x *Counts) {
	t.Received += x.Received
	t.Sent += x.Sent
	t.ReceivedPayload += x.ReceivedPayload
	t.SentPayload += x.SentPayload
	t.ReceivedPackets += x.ReceivedPackets
	t.Answers += x.Answers
	t.ReceivedBytes += x.ReceivedBytes
	t.SentBytes += x.SentBytes
}

type shardLock struct{}

func (shardLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "traffic.Shard.mu"} }

// A Shard is what some goroutines have counted. Those that work at the same time rarely share one.
type Shard struct {
	mu  lock.Mutex[shardLock]
	all Counts
	_   [128]byte // no cache line is shared
}

// Take adds t, which begins anew.
func (s *Shard) Take(t *Counts) {
	if *t == (Counts{}) {
		return
	}
	s.mu.Lock()
	s.all.Add(t)
	s.mu.Unlock()
	*t = Counts{}
}

// Shards is all traffic. The zero value is none.
type Shards struct {
	shards [8]Shard
	next   atomic.Uint32
}

// Shard returns the Shard for one more goroutine, or whatever counts for itself.
func (x *Shards) Shard() *Shard { return &x.shards[int(x.next.Add(1))%len(x.shards)] }

// Total is the sum of all Shards.
func (x *Shards) Total() (t Counts) {
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		t.Add(&s.all)
		s.mu.Unlock()
	}
	return t
}
