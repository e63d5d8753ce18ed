package dunlin

import (
	"fmt"
	"math"
	"net"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A sink is a connection that takes whatever is written to it.
type sink struct{ n int }

func (s *sink) TryWrite(b []byte) (int, error) { s.n += len(b); return len(b), nil }
func (s *sink) Write(b []byte) (int, error)    { return s.TryWrite(b) }

func (s *sink) Read([]byte) (int, error)         { return 0, net.ErrClosed }
func (s *sink) Close() error                     { return nil }
func (s *sink) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s *sink) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *sink) SetDeadline(time.Time) error      { return nil }
func (s *sink) SetReadDeadline(time.Time) error  { return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }

// A feed is a connection whose bytes the test hands in itself.
type feed struct {
	t    testing.TB
	c    *conn
	sink *sink
}

func newFeed(t testing.TB, b *Broker, p *packets.Connect) *feed {
	s := &sink{}
	c, err := b.adopt(b.ctx, s)
	require.NoError(t, err)
	f := &feed{t, c, s}
	f.packet(p, p.Version)
	require.True(t, f.c.accepted)
	t.Cleanup(func() { f.c.finish(net.ErrClosed) })
	return f
}

func (f *feed) packet(p packets.Packet, v packets.Version) {
	b, err := p.Append(nil, v)
	require.NoError(f.t, err)
	f.bytes(b)
}

func (f *feed) bytes(b []byte) {
	turn := f.c.b.getTurn()
	f.c.unpark(turn)
	turn.read.B = append(turn.read.B, b...)
	err := f.c.input(turn)
	f.c.park(turn)
	if err != nil {
		f.t.Fatal(err)
	}
}

// A routing is one kind of message and of subscribers.
type routing struct {
	name        string
	pub, sub    packets.Version
	subscribers int
	qos         packets.QoS // of the subscriptions; the message has QoS 0
	store       bool
}

var routings = []routing{
	{"3.1.1 to nobody", packets.V311, packets.V311, 0, 0, false},
	{"3.1.1 to one", packets.V311, packets.V311, 1, 0, false},
	{"3.1.1 to 100", packets.V311, packets.V311, 100, 1, false},
	{"5.0 to one", packets.V5, packets.V5, 1, 2, false},
	{"5.0 to 100", packets.V5, packets.V5, 100, 0, false},
	{"5.0 to 100 of 3.1.1", packets.V5, packets.V311, 100, 0, false},
	{"3.1.1 to 100 of 5.0", packets.V311, packets.V5, 100, 0, false},
	{"5.0 with properties to 100", packets.V5, packets.V5, 100, 0, false},
	{"3.1.1 to one, with a Store", packets.V311, packets.V311, 1, 0, true},
	{"5.0 to 100, with a Store", packets.V5, packets.V5, 100, 0, true},
}

// start returns a publisher and the bytes of a message that goes to all subscribers.
func (r routing) start(t testing.TB) (pub *feed, message []byte, sinks []*sink) {
	b := newTestBroker(t, func(c *Config) {
		if r.store {
			c.Store = new(memory.Store)
		}
	})
	t.Cleanup(func() { b.Close() })
	for i := range r.subscribers {
		f := newFeed(t, b, &packets.Connect{Version: r.sub, CleanStart: true,
			ClientID: fmt.Sprint("s", i)})
		f.packet(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: []string{"a/b", "a/+", "#"}[i%3],
				QoS: r.qos}}}, r.sub)
		sinks = append(sinks, f.sink)
	}
	pub = newFeed(t, b, &packets.Connect{Version: r.pub, CleanStart: true, ClientID: "p"})
	p := &packets.Publish{Topic: []byte("a/b"), Payload: make([]byte, 64)}
	if r.name == "5.0 with properties to 100" {
		p.Properties = p.Properties.AppendText(packets.ContentType, "text/plain").AppendUser("a",
			"b")
	}
	message, err := p.Append(nil, r.pub)
	require.NoError(t, err)
	return pub, message, sinks
}

// raced says whether the race detector is on, under which pools forget at random.
func raced() bool {
	if lock.Checked { // its locks allocate as well
		return true
	}
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.ContainsFunc(info.Settings,
		func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}

// From the bytes of a QoS 0 PUBLISH to the buffers of all who subscribe to it nothing is allocated.
func TestRoutingDoesNotAllocate(t *testing.T) {
	for _, r := range routings {
		t.Run(r.name, func(t *testing.T) {
			pub, message, sinks := r.start(t)
			before := make([]int, len(sinks))
			for i, s := range sinks {
				before[i] = s.n
			}
			if n := testing.AllocsPerRun(200, func() { pub.bytes(message) }); n > 0 && !raced() {
				t.Errorf("%v allocations", n)
			}
			for i, s := range sinks {
				require.Greater(t, s.n-before[i], 201*64, "each subscriber gets each message")
			}
		})
	}
}

// BenchmarkRouteQoS0 routes QoS 0 messages, from the bytes read to the buffers of the subscribers.
func BenchmarkRouteQoS0(b *testing.B) {
	for _, r := range routings {
		b.Run(r.name, func(b *testing.B) {
			pub, message, _ := r.start(b)
			pub.bytes(message)
			b.ReportAllocs()
			for b.Loop() {
				pub.bytes(message)
			}
			if r.subscribers > 0 {
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(r.subscribers), "ns/delivery")
			}
		})
	}
}

