// Package traffic counts packets, messages and bytes, by what the connections have in common. Each
// goroutine counts for itself and adds up now and then, which costs less than an atomic addition to
// each counter.
package traffic

import (
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// Counts is traffic of one Class of connections.
type Counts struct {
	Received, Sent               [3]uint64 // PUBLISH packets, by QoS
	ReceivedPayload, SentPayload uint64    // bytes of payload in them
	ReceivedPackets, Answers     uint64    // all packets; sent ones other than PUBLISH
	ReceivedBytes, SentBytes     uint64
}

// Add adds x to t.
func (t *Counts) Add(x *Counts) {
	for i := range t.Received {
		t.Received[i] += x.Received[i]
		t.Sent[i] += x.Sent[i]
	}
	t.ReceivedPayload += x.ReceivedPayload
	t.SentPayload += x.SentPayload
	t.ReceivedPackets += x.ReceivedPackets
	t.Answers += x.Answers
	t.ReceivedBytes += x.ReceivedBytes
	t.SentBytes += x.SentBytes
}

type shardLock struct{}

func (shardLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "traffic.shard.mu"} }

const (
	shards = 8 // goroutines that work at the same time rarely share one
	slots  = 4 // Classes that a Tally counts for at a time
)

// A shard is what some goroutines have counted for a Class.
type shard struct {
	mu  lock.Mutex[shardLock]
	all Counts
	_   [128]byte // no cache line is shared
}

// A Class is the traffic of the connections that have a Key in common.
type Class struct {
	Key
	slot   uint8 // in a Tally. Immutable
	_      [128]byte
	shards [shards]shard

	// Sent is for what a goroutine sends that has no Tally, as SentPayload, SentBytes and Answers
	// are. Open is for the caller: how many connections there are.
	Sent                            [3]atomic.Uint64
	SentPayload, SentBytes, Answers atomic.Uint64
	Open                            atomic.Int64
}

// Total is all traffic of x.
func (x *Class) Total() (t Counts) {
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		t.Add(&s.all)
		s.mu.Unlock()
	}
	for i := range x.Sent {
		t.Sent[i] += x.Sent[i].Load()
	}
	t.SentPayload += x.SentPayload.Load()
	t.SentBytes += x.SentBytes.Load()
	t.Answers += x.Answers.Load()
	return t
}

// A Tally is what one goroutine has counted, or whatever counts for itself. It is for one goroutine
// at a time.
type Tally struct {
	last   *Class  // whose counts are, since the last call of Of; nil: nobody's
	counts *Counts // in slots
	slots  [slots]struct {
		of *Class // nil: nobody yet
		Counts
	}
	used  uint8 // slots that have to be added up, one bit each
	shard uint8
}

// Of returns the counts for a Class, until the next call of Of or AddUp. It is small enough to be
// inlined: mostly the Class is the one of the last call.
func (t *Tally) Of(c *Class) *Counts {
	if t.last != c {
		t.turnTo(c)
	}
	return t.counts
}

// turnTo makes c the Class of counts.
func (t *Tally) turnTo(c *Class) {
	i := c.slot % slots
	s := &t.slots[i]
	if s.of != c {
		t.addUp(i)
		s.of = c
	}
	t.used |= 1 << i
	t.last, t.counts = c, &s.Counts
}

// AddUp adds what was counted to the Classes. t begins anew.
func (t *Tally) AddUp() {
	for t.used != 0 {
		t.addUp(uint8(bits.TrailingZeros8(t.used)))
	}
	t.last = nil
}

func (t *Tally) addUp(i uint8) {
	if t.used&(1<<i) == 0 {
		return
	}
	t.used &^= 1 << i
	x := &t.slots[i]
	s := &x.of.shards[t.shard%shards]
	s.mu.Lock()
	s.all.Add(&x.Counts)
	s.mu.Unlock()
	x.Counts = Counts{}
}

// A Key is what the connections of a Class have in common.
type Key struct {
	Listener string // its name
	Version  byte   // of the protocol; 0: not known yet
}

// maxNames bounds the names of listeners. What comes from further ones counts for the empty name.
const maxNames = 100

type classesLock struct{}

func (classesLock) Rank() lock.Rank {
	return lock.Rank{Order: lock.Leaf, Name: "traffic.Classes.mu"}
}

// Classes is all traffic. The zero value is none.
type Classes struct {
	next atomic.Uint32 // Tallies

	mu    lock.Mutex[classesLock] // guards what follows
	of    map[Key]*Class
	names map[string]bool
	all   []*Class // in the order in which they came
}

// Tally returns the Tally for one more goroutine.
func (x *Classes) Tally() Tally { return Tally{shard: uint8(x.next.Add(1) % shards)} }

// Of returns the Class of a Key.
func (x *Classes) Of(k Key) *Class {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.of == nil {
		x.of, x.names = make(map[Key]*Class), make(map[string]bool)
	}
	if !x.names[k.Listener] {
		if len(x.names) >= maxNames {
			k.Listener = ""
		}
		x.names[k.Listener] = true
	}
	c := x.of[k]
	if c == nil {
		c = &Class{Key: k, slot: uint8(len(x.all) % slots)}
		x.of[k] = c
		x.all = append(x.all, c)
	}
	return c
}

// All returns the Classes, in the order in which they came.
func (x *Classes) All() []*Class {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.all)
}
