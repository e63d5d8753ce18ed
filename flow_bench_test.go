package dunlin

import (
	"bytes"
	"fmt"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file measures the way of a message from the bytes of its publisher to the bytes for its
// subscribers, over connections in memory that take whatever is written, and asserts that it
// allocates nothing.

// A flow is a Broker with publishers and subscribers, driven without goroutines.
type flow struct {
	tb         testing.TB
	b          *Broker
	v          packets.Version
	qos        packets.QoS
	pubs, subs []*feed
	batches    [][]byte // what each publisher sends in one read
	acks       []byte   // scratch
}

// messagesPerRead is how many messages one read of a publisher brings.
const messagesPerRead = 32

// newFlow connects pubs publishers, each with its topic, and subs subscribers to filter.
func newFlow(tb testing.TB, v packets.Version, qos packets.QoS, pubs, subs int, filter string,
	topic func(i int) string) *flow {
	b := newTestBroker(tb, nil)
	tb.Cleanup(func() { b.Close() })
	r := &flow{tb: tb, b: b, v: v, qos: qos}
	for i := range subs {
		c := r.connect(fmt.Sprintf("s%d", i))
		c.packet(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: filter, QoS: qos}}}, v)
		r.subs = append(r.subs, c)
	}
	for i := range pubs {
		r.pubs = append(r.pubs, r.connect(fmt.Sprintf("p%d", i)))
		var batch []byte
		for k := range messagesPerRead {
			p := packets.Publish{QoS: qos, Topic: []byte(topic(i)),
				Payload: bytes.Repeat([]byte("x"), 128)}
			if qos > packets.QoS0 {
				p.PacketID = uint16(k + 1)
			}
			var err error
			batch, err = p.Append(batch, v)
			require.NoError(tb, err)
		}
		r.batches = append(r.batches, batch)
	}
	return r
}

func (r *flow) connect(id string) *feed {
	return newFeed(r.tb, r.b, &packets.Connect{Version: r.v, ClientID: id, CleanStart: true})
}

// round takes one read of each publisher to all subscribers, with all acknowledgements.
func (r *flow) round() {
	for i, c := range r.pubs {
		last := r.subs[0].c.sess.out.lastID // all subscribers are given the same
		c.bytes(r.batches[i])
		if r.qos == packets.QoS2 {
			r.ackAll(c, packets.TypePubrel, 0)
		}
		if r.qos == packets.QoS0 {
			continue
		}
		for _, s := range r.subs {
			if r.qos == packets.QoS1 {
				r.ackAll(s, packets.TypePuback, last)
			} else {
				r.ackAll(s, packets.TypePubrec, last)
				r.ackAll(s, packets.TypePubcomp, last)
			}
		}
	}
}

// ackAll feeds acknowledgements for the messages of one read, whose Packet Identifiers follow id.
func (r *flow) ackAll(c *feed, kind packets.Type, id uint16) {
	r.acks = r.acks[:0]
	for range messagesPerRead {
		if id++; id == 0 {
			id = 1
		}
		a := packets.Ack{Kind: kind, PacketID: id}
		r.acks, _ = a.Append(r.acks, r.v)
	}
	c.bytes(r.acks)
}

// written is how many bytes the subscribers got.
func (r *flow) written() (n int) {
	for _, c := range r.subs {
		n += c.sink.n
	}
	return n
}

// idle checks that nothing is left in flight, so that what was measured is a steady state.
func (r *flow) idle() {
	for _, c := range append(r.subs, r.pubs...) {
		require.Zero(r.tb, c.c.sess.out.live, "every delivery is acknowledged")
		require.Zero(r.tb, c.c.sess.out.queue.Len(), "nothing is queued")
		require.Empty(r.tb, c.c.sess.in.ids, "every Packet Identifier is released")
	}
}

// allocations is how often f allocates, once the pools have what it needs. They keep that, as there
// is no collection meanwhile.
func allocations(f func()) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	return testing.AllocsPerRun(10, f)
}

// The shapes of traffic that a broker is mostly used for.
var flows = []struct {
	name       string
	pubs, subs int
	filter     string
	topic      func(i int) string
}{
	{"1 to 1", 1, 1, "plant/7/line/3/speed", func(int) string { return "plant/7/line/3/speed" }},
	{"1 to 1000", 1, 1000, "plant/7/line/3/speed",
		func(int) string { return "plant/7/line/3/speed" }},
	{"50 to 1", 50, 1, "plant/+/speed",
		func(i int) string { return fmt.Sprintf("plant/%d/speed", i) }},
	{"20 to 10 shared", 20, 10, "$share/g/plant/+/speed",
		func(i int) string { return fmt.Sprintf("plant/%d/speed", i) }},
}

func BenchmarkFlow(b *testing.B) {
	for _, tt := range flows {
		for _, v := range []packets.Version{packets.V311, packets.V5} {
			for qos := packets.QoS0; qos <= packets.QoS2; qos++ {
				if tt.filter[0] == '$' && qos > packets.QoS0 {
					// who gets what, and so the identifiers to acknowledge, depends on the turn
					continue
				}
				b.Run(fmt.Sprintf("%s/%v/QoS %d", tt.name, v, qos), func(b *testing.B) {
					r := newFlow(b, v, qos, tt.pubs, tt.subs, tt.filter, tt.topic)
					r.round()
					b.ReportAllocs()
					rounds := 0
					for b.Loop() {
						r.round()
						rounds++
					}
					delivered := rounds * tt.pubs * messagesPerRead
					if tt.filter[0] != '$' {
						delivered *= tt.subs
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(delivered),
						"ns/delivery")
				})
			}
		}
	}
}

