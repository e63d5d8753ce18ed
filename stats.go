package dunlin

import (
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/traffic"
)

// This file is what the Broker counts, and Stats.

// counters only grow. What can be derived from state is not among them.
type counters struct {
	turns traffic.Shards

	// Traffic outside of turns.
	sent, sentPayload, sentBytes, answers atomic.Uint64

	dropped                  atomic.Uint64 // PUBLISH packets
	taken, accepted, refused atomic.Uint64 // connections
	expired                  atomic.Uint64 // Sessions
	most                     atomic.Uint64 // connections at a time
	panics                   atomic.Uint64
}

// total is all traffic.
func (c *counters) total() traffic.Counts {
	t := c.turns.Total()
	t.Add(&traffic.Counts{
		Sent: c.sent.Load(), SentPayload: c.sentPayload.Load(),
		SentBytes: c.sentBytes.Load(), Answers: c.answers.Load(),
	})
	return t
}

// Stats is a snapshot. Fields are added in minor releases.
type Stats struct {
	// Now.
	Connections, Sessions, Subscriptions, Retained int
	SharedSubscriptions                            int // of Subscriptions
	RetainedBytes                                  int64
	// Bytes that count against Config.MaxMemory
	Memory           int64
	Queued, Inflight int // messages, over all Sessions
	// Of the queued messages, in each queue that they wait in
	QueuedBytes int64

	// Since New.
	// Network Connections; CONNECT packets accepted; either refused
	Connected, Accepted, Refused                    uint64
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
		MessagesReceived: t.Received, MessagesSent: t.Sent, MessagesDropped: c.dropped.Load(),
		PayloadReceived: t.ReceivedPayload, PayloadSent: t.SentPayload,
		PacketsReceived: t.ReceivedPackets, PacketsSent: t.Sent + t.Answers,
		BytesReceived: t.ReceivedBytes, BytesSent: t.SentBytes,
		MaxConnections: c.most.Load(), SessionsExpired: c.expired.Load(), Panics: c.panics.Load(),
	}
}
