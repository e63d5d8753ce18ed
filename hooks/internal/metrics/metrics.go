// Package metrics is what a monitoring system is told of a broker: names, units and values, in one
// place for hooks/admin and hooks/prometheus.
package metrics

import (
	"github.com/dunlin-mqtt/dunlin"
)

// A Kind is the kind of a Family.
type Kind byte

const (
	Gauge Kind = iota
	Counter
	Histogram
)

// String returns the kind as the text format of Prometheus has it.
func (k Kind) String() string { return [...]string{"gauge", "counter", "histogram"}[k] }

// A Family is all samples of one name.
type Family struct {
	Name, Help string
	Kind       Kind
	// Labels are the names of the labels of each Sample, besides that of the broker.
	Labels  []string
	Samples []Sample
}

// A Sample is one value.
type Sample struct {
	Labels []string // the values of the labels
	Value  float64
	// Buckets are how many values a Histogram has up to each Bound; Value is then the sum of them,
	// and Count how many there are.
	Buckets []Bucket
	Count   uint64
}

// A Bucket of a Histogram counts what is at most its Bound.
type Bucket struct {
	Bound float64
	Count uint64
}

// Of returns the families of a broker.
func Of(b *dunlin.Broker) []Family {
	s := b.Stats()
	healthy := 1.0
	if b.Healthy() != nil {
		healthy = 0
	}
	one := func(name, help string, kind Kind, value float64) Family {
		return Family{Name: name, Help: help, Kind: kind, Samples: []Sample{{Value: value}}}
	}
	gauge := func(name, help string, value float64) Family { return one(name, help, Gauge, value) }
	count := func(name, help string, value uint64) Family {
		return one(name, help, Counter, float64(value))
	}
	return []Family{
		{
			Name: "dunlin_info", Help: "The version of the broker.", Labels: []string{"version"},
			Samples: []Sample{{Labels: []string{dunlin.Version}, Value: 1}},
		},
		gauge("dunlin_uptime_seconds", "Seconds since the start of the broker.",
			s.Uptime.Seconds()),
		gauge("dunlin_healthy", "1 while the store works, or there is none, and 0 while it fails.",
			healthy),
		gauge("dunlin_connections", "Network Connections now.", float64(s.Connections)),
		gauge("dunlin_connections_peak", "The most Network Connections at a time.",
			float64(s.MaxConnections)),
		gauge("dunlin_sessions", "Sessions now, connected or not.", float64(s.Sessions)),
		gauge("dunlin_subscriptions", "Subscriptions now, shared ones too.",
			float64(s.Subscriptions)),
		gauge("dunlin_shared_subscriptions", "Shared subscriptions now.",
			float64(s.SharedSubscriptions)),
		gauge("dunlin_retained_messages", "Retained messages now.", float64(s.Retained)),
		gauge("dunlin_retained_bytes", "Bytes of the retained messages now.",
			float64(s.RetainedBytes)),
		gauge("dunlin_memory_bytes", "Bytes that count against the memory limit now.",
			float64(s.Memory)),
		gauge("dunlin_queued_messages", "Messages that wait in queues now.", float64(s.Queued)),
		gauge("dunlin_queued_bytes", "Bytes of the messages that wait in queues now.",
			float64(s.QueuedBytes)),
		gauge("dunlin_inflight_messages", "Messages that are sent and not acknowledged now.",
			float64(s.Inflight)),
		count("dunlin_connections_opened_total", "Network Connections taken up.", s.Connected),
		count("dunlin_connects_accepted_total", "CONNECT packets accepted.", s.Accepted),
		count("dunlin_connects_refused_total", "Connections refused.", s.Refused),
		count("dunlin_messages_received_total", "PUBLISH packets received.", s.MessagesReceived),
		count("dunlin_messages_sent_total", "PUBLISH packets sent.", s.MessagesSent),
		count("dunlin_messages_dropped_total", "Messages that did not reach a Session.",
			s.MessagesDropped),
		count("dunlin_payload_received_bytes_total", "Bytes of payload received.",
			s.PayloadReceived),
		count("dunlin_payload_sent_bytes_total", "Bytes of payload sent.", s.PayloadSent),
		count("dunlin_packets_received_total", "Packets of all types received.",
			s.PacketsReceived),
		count("dunlin_packets_sent_total", "Packets of all types sent.", s.PacketsSent),
		count("dunlin_received_bytes_total", "Bytes received from the network.",
			s.BytesReceived),
		count("dunlin_sent_bytes_total", "Bytes sent to the network.", s.BytesSent),
		count("dunlin_sessions_expired_total", "Sessions that expired.", s.SessionsExpired),
		count("dunlin_panics_total", "Panics of hooks, of the Observer and of the broker.",
			s.Panics),
	}
}
