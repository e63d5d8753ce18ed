package bridge

import (
	"slices"
	"sync/atomic"
	"time"
)

// A State is what a link is doing.
type State string

const (
	StateDown       State = "down"       // it waits for its next attempt
	StateConnecting State = "connecting" // an attempt is under way
	StateUp         State = "up"         // both brokers have granted the subscriptions
	StateStopped    State = "stopped"    // it makes no further attempt
)

// Stats are the counters of a Node since New.
type Stats struct {
	Node string `json:"node"`
	// Loops are messages that were here before, or had passed too many brokers; Duplicates came by
	// a second way. They were dropped.
	Loops      uint64      `json:"loops"`
	Duplicates uint64      `json:"duplicates"`
	Links      []LinkStats `json:"links"`
}

// LinkStats are the counters of a link.
type LinkStats struct {
	Name    string    `json:"name"`
	State   State     `json:"state"`
	Address string    `json:"address"` // of the last attempt
	Since   time.Time `json:"since"`   // of State
	// LastError says why the last attempt or connection ended.
	LastError string `json:"last_error,omitempty"`
	// Connects are connections that were up, Failures attempts and connections that ended in an
	// error.
	Connects uint64 `json:"connects"`
	Failures uint64 `json:"failures"`
	// Sent and Received are messages that the link has handed to the broker there, and here, with
	// the bytes of their payloads. One that was sent again after a cut counts again.
	Sent          uint64 `json:"sent"`
	SentBytes     uint64 `json:"sent_bytes"`
	Received      uint64 `json:"received"`
	ReceivedBytes uint64 `json:"received_bytes"`
	// Acknowledged are the QoS 1 and 2 messages that the remote broker has acknowledged. Refused
	// are those that it, or the broker here, refused for good.
	Acknowledged uint64 `json:"acknowledged"`
	Refused      uint64 `json:"refused"`
	// Held were not sent because they had been at the remote broker, or came without marks (see
	// Link.Transit). Unmapped came on topics that no Topic is for.
	Held     uint64 `json:"held"`
	Unmapped uint64 `json:"unmapped"`
	// Inflight are sent and not acknowledged, Queued wait in the Session here.
	Inflight int `json:"inflight"`
	Queued   int `json:"queued"`
}

// counters are those of a link.
type counters struct {
	connects, failures                       atomic.Uint64
	sent, sentBytes, received, receivedBytes atomic.Uint64
	acknowledged, refused, held, unmapped    atomic.Uint64
	inflight                                 atomic.Int64
}

// Stats returns the counters.
func (n *Node) Stats() Stats {
	n.mu.Lock()
	b, links := n.broker, slices.Clone(n.links)
	n.mu.Unlock()
	s := Stats{Node: n.cfg.Name, Loops: n.marks.dropped.loops.Load(),
		Duplicates: n.marks.dropped.duplicates.Load()}
	for _, l := range links {
		x := l.stats()
		if b != nil {
			if info, ok := b.Session(l.id); ok {
				x.Queued = info.Queued
			}
		}
		s.Links = append(s.Links, x)
	}
	return s
}

// stats returns the counters of the link itself.
func (l *link) stats() LinkStats {
	c := &l.counters
	x := LinkStats{
		Name: l.cfg.Name, Connects: c.connects.Load(), Failures: c.failures.Load(),
		Sent: c.sent.Load(), SentBytes: c.sentBytes.Load(),
		Received: c.received.Load(), ReceivedBytes: c.receivedBytes.Load(),
		Acknowledged: c.acknowledged.Load(), Refused: c.refused.Load(), Held: c.held.Load(),
		Unmapped: c.unmapped.Load(), Inflight: int(c.inflight.Load()),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	x.State, x.Address, x.Since, x.LastError = l.state, l.address, l.since, l.lastError
	return x
}
