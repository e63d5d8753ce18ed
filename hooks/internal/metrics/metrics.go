// Package metrics is what a monitoring system is told of a broker: names, units and values, in one
// place for hooks/admin and hooks/prometheus.
package metrics

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
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

// Of returns the families of a broker, always the same ones. One that nothing has happened for has
// no Samples.
func Of(b *dunlin.Broker) []Family {
	s := b.Stats()
	return slices.Concat(state(b, &s), counters(&s), traffic(&s), memory(&s.MemoryByKind),
		[]Family{
			dropped(&s),
			codes("dunlin_connects_refused_total", "Connections that were refused, or ended before "+
				"they were accepted, by Reason Code.", s.Refusals),
			codes("dunlin_disconnects_total", "Accepted connections that ended, by Reason Code.",
				s.Disconnects),
			histogram("dunlin_commit_duration_seconds", "How long commits of the store took.",
				&s.CommitLatency),
			histogram("dunlin_commit_operations", "How many operations each commit had.",
				&s.CommitOperations),
			histogram("dunlin_hook_duration_seconds", "How long hooks took to decide.",
				&s.HookLatency),
			histogram("dunlin_deadline_lag_seconds", "How much later than due something was done.",
				&s.DeadlineLag),
		})
}

func one(name, help string, kind Kind, value float64) Family {
	return Family{Name: name, Help: help, Kind: kind, Samples: []Sample{{Value: value}}}
}

func gauge(name, help string, value float64) Family { return one(name, help, Gauge, value) }

func count(name, help string, value uint64) Family {
	return one(name, help, Counter, float64(value))
}

// yes is 1 if there is no error.
func yes(err error) float64 {
	if err != nil {
		return 0
	}
	return 1
}

// state is what there is now.
func state(b *dunlin.Broker, s *dunlin.Stats) []Family {
	return []Family{
		{
			Name: "dunlin_info", Help: "The version of the broker.", Labels: []string{"version"},
			Samples: []Sample{{Labels: []string{dunlin.Version}, Value: 1}},
		},
		gauge("dunlin_uptime_seconds", "Seconds since the start of the broker.",
			s.Uptime.Seconds()),
		gauge("dunlin_healthy", "1 while the store works, or there is none, and 0 while it fails.",
			yes(b.Healthy())),
		gauge("dunlin_ready", "1 while new clients are accepted and the store works.",
			yes(b.Ready())),
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
		gauge("dunlin_queued_messages", "Messages that wait in queues now.", float64(s.Queued)),
		gauge("dunlin_queued_bytes", "Bytes of the messages that wait in queues now.",
			float64(s.QueuedBytes)),
		gauge("dunlin_inflight_messages", "Messages that are sent and not acknowledged now.",
			float64(s.Inflight)),
	}
}

// counters are what has been, all together.
func counters(s *dunlin.Stats) []Family {
	return []Family{
		count("dunlin_connections_opened_total", "Network Connections taken up.", s.Connected),
		count("dunlin_connects_accepted_total", "CONNECT packets accepted.", s.Accepted),
		count("dunlin_sessions_expired_total", "Sessions that expired.", s.SessionsExpired),
		count("dunlin_panics_total", "Panics of hooks, of the Observer and of the broker.",
			s.Panics),
	}
}

