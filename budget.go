package dunlin

import (
	"cmp"
	"math"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the memory that messages take in the whole broker: those in queues and in flight, each once however many Sessions hold it,
// and their places there; retained ones; output that sockets have not taken; and packets that have come in part. It is counted byte by
// byte where it begins and ends to be held, and nowhere else.

// A budget counts. The nil *budget does not.
type budget struct {
	used atomic.Int64
	most int64 // immutable; MaxInt64: no limit
}

// What is held beside the bytes of topic, payload and properties.
const (
	messageCost  = 128 // of a message
	deliveryCost = 64  // of a place in a queue or in flight
	retainedCost = 48  // of a place among the retained messages
)

func heldSize(m *message) int64 {
	return int64(len(m.Topic)+len(m.Payload)+len(m.Properties)) + messageCost
}

// hold counts a place that holds m, and m with the first one.
func (x *budget) hold(m *message, place int64) {
	if x == nil {
		return
	}
	if atomic.AddInt32(&m.Holders, 1) == 1 {
		place += heldSize(m)
	}
	x.used.Add(place)
}

// release is the end of what hold began.
func (x *budget) release(m *message, place int64) {
	if x == nil {
		return
	}
	if atomic.AddInt32(&m.Holders, -1) == 0 {
		place += heldSize(m)
	}
	x.used.Add(-place)
}

// recount makes *counted, which is part of what is used, n bytes.
func (x *budget) recount(counted *int32, n int) {
	if n = min(n, math.MaxInt32); n != int(*counted) {
		x.used.Add(int64(n) - int64(*counted))
		*counted = int32(n)
	}
}

// over says whether more than a share of the limit, in percent, is used.
func (x *budget) over(percent int64) bool { return x.used.Load() > x.most/100*percent }

// The order in which the broker gives way (Config.MaxMemory).
const (
	leaveQoS0   = 80 // percent from which QoS 0 messages are not kept for clients whose sockets do not take them
	dropQueued  = 90 // percent from which queues of absent clients are shortened,
	dropEnough  = 85 // down to this
	refuseAbove = 100
)

// defaultMemory is half of what the runtime has been told to keep within (GOMEMLIMIT), and otherwise 4 GiB.
func defaultMemory() int64 {
	if n := debug.SetMemoryLimit(-1); n != math.MaxInt64 {
		return n / 2
	}
	return 4 << 30
}

var errNoMemory = packets.Errorf(packets.QuotaExceeded, "the broker is at its limit of memory")

// crowded is called where memory is taken, with any lock held: it starts shedding if that is due.
func (b *Broker) crowded() {
	if b.memory.over(dropQueued) && b.shedding.CompareAndSwap(false, true) {
		b.due.Set(&b.shedDue, time.Now(), b.shed)
	}
}

// shed drops the oldest messages of absent clients, an eighth of a queue at a time, those first whose queues hold the most, until enough is
// free or nothing is left. What else takes memory goes away by itself, or is refused.
func (b *Broker) shed(time.Time) {
	defer b.shedding.Store(false)
	dropped := 0
	for b.memory.over(dropEnough) && b.ctx.Err() == nil {
		type victim struct {
			s     *session
			bytes int
		}
		var victims []victim
		b.mu.Lock()
		for _, s := range b.sessions {
			s.mu.Lock()
			if s.conn == nil && s.local == nil && s.out.queue.n > 0 {
				victims = append(victims, victim{s, s.out.bytes})
			}
			s.mu.Unlock()
		}
		b.mu.Unlock()
		slices.SortFunc(victims, func(x, y victim) int { return cmp.Compare(y.bytes, x.bytes) })
		before := dropped
		for _, v := range victims {
			if !b.memory.over(dropEnough) {
				break
			}
			dropped += v.s.shorten()
		}
		if dropped == before {
			break
		}
	}
	if dropped > 0 {
		b.log.Warn("messages of absent clients were dropped to keep within MaxMemory", "messages", dropped, "used", b.memory.used.Load())
	}
}

// shorten drops the oldest eighth of the queue, at least one message, if the client is away. It returns how many.
func (s *session) shorten() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil || s.local != nil || s.ended {
		return 0
	}
	for most := (int(s.out.queue.n) + 7) / 8; n < most; n++ {
		d := s.out.pop()
		s.dropped(d.msg, hooks.DropMemory)
		d.settle(false)
		s.gone(&d)
	}
	return n
}

// refuseMemory says whether a PUBLISH cannot be taken because there is no memory.
func (b *Broker) refuseMemory() error {
	if b.memory.over(refuseAbove) {
		b.crowded()
		return errNoMemory
	}
	return nil
}