func TestFlowsDoNotAllocate(t *testing.T) {
	if raced() {
		t.Skip("sync.Pool forgets at random under the race detector; the count is taken without it")
	}
	for _, tt := range flows {
		for _, v := range []packets.Version{packets.V311, packets.V5} {
			for qos := packets.QoS0; qos <= packets.QoS2; qos++ {
				if tt.filter[0] == '$' && qos > packets.QoS0 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%v/QoS %d", tt.name, v, qos), func(t *testing.T) {
					r := newFlow(t, v, qos, tt.pubs, tt.subs, tt.filter, tt.topic)
					for range 4 { // buffers, windows and caches grow to what they need
						r.round()
					}
					before := r.written()
					allocs := allocations(r.round)
					most := 0
					// the set of Packet Identifiers is a map, which makes room for itself now and
					// then
					if qos == packets.QoS2 {
						most = tt.pubs * messagesPerRead / 10
					}
					require.LessOrEqual(t, int(allocs), most,
						"allocations for %d messages in a steady state", tt.pubs*messagesPerRead)
					// AllocsPerRun runs it once more, before it counts
					messages := 11 * tt.pubs * messagesPerRead
					if tt.filter[0] != '$' {
						messages *= tt.subs
					}
					require.GreaterOrEqual(t, r.written()-before, messages*128,
						"every message arrives")
					r.idle()
				})
			}
		}
	}
}

// A member of a shared subscription keeps a message until it is acknowledged, so that another member
// can get it. That takes the message and its content, and no copy of the topic.
func TestSharedQoS1AllocatesTheMessageOnly(t *testing.T) {
	if raced() {
		t.Skip("sync.Pool forgets at random under the race detector; the count is taken without it")
	}
	tt := flows[3]
	r := newFlow(t, packets.V311, packets.QoS1, tt.pubs, tt.subs, tt.filter, tt.topic)
	round := func() {
		for i, c := range r.pubs {
			c.bytes(r.batches[i])
		}
		for _, s := range r.subs {
			r.acks = r.acks[:0]
			for _, d := range s.c.sess.out.flight {
				a := packets.Ack{Kind: packets.TypePuback, PacketID: d.id}
				r.acks, _ = a.Append(r.acks, r.v)
			}
			s.bytes(r.acks)
		}
	}
	for range 4 {
		round()
	}
	messages := tt.pubs * messagesPerRead
	require.LessOrEqual(t, int(allocations(round)), 2*messages+2*tt.pubs,
		"allocations for %d messages", messages)
	r.idle()
}

// A client that publishes to more topics than its cache has places costs a match for each message,
// and nothing else.
func TestManyTopicsDoNotAllocate(t *testing.T) {
	if raced() {
		t.Skip("sync.Pool forgets at random under the race detector; the count is taken without it")
	}
	r := newFlow(t, packets.V311, packets.QoS0, 1, 1, "plant/#",
		func(int) string { return "plant" })
	var batch []byte
	for i := range 4 * routeSlots {
		p := packets.Publish{Topic: fmt.Appendf(nil, "plant/%d", i), Payload: []byte("x")}
		batch, _ = p.Append(batch, packets.V311)
	}
	c := r.pubs[0]
	for range 20 { // a slot may see the same topic twice in a row while the others are warm
		c.bytes(batch)
	}
	require.Zero(t, allocations(func() { c.bytes(batch) }),
		"messages to %d topics must not allocate", 4*routeSlots)
}

func BenchmarkQoS(b *testing.B) {
	const window = 100
	for _, tt := range []struct {
		name string
		qos  packets.QoS
		acks []packets.Type
	}{
		{"QoS 1", packets.QoS1, []packets.Type{packets.TypePuback}},
		{"QoS 2", packets.QoS2, []packets.Type{packets.TypePubrec, packets.TypePubcomp}},
	} {
		b.Run("sender/"+tt.name, func(b *testing.B) {
			var s sender
			s.begin(window)
			var ids [window]uint16
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				for i := range ids {
					ids[i] = s.open(&delivery{qos: tt.qos})
				}
				for _, kind := range tt.acks {
					for _, id := range ids {
						s.ack(kind, id, packets.Success)
					}
				}
				n += window
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/message")
		})
	}
	// as a client with some delay leaves it: it is never empty
	b.Run("sender/QoS 2, a window that slides", func(b *testing.B) {
		var s sender
		s.begin(window)
		var ids [window]uint16
		for i := range ids {
			ids[i] = s.open(&delivery{qos: packets.QoS2})
		}
		for b.Loop() {
			for i := range ids {
				s.ack(packets.TypePubrec, ids[(i+window/2)%window], packets.Success)
				s.ack(packets.TypePubrec, ids[i], packets.Success)
				s.ack(packets.TypePubcomp, ids[i], packets.Success)
				ids[i] = s.open(&delivery{qos: packets.QoS2})
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(window*b.N), "ns/message")
	})
	b.Run("receiver/QoS 2", func(b *testing.B) {
		var r receiver
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			for id := range uint16(window) {
				r.publish(id + 1)
			}
			for id := range uint16(window) {
				r.pubrel(id + 1)
			}
			n += window
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/message")
	})
}