// reportRatios prints the ratio of the times of two Brokers, the median of as many pairs of them as
// -benchtime says (100x), and its 95 % interval by the order of the pairs. pair makes a pair, that
// of place first first, and returns what each does for a turn of a few milliseconds. The two take
// turns, so that what else the machine does meets both.
func reportRatios(b *testing.B, pair func(first int) [2]func()) {
	var ratios []float64
	for b.Loop() {
		turns := pair(len(ratios) % 2)
		ratios = append(ratios, ratioOf(turns))
	}
	slices.Sort(ratios)
	n := len(ratios)
	k := int(max(0, float64(n)-1.96*math.Sqrt(float64(n))) / 2)
	b.ReportMetric(ratios[n/2], "ratio")
	b.ReportMetric(ratios[k], "from")
	b.ReportMetric(ratios[n-1-k], "to")
	b.ReportMetric(0, "ns/op") // says nothing here
}

// ratioOf is the median ratio of 24 turns of the second to as many of the first.
func ratioOf(turns [2]func()) float64 {
	turn := func(i int) float64 {
		start := time.Now()
		turns[i]()
		return float64(time.Since(start))
	}
	turn(0)
	turn(1)
	var ratios []float64
	for i := range 24 {
		var took [2]float64
		took[i%2] = turn(i % 2)
		took[1-i%2] = turn(1 - i%2)
		ratios = append(ratios, took[1]/took[0])
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// BenchmarkStoreCost compares routing with a Store and without one, where it keeps nothing since no
// session outlives its connection.
func BenchmarkStoreCost(b *testing.B) {
	for _, subscribers := range []int{1, 100} {
		b.Run(fmt.Sprintf("to %d", subscribers), func(b *testing.B) {
			reportRatios(b, func(first int) (turns [2]func()) {
				for _, i := range []int{first, 1 - first} {
					pub, message, _ := routing{pub: packets.V311, sub: packets.V311,
						subscribers: subscribers, store: i == 1}.start(b)
					turns[i] = func() {
						for range 10_000 / subscribers {
							pub.bytes(message)
						}
					}
				}
				return turns
			})
		})
	}
}

// BenchmarkObserverCost compares the flow of messages, 32 in a read, while an Observer counts what
// was published and delivered, and without one.
func BenchmarkObserverCost(b *testing.B) {
	for _, tt := range flows {
		for _, qos := range []packets.QoS{packets.QoS0, packets.QoS1} {
			if tt.filter[0] == '$' && qos > packets.QoS0 {
				continue
			}
			b.Run(fmt.Sprintf("%s/QoS %d", tt.name, qos), func(b *testing.B) {
				reportRatios(b, func(first int) (turns [2]func()) {
					for _, i := range []int{first, 1 - first} {
						r := newFlow(b, packets.V311, qos, tt.pubs, tt.subs, tt.filter, tt.topic)
						if i == 1 {
							r.b.observe(counting(new(uint64)))
						}
						turns[i] = func() {
							for range 1 + 10_000/(messagesPerRead*tt.pubs*tt.subs) {
								r.round()
							}
						}
					}
					return turns
				})
			})
		}
	}
}

// counting is an Observer that counts the bytes that are published and delivered.
func counting(n *uint64) hooks.Observer {
	return hooks.Observer{
		Published: func(e hooks.Published) { *n += uint64(len(e.Message.Payload)) },
		Delivered: func(e hooks.Delivered) { *n += uint64(len(e.Message.Payload)) },
	}
}

// BenchmarkTapCost compares the flow of messages of 5,000 clients, 32 in a read, while a Tap shows
// the packets of one of them, and without one.
func BenchmarkTapCost(b *testing.B) {
	for name, o := range map[string]TapOptions{
		"of a client": {ClientID: "p99"}, "of an address": {Address: "192.0.2.1"},
	} {
		b.Run(name, func(b *testing.B) {
			reportRatios(b, func(first int) (turns [2]func()) {
				for _, i := range []int{first, 1 - first} {
					r := newFlow(b, packets.V311, packets.QoS0, 5000, 1, "plant/+/speed",
						func(i int) string { return fmt.Sprintf("plant/%d/speed", i) })
					if i == 1 {
						o.MaxPackets, o.MaxBytes, o.For = -1, -1, -1
						tap, err := r.b.Tap(b.Context(), o)
						require.NoError(b, err)
						go func() { // ends with tap
							for range tap.Packets() {
							}
						}()
						b.Cleanup(tap.Stop)
					}
					turns[i] = r.round
				}
				return turns
			})
		})
	}
}