// traffic is by listener, version and QoS.
func traffic(s *dunlin.Stats) []Family {
	of := []string{"listener", "version"}
	open := Family{Name: "dunlin_listener_connections", Help: "Network Connections now, by listener " +
		"and version of the protocol.", Labels: of}
	byQoS := slices.Concat(of, []string{"qos"})
	in := Family{Name: "dunlin_messages_received_total", Help: "PUBLISH packets received.",
		Kind: Counter, Labels: byQoS}
	out := Family{Name: "dunlin_messages_sent_total", Help: "PUBLISH packets sent.", Kind: Counter,
		Labels: byQoS}
	figures := []struct {
		Family
		of func(*dunlin.TrafficStats) uint64
	}{
		{Family{Name: "dunlin_payload_received_bytes_total", Help: "Bytes of payload received."},
			func(x *dunlin.TrafficStats) uint64 { return x.PayloadReceived }},
		{Family{Name: "dunlin_payload_sent_bytes_total", Help: "Bytes of payload sent."},
			func(x *dunlin.TrafficStats) uint64 { return x.PayloadSent }},
		{Family{Name: "dunlin_packets_received_total", Help: "Packets of all types received."},
			func(x *dunlin.TrafficStats) uint64 { return x.PacketsReceived }},
		{Family{Name: "dunlin_packets_sent_total", Help: "Packets of all types sent."},
			func(x *dunlin.TrafficStats) uint64 { return x.PacketsSent }},
		{Family{Name: "dunlin_received_bytes_total", Help: "Bytes received from the network."},
			func(x *dunlin.TrafficStats) uint64 { return x.BytesReceived }},
		{Family{Name: "dunlin_sent_bytes_total", Help: "Bytes sent to the network."},
			func(x *dunlin.TrafficStats) uint64 { return x.BytesSent }},
	}
	for i := range s.Traffic {
		x := &s.Traffic[i]
		labels := []string{x.Listener, ""}
		if x.Version != 0 {
			labels[1] = x.Version.String()
		}
		open.Samples = append(open.Samples, Sample{Labels: labels, Value: float64(x.Connections)})
		for qos := range x.MessagesReceived {
			l := slices.Concat(labels, []string{strconv.Itoa(qos)})
			in.Samples = append(in.Samples,
				Sample{Labels: l, Value: float64(x.MessagesReceived[qos])})
			out.Samples = append(out.Samples, Sample{Labels: l, Value: float64(x.MessagesSent[qos])})
		}
		for k := range figures {
			f := &figures[k]
			f.Samples = append(f.Samples, Sample{Labels: labels, Value: float64(f.of(x))})
		}
	}
	all := []Family{open, in, out}
	for _, f := range figures {
		f.Kind, f.Labels = Counter, of
		all = append(all, f.Family)
	}
	return all
}

func memory(m *dunlin.MemoryStats) []Family {
	f := Family{Name: "dunlin_memory_bytes", Help: "Bytes that count against the memory limit now, " +
		"by what they are held for.", Labels: []string{"kind"}}
	for _, x := range []struct {
		kind  string
		bytes int64
	}{
		{"queued", m.Queued}, {"inflight", m.Inflight}, {"retained", m.Retained},
		{"output", m.Output}, {"partial", m.Partial}, {"subscriptions", m.Subscriptions},
		{"routes", m.Routes}, {"sessions", m.Sessions}, {"uncommitted", m.Uncommitted},
		{"connections", m.Connections},
	} {
		f.Samples = append(f.Samples, Sample{Labels: []string{x.kind}, Value: float64(x.bytes)})
	}
	return []Family{f}
}

// dropped has a sample for each reason, so that a rate is known from the first one on.
func dropped(s *dunlin.Stats) Family {
	f := Family{Name: "dunlin_messages_dropped_total", Kind: Counter, Labels: []string{"reason"},
		Help: "Messages that did not reach a Session, by reason."}
	for why := hooks.DropReason(1); why.String() != hooks.DropReason(0xFF).String(); why++ {
		f.Samples = append(f.Samples, Sample{Labels: []string{why.String()},
			Value: float64(s.Dropped.Of(why))})
	}
	return f
}

func codes(name, help string, of map[dunlin.ReasonCode]uint64) Family {
	f := Family{Name: name, Help: help, Kind: Counter, Labels: []string{"code"}}
	for code, n := range of {
		label := fmt.Sprintf("0x%02X", byte(code))
		f.Samples = append(f.Samples, Sample{Labels: []string{label}, Value: float64(n)})
	}
	slices.SortFunc(f.Samples, func(a, b Sample) int { return cmp.Compare(a.Labels[0], b.Labels[0]) })
	return f
}

func histogram(name, help string, h *dunlin.Histogram) Family {
	s := Sample{Value: h.Sum, Count: h.Count()}
	n := uint64(0)
	for i, bound := range h.Bounds {
		n += h.Counts[i]
		s.Buckets = append(s.Buckets, Bucket{bound, n})
	}
	return Family{Name: name, Help: help, Kind: Histogram, Samples: []Sample{s}}
}
