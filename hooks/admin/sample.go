package admin

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
)

// This file is what is measured again and again: one sample of each broker, for all who look.

// statsView is one sample. What is counted is counted since the broker started.
type statsView struct {
	At time.Time `json:"at"`
	// Uptime is in seconds.
	Uptime              float64 `json:"uptime"`
	Connections         int     `json:"connections"`
	Sessions            int     `json:"sessions"`
	Subscriptions       int     `json:"subscriptions"`
	SharedSubscriptions int     `json:"shared_subscriptions"`
	Retained            int     `json:"retained"`
	RetainedBytes       int64   `json:"retained_bytes"`
	Memory              int64   `json:"memory"`
	// MemoryBy is Memory by what it is held for, in bytes.
	MemoryBy    map[string]int64 `json:"memory_by"`
	Queued      int              `json:"queued"`
	QueuedBytes int64            `json:"queued_bytes"`
	Inflight    int              `json:"inflight"`

	Connected        uint64 `json:"connected"`
	Accepted         uint64 `json:"accepted"`
	Refused          uint64 `json:"refused"`
	MessagesReceived uint64 `json:"messages_received"`
	MessagesSent     uint64 `json:"messages_sent"`
	MessagesDropped  uint64 `json:"messages_dropped"`
	// DroppedBy is MessagesDropped by reason, RefusedBy is Refused by Reason Code, and EndedBy the
	// accepted connections that ended by Reason Code.
	DroppedBy       map[string]uint64 `json:"dropped_by"`
	RefusedBy       map[string]uint64 `json:"refused_by"`
	EndedBy         map[string]uint64 `json:"ended_by"`
	BytesReceived   uint64            `json:"bytes_received"`
	BytesSent       uint64            `json:"bytes_sent"`
	PacketsReceived uint64            `json:"packets_received"`
	PacketsSent     uint64            `json:"packets_sent"`
	MaxConnections  uint64            `json:"max_connections"`
	SessionsExpired uint64            `json:"sessions_expired"`
	Panics          uint64            `json:"panics"`

	// Commits are those of the store, Hooks the decisions of hooks, Lag how much later than due the
	// broker did something.
	Commits timesView `json:"commits"`
	Hooks   timesView `json:"hooks"`
	Lag     timesView `json:"lag"`
	// Listeners is the traffic by listener and version of the protocol.
	Listeners []listenerView `json:"listeners"`

	// Healthy says that the store works, or that there is none; Ready that new clients are welcome.
	Healthy bool `json:"healthy"`
	Ready   bool `json:"ready"`
}

