package dunlin

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/tap"
	"github.com/dunlin-mqtt/dunlin/internal/traffic"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what the Broker counts, and Stats.

// counters only grow. What can be derived from state is not among them.
type counters struct {
	traffic         traffic.Classes
	dropped         dropCounts    // PUBLISH packets
	taken, accepted atomic.Uint64 // connections
	refused, ended  codeCounts    // connections that were not accepted, and those that were
	expired         atomic.Uint64 // Sessions
	most            atomic.Uint64 // connections at a time
	panics          atomic.Uint64
	last            time.Duration // conn.at of the last one that was accepted. Guarded by Broker.mu
	times

	// Besides numbers.
	endings *recent.Endings
	drops   *recent.Drops
	taps    tap.Taps
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

	// MemoryByKind is Memory by what it is held for.
	MemoryByKind MemoryStats

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
	// Traffic is the traffic by listener and version of the protocol, in the order of these.
	Traffic []TrafficStats
	// Dropped is MessagesDropped by reason.
	Dropped Drops
	// Refusals are the connections that were refused, or ended before they were accepted, and
	// Disconnects the accepted ones that ended, both by Reason Code. 0x80 is also a connection that
	// broke.
	Refusals, Disconnects map[ReasonCode]uint64
	// CommitOperations is how many operations each Commit of the Store had, CommitLatency how long
	// it took. HookLatency is how long the Authenticator, the Authorizer and the Interceptor took
	// to decide. DeadlineLag is how much later than due the Broker did what is due at a time: a
	// Will or the end of a Session, for instance. All but the first are in seconds.
	CommitOperations, CommitLatency, HookLatency, DeadlineLag Histogram
}

// Stats returns what there is and what has been. It takes well under a millisecond, however many
// Sessions there are, and nobody waits for it.
func (b *Broker) Stats() Stats {
	st := b.stats.snapshot()
	st.Uptime = time.Since(b.started)
	b.mu.Lock()
	st.Connections, st.Sessions = len(b.conns), b.sessions.len()
	b.mu.Unlock()
	st.Subscriptions, st.SharedSubscriptions = b.tree.Len(), b.tree.Shared()
	st.Retained, st.RetainedBytes = b.retained.Len(), b.retained.Bytes()
	st.Memory, st.MemoryByKind = b.memory.Used(), memoryStats(b.memory)
	p := b.memory.Places()
	st.Queued, st.QueuedBytes, st.Inflight = int(p.Queued), p.QueuedBytes, int(p.InFlight)
	return st
}

func (c *counters) snapshot() Stats {
	st := Stats{
		Connected: c.taken.Load(), Accepted: c.accepted.Load(), Dropped: c.dropped.snapshot(),
		MaxConnections: c.most.Load(), SessionsExpired: c.expired.Load(), Panics: c.panics.Load(),
		CommitOperations: histogramOf(c.commits, 1), CommitLatency: secondsOf(c.committed),
		HookLatency: secondsOf(c.hooks), DeadlineLag: secondsOf(c.late),
	}
	st.MessagesDropped = st.Dropped.Total()
	st.Refusals, st.Refused = c.refused.snapshot()
	st.Disconnects, _ = c.ended.snapshot()
	for _, x := range c.traffic.All() {
		st.add(x)
	}
	slices.SortFunc(st.Traffic, func(x, y TrafficStats) int {
		return cmp.Or(cmp.Compare(x.Listener, y.Listener), cmp.Compare(x.Version, y.Version))
	})
	return st
}

// add adds the traffic of x to st.
func (st *Stats) add(x *traffic.Class) {
	t := x.Total()
	for qos := range t.Received {
		st.MessagesReceived += t.Received[qos]
		st.MessagesSent += t.Sent[qos]
	}
	sent := t.Answers + t.Sent[0] + t.Sent[1] + t.Sent[2]
	st.PayloadReceived += t.ReceivedPayload
	st.PayloadSent += t.SentPayload
	st.PacketsReceived += t.ReceivedPackets
	st.PacketsSent += sent
	st.BytesReceived += t.ReceivedBytes
	st.BytesSent += t.SentBytes
	st.Traffic = append(st.Traffic, TrafficStats{
		Listener: x.Listener, Version: packets.Version(x.Version), Connections: int(x.Open.Load()),
		MessagesReceived: t.Received, MessagesSent: t.Sent,
		PayloadReceived: t.ReceivedPayload, PayloadSent: t.SentPayload,
		PacketsReceived: t.ReceivedPackets, PacketsSent: sent,
		BytesReceived: t.ReceivedBytes, BytesSent: t.SentBytes,
	})
}
