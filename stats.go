package dunlin

import (
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// This file is what the Broker counts, and Stats.

// counters only grow. What can be derived from state is not among them.
type counters struct {
	shards [8]counterShard // of what turns have done
	next   atomic.Uint32   // the shard of the next turn that is made

	// Traffic outside of turns.
	sent, sentPayload, sentBytes, answers atomic.Uint64

	dropped                  atomic.Uint64 // PUBLISH packets
	taken, accepted, refused atomic.Uint64 // connections
	expired                  atomic.Uint64 // Sessions
	most                     atomic.Uint64 // connections at a time
	panics                   atomic.Uint64
}

// traffic is what a turn counts.
type traffic struct {
	received, sent               uint64 // PUBLISH packets
	receivedPayload, sentPayload uint64 // bytes of payload in them
	receivedPackets, answers     uint64 // all packets; sent ones other than PUBLISH
	receivedBytes, sentBytes     uint64
}

// A counterShard is the traffic of some of the turns. One lock costs less than an atomic addition to
// each counter, and turns that run at the same time rarely share a shard.
type counterShard struct {
	mu lock.Mutex[countersLock]
	traffic
	_ [128]byte // no cache line is shared
}

func (t *traffic) add(x *traffic) {
	t.received += x.received
	t.sent += x.sent
	t.receivedPayload += x.receivedPayload
	t.sentPayload += x.sentPayload
	t.receivedPackets += x.receivedPackets
	t.answers += x.answers
	t.receivedBytes += x.receivedBytes
	t.sentBytes += x.sentBytes
}

// shard returns the shard for a new turn.
func (c *counters) shard() *counterShard {
	return &c.shards[int(c.next.Add(1))%len(c.shards)]
}

// take adds what a turn has counted, which begins anew.
func (s *counterShard) take(t *traffic) {
	s.mu.Lock()
	s.add(t)
	s.mu.Unlock()
	*t = traffic{}
}

// total is all traffic.
func (c *counters) total() (t traffic) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		t.add(&s.traffic)
		s.mu.Unlock()
	}
	t.add(&traffic{
		sent: c.sent.Load(), sentPayload: c.sentPayload.Load(),
		sentBytes: c.sentBytes.Load(), answers: c.answers.Load(),
	})
	return t
}

// Stats is a snapshot. Fields are added in minor releases.
type Stats struct {
	// Now.
	Connections, Sessions, Subscriptions, Retained int
	SharedSubscriptions                            int // of Subscriptions
	RetainedBytes                                  int64
	Memory                                         int64 // bytes that count against Config.MaxMemory
	Queued, Inflight                               int   // messages, over all Sessions
	QueuedBytes                                    int64 // of the queued messages, in each queue that they wait in

	// Since New.
	Connected, Accepted, Refused                    uint64 // Network Connections; CONNECT packets accepted; either refused
	MessagesReceived, MessagesSent, MessagesDropped uint64 // PUBLISH packets
	PayloadReceived, PayloadSent                    uint64 // bytes of payload in them
	PacketsReceived, PacketsSent                    uint64 // of all types
	BytesReceived, BytesSent                        uint64 // on the wire
	MaxConnections                                  uint64 // the most at a time
	SessionsExpired                                 uint64
	Panics                                          uint64
	Uptime                                          time.Duration
}

// Stats returns what there is and what has been. It looks at every Session.
func (b *Broker) Stats() Stats {
	st := b.stats.snapshot()
	st.Uptime = time.Since(b.started)
	b.mu.Lock()
	st.Connections, st.Sessions = len(b.conns), b.sessions.len()
	b.mu.Unlock()
	st.Subscriptions, st.SharedSubscriptions = b.tree.Len(), b.tree.Shared()
	st.Retained, st.RetainedBytes = b.retained.Len(), b.retained.Bytes()
	st.Memory = b.memory.Used()
	for s := range b.allSessions() {
		s.mu.Lock()
		st.Queued += int(s.out.queue.Len())
		st.QueuedBytes += int64(s.out.bytes)
		st.Inflight += int(s.out.live)
		s.mu.Unlock()
	}
	return st
}

func (c *counters) snapshot() Stats {
	t := c.total()
	return Stats{
		Connected: c.taken.Load(), Accepted: c.accepted.Load(), Refused: c.refused.Load(),
		MessagesReceived: t.received, MessagesSent: t.sent, MessagesDropped: c.dropped.Load(),
		PayloadReceived: t.receivedPayload, PayloadSent: t.sentPayload,
		PacketsReceived: t.receivedPackets, PacketsSent: t.sent + t.answers,
		BytesReceived: t.receivedBytes, BytesSent: t.sentBytes,
		MaxConnections: c.most.Load(), SessionsExpired: c.expired.Load(), Panics: c.panics.Load(),
	}
}
