package admin

import (
	"encoding/json"
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
	Queued              int     `json:"queued"`
	QueuedBytes         int64   `json:"queued_bytes"`
	Inflight            int     `json:"inflight"`

	Connected        uint64 `json:"connected"`
	Accepted         uint64 `json:"accepted"`
	Refused          uint64 `json:"refused"`
	MessagesReceived uint64 `json:"messages_received"`
	MessagesSent     uint64 `json:"messages_sent"`
	MessagesDropped  uint64 `json:"messages_dropped"`
	BytesReceived    uint64 `json:"bytes_received"`
	BytesSent        uint64 `json:"bytes_sent"`
	PacketsReceived  uint64 `json:"packets_received"`
	PacketsSent      uint64 `json:"packets_sent"`
	MaxConnections   uint64 `json:"max_connections"`
	SessionsExpired  uint64 `json:"sessions_expired"`
	Panics           uint64 `json:"panics"`

	// Healthy says that the store works, or that there is none; Ready that new clients are welcome.
	Healthy bool `json:"healthy"`
	Ready   bool `json:"ready"`
}

func asStats(b *dunlin.Broker, now time.Time) statsView {
	s := b.Stats()
	return statsView{
		At: now, Uptime: s.Uptime.Seconds(), Connections: s.Connections, Sessions: s.Sessions,
		Subscriptions: s.Subscriptions, SharedSubscriptions: s.SharedSubscriptions,
		Retained: s.Retained, RetainedBytes: s.RetainedBytes, Memory: s.Memory, Queued: s.Queued,
		QueuedBytes: s.QueuedBytes, Inflight: s.Inflight, Connected: s.Connected,
		Accepted: s.Accepted, Refused: s.Refused, MessagesReceived: s.MessagesReceived,
		MessagesSent: s.MessagesSent, MessagesDropped: s.MessagesDropped,
		BytesReceived: s.BytesReceived, BytesSent: s.BytesSent,
		PacketsReceived: s.PacketsReceived, PacketsSent: s.PacketsSent,
		MaxConnections: s.MaxConnections, SessionsExpired: s.SessionsExpired, Panics: s.Panics,
		Healthy: b.Healthy() == nil, Ready: ready(b) == nil,
	}
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