// A timesView is how long something took, in seconds: half of all were not longer than P50, and 99
// of a hundred not longer than P99. The buckets are coarse.
type timesView struct {
	Count uint64  `json:"count"`
	Sum   float64 `json:"sum"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
}

func asTimes(h dunlin.Histogram) timesView {
	return timesView{h.Count(), h.Sum, h.Quantile(0.5), h.Quantile(0.99)}
}

// A listenerView is the traffic of the connections of one listener that use one version.
type listenerView struct {
	Listener         string `json:"listener"`
	Protocol         string `json:"protocol"` // empty before a CONNECT
	Connections      int    `json:"connections"`
	MessagesReceived uint64 `json:"messages_received"`
	MessagesSent     uint64 `json:"messages_sent"`
	BytesReceived    uint64 `json:"bytes_received"`
	BytesSent        uint64 `json:"bytes_sent"`
}

func asListener(x *dunlin.TrafficStats) listenerView {
	v := listenerView{Listener: x.Listener, Connections: x.Connections,
		BytesReceived: x.BytesReceived, BytesSent: x.BytesSent}
	if x.Version != 0 {
		v.Protocol = x.Version.String()
	}
	for qos := range x.MessagesReceived {
		v.MessagesReceived += x.MessagesReceived[qos]
		v.MessagesSent += x.MessagesSent[qos]
	}
	return v
}

// memoryBy names the kinds of memory.
func memoryBy(m *dunlin.MemoryStats) map[string]int64 {
	return map[string]int64{
		"queued": m.Queued, "inflight": m.Inflight, "retained": m.Retained, "output": m.Output,
		"partial": m.Partial, "subscriptions": m.Subscriptions, "routes": m.Routes,
		"sessions": m.Sessions, "uncommitted": m.Uncommitted, "connections": m.Connections,
	}
}

// byCode names Reason Codes.
func byCode(of map[dunlin.ReasonCode]uint64) map[string]uint64 {
	by := make(map[string]uint64, len(of))
	for code, n := range of {
		by[fmt.Sprintf("0x%02X %v", byte(code), code)] = n
	}
	return by
}

func asStats(b *dunlin.Broker, now time.Time) statsView {
	s := b.Stats()
	v := statsView{
		At: now, Uptime: s.Uptime.Seconds(), Connections: s.Connections, Sessions: s.Sessions,
		Subscriptions: s.Subscriptions, SharedSubscriptions: s.SharedSubscriptions,
		Retained: s.Retained, RetainedBytes: s.RetainedBytes, Memory: s.Memory, Queued: s.Queued,
		QueuedBytes: s.QueuedBytes, Inflight: s.Inflight, Connected: s.Connected,
		Accepted: s.Accepted, Refused: s.Refused, MessagesReceived: s.MessagesReceived,
		MessagesSent: s.MessagesSent, MessagesDropped: s.MessagesDropped,
		BytesReceived: s.BytesReceived, BytesSent: s.BytesSent,
		PacketsReceived: s.PacketsReceived, PacketsSent: s.PacketsSent,
		MaxConnections: s.MaxConnections, SessionsExpired: s.SessionsExpired, Panics: s.Panics,
		MemoryBy: memoryBy(&s.MemoryByKind), DroppedBy: dropsBy(s.Dropped),
		RefusedBy: byCode(s.Refusals), EndedBy: byCode(s.Disconnects),
		Commits: asTimes(s.CommitLatency), Hooks: asTimes(s.HookLatency),
		Lag: asTimes(s.DeadlineLag), Listeners: []listenerView{},
		Healthy: b.Healthy() == nil, Ready: b.Ready() == nil,
	}
	for i := range s.Traffic {
		v.Listeners = append(v.Listeners, asListener(&s.Traffic[i]))
	}
	return v
}

// columns are what a history keeps of each sample, by the names that they have in Stats.
var columns = []struct {
	name string
	of   func(*statsView) float64
}{
	{"connections", func(s *statsView) float64 { return float64(s.Connections) }},
	{"sessions", func(s *statsView) float64 { return float64(s.Sessions) }},
	{"subscriptions", func(s *statsView) float64 { return float64(s.Subscriptions) }},
	{"retained", func(s *statsView) float64 { return float64(s.Retained) }},
	{"memory", func(s *statsView) float64 { return float64(s.Memory) }},
	{"queued", func(s *statsView) float64 { return float64(s.Queued) }},
	{"inflight", func(s *statsView) float64 { return float64(s.Inflight) }},
	{"accepted", func(s *statsView) float64 { return float64(s.Accepted) }},
	{"refused", func(s *statsView) float64 { return float64(s.Refused) }},
	{"messages_received", func(s *statsView) float64 { return float64(s.MessagesReceived) }},
	{"messages_sent", func(s *statsView) float64 { return float64(s.MessagesSent) }},
	{"messages_dropped", func(s *statsView) float64 { return float64(s.MessagesDropped) }},
	{"bytes_received", func(s *statsView) float64 { return float64(s.BytesReceived) }},
	{"bytes_sent", func(s *statsView) float64 { return float64(s.BytesSent) }},
	{"commits", func(s *statsView) float64 { return float64(s.Commits.Count) }},
	{"commit_time", func(s *statsView) float64 { return s.Commits.Sum }},
	{"memory_messages", func(s *statsView) float64 {
		m := s.MemoryBy
		return float64(m["queued"] + m["inflight"] + m["output"] + m["partial"] + m["uncommitted"])
	}},
	{"memory_retained", func(s *statsView) float64 { return float64(s.MemoryBy["retained"]) }},
	{"memory_clients", func(s *statsView) float64 {
		return float64(s.MemoryBy["sessions"] + s.MemoryBy["connections"])
	}},
	{"memory_subscriptions", func(s *statsView) float64 {
		return float64(s.MemoryBy["subscriptions"] + s.MemoryBy["routes"])
	}},
}

// A historyView is the samples of the last hour, as columns, the oldest first.
type historyView struct {
	// At is in seconds since 1970.
	At      []float64            `json:"at"`
	Columns map[string][]float64 `json:"columns"`
}

// A history keeps samples, at most so many.
type history struct {
	most int

	mu   sync.Mutex
	last statsView   // guarded by mu
	rows [][]float64 // guarded by mu; the time, then columns
}

func (x *history) add(s *statsView) {
	row := make([]float64, 0, 1+len(columns))
	row = append(row, float64(s.At.UnixMilli())/1000)
	for _, c := range columns {
		row = append(row, c.of(s))
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.rows) >= x.most {
		x.rows = append(x.rows[:0], x.rows[len(x.rows)-x.most+1:]...)
	}
	x.rows, x.last = append(x.rows, row), *s
}

func (x *history) all() historyView {
	x.mu.Lock()
	rows := append([][]float64(nil), x.rows...) // the rows themselves never change
	x.mu.Unlock()
	out := historyView{At: make([]float64, len(rows)), Columns: map[string][]float64{}}
	for i, row := range rows {
		out.At[i] = row[0]
	}
	for c, column := range columns {
		values := make([]float64, len(rows))
		for i, row := range rows {
			values[i] = row[1+c]
		}
		out.Columns[column.name] = values
	}
	return out
}

// latest is the last sample.
func (x *history) latest() statsView {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last
}

// sample takes samples until Close.
func (h *Handler) sample() {
	tick := time.NewTicker(h.opts.Interval)
	defer tick.Stop()
	for {
		for _, name := range h.names {
			h.brokers[name].sample()
		}
		select {
		case <-tick.C:
		case <-h.ctx.Done():
			return
		}
	}
}

// sample takes one, and gives it to all who look.
func (d *desk) sample() {
	s := asStats(d.b, time.Now())
	d.history.add(&s)
	if text, err := json.Marshal(s); err == nil {
		d.hub.send(event("stats", text))
	}
}
