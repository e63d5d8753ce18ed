package dunlin

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// A peer is one end of a simulated connection: our own state machines in both directions, and what
// was published and seen.
type peer struct {
	name string
	out  sender
	in   receiver
	wire []simPacket // on its way to the other end
	seen [3][]int    // what arrived, by QoS
	next [3]int      // what will be published next
}

type simPacket struct {
	kind packets.Type
	id   uint16
	qos  packets.QoS
	n    int // number of the message
	dup  bool
}

// simulation is two peers over a link that is cut at random, with everything on it lost.
type simulation struct {
	rnd   *rand.Rand
	a, b  *peer
	quota int
	steps int
}

// publish hands the peer a new message, as session.deliver does.
func (p *peer) publish(qos packets.QoS) {
	m := &message{Message: packets.Message{Topic: "t", Payload: []byte{byte(qos)}},
		Expires: int64(p.next[qos])}
	p.next[qos]++
	p.out.push(delivery{msg: m, qos: qos}, 0)
	p.pump()
}

// pump sends what there is room for, as session.pump does.
func (p *peer) pump() {
	for {
		if d := p.out.again(); d != nil {
			if d.state == pubrelSent {
				p.wire = append(p.wire, simPacket{kind: packets.TypePubrel, id: d.id})
			} else {
				p.wire = append(p.wire, simPacket{kind: packets.TypePublish, id: d.id, qos: d.qos,
					n: int(d.msg.Expires), dup: true})
			}
			continue
		}
		if int(p.out.resend) < len(p.out.flight) || p.out.queue.Len() == 0 || !p.out.room() {
			return
		}
		d := p.out.pop()
		id := p.out.open(&d)
		p.wire = append(p.wire, simPacket{kind: packets.TypePublish, id: id, qos: d.qos,
			n: int(d.msg.Expires)})
	}
}

// receive handles one packet from the other end.
func (p *peer) receive(k simPacket) error {
	reply := func(kind packets.Type) { p.wire = append(p.wire, simPacket{kind: kind, id: k.id}) }
	switch k.kind {
	case packets.TypePublish:
		if k.qos == packets.QoS1 {
			p.seen[1] = append(p.seen[1], k.n)
			reply(packets.TypePuback)
			return nil
		}
		if fresh, _ := p.in.publish(k.id); fresh {
			p.seen[2] = append(p.seen[2], k.n)
		}
		reply(packets.TypePubrec)
	case packets.TypePubrel:
		p.in.pubrel(k.id)
		reply(packets.TypePubcomp)
	default:
		switch v, _ := p.out.ack(k.kind, k.id, packets.Success); v {
		case sendPubrel, repeatPubrel:
			reply(packets.TypePubrel)
		case mismatched, unknownPubrec:
			return fmt.Errorf("%s: %v for identifier %d got verdict %d", p.name, k.kind, k.id, v)
		}
		p.pump()
	}
	return nil
}

// check holds after every step.
func (p *peer) check(quota int) error {
	s := &p.out
	live, used := int32(0), int32(0)
	ids := map[uint16]bool{}
	for i := range s.flight {
		d := &s.flight[i]
		if d.state == done {
			continue
		}
		if i < int(s.head) {
			return fmt.Errorf("%s: a live delivery in front of the head", p.name)
		}
		live++
		if d.used {
			used++
		}
		if d.id == 0 || ids[d.id] {
			return fmt.Errorf("%s: identifier %d twice or zero", p.name, d.id)
		}
		ids[d.id] = true
	}
	if live != s.live || used != s.used || s.used > int32(quota) {
		return fmt.Errorf("%s: live %d counted as %d, used %d counted as %d, quota %d", p.name,
			live, s.live, used, s.used, quota)
	}
	return nil
}

// cut loses what is on the wire and begins a new connection.
func (s *simulation) cut() {
	for _, p := range []*peer{s.a, s.b} {
		p.wire = p.wire[:0]
	}
	s.quota = 1 + s.rnd.IntN(5)
	for _, p := range []*peer{s.a, s.b} {
		p.out.begin(s.quota)
		p.pump()
	}
}

func (s *simulation) deliver(from, to *peer) error {
	if len(from.wire) == 0 {
		return nil
	}
	k := from.wire[0]
	from.wire = append(from.wire[:0], from.wire[1:]...)
	return to.receive(k)
}

// run takes n random steps, then lets everything arrive.
func (s *simulation) run(n int) error {
	s.cut()
	for range n {
		s.steps++
		from, to := s.a, s.b
		if s.rnd.IntN(2) == 0 {
			from, to = to, from
		}
		var err error
		switch x := s.rnd.IntN(100); {
		case x < 2:
			s.cut()
		case x < 30:
			from.publish(packets.QoS(1 + s.rnd.IntN(2)))
		default:
			err = s.deliver(from, to)
		}
		for _, p := range []*peer{s.a, s.b} {
			if err == nil {
				err = p.check(s.quota)
			}
		}
		if err != nil {
			return err
		}
	}
	for len(s.a.wire)+len(s.b.wire) > 0 {
		s.steps++
		if err := s.deliver(s.a, s.b); err != nil {
			return err
		}
		if err := s.deliver(s.b, s.a); err != nil {
			return err
		}
	}
	return firstError(s.verify(s.a, s.b), s.verify(s.b, s.a))
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// verify checks what came from one peer to the other: QoS 2 exactly once and in order, QoS 1 at
// least once and its first arrivals in order.
func (s *simulation) verify(from, to *peer) error {
	if len(to.seen[2]) != from.next[2] {
		return fmt.Errorf("%s published %d QoS 2 messages, %s saw %d", from.name, from.next[2],
			to.name, len(to.seen[2]))
	}
	for i, n := range to.seen[2] {
		if n != i {
			return fmt.Errorf("QoS 2 message %d of %s came in place %d", n, from.name, i)
		}
	}
	next := 0
	for _, n := range to.seen[1] {
		if n > next {
			return fmt.Errorf("QoS 1 message %d of %s came before %d", n, from.name, next)
		}
		if n == next {
			next++
		}
	}
	if next != from.next[1] {
		return fmt.Errorf("QoS 1 message %d of %s was lost", next, from.name)
	}
	if from.out.live != 0 || from.out.queue.Len() != 0 || from.out.bytes != 0 ||
		len(to.in.ids) != 0 {
		return fmt.Errorf("something is left: in flight %d, queued %d, %d identifiers not released",
			from.out.live, from.out.queue.Len(), len(to.in.ids))
	}
	return nil
}

// TestQoSSimulation runs two QoS peers over a link that loses what is on it and reconnects.
//
// [5.0 MQTT-4.3.2-1] [5.0 MQTT-4.3.2-4] [5.0 MQTT-4.3.3-1] [5.0 MQTT-4.3.3-8] [5.0 MQTT-4.4.0-1]
// [5.0 MQTT-4.6.0-1] [3.1.1 MQTT-4.3.2-1] [3.1.1 MQTT-4.3.3-1] [3.1.1 MQTT-4.4.0-1] [3.1.1
// MQTT-4.6.0-1]
func TestQoSSimulation(t *testing.T) {
	start := time.Now()
	steps := 0
	const runs = 10_000
	for seed := range uint64(runs) {
		s := &simulation{rnd: rand.New(rand.NewPCG(seed, 1)), a: &peer{name: "a"},
			b: &peer{name: "b"}}
		s.a.out.lastID = uint16(seed * 7919) // so that identifiers wrap around
		if err := s.run(400); err != nil {
			t.Fatalf("seed %d after %d steps: %v", seed, s.steps, err)
		}
		steps += s.steps
	}
	t.Logf("%d runs, %d steps, %.1f million steps a second", runs, steps,
		float64(steps)/time.Since(start).Seconds()/1e6)
}

// BenchmarkQoSSimulation reports how many steps of the QoS machines a second one core takes, their
// checks left out.
func BenchmarkQoSSimulation(b *testing.B) {
	a, z := &peer{name: "a"}, &peer{name: "z"}
	a.out.begin(100)
	z.out.begin(100)
	s := &simulation{a: a, b: z}
	b.ReportAllocs()
	m := &message{}
	for b.Loop() {
		id := a.out.open(&delivery{msg: m, qos: packets.QoS2})
		a.wire = append(a.wire, simPacket{kind: packets.TypePublish, id: id, qos: packets.QoS2})
		z.seen[2] = z.seen[2][:0]
		for len(a.wire)+len(z.wire) > 0 {
			s.deliver(a, z)
			s.deliver(z, a)
		}
	}
	b.ReportMetric(4e9/(float64(b.Elapsed().Nanoseconds())/float64(b.N))/1e6, "Msteps/s")
}

// [5.0 MQTT-2.2.1-4] [3.1.1 MQTT-2.3.1-2]
func TestIdentifiersInUseAreSkippedAfterTheCounterWraps(t *testing.T) {
	var s sender
	s.begin(10)
	stuck := s.open(&delivery{qos: packets.QoS1})
	for i := range 200_000 {
		id := s.open(&delivery{qos: packets.QoS1})
		if id == stuck || id == 0 {
			t.Fatalf("identifier %d given out after %d others while %d is in use", id, i, stuck)
		}
		if v, _ := s.ack(packets.TypePuback, id, packets.Success); v != completed {
			t.Fatalf("PUBACK for %d: verdict %d", id, v)
		}
		if len(s.flight) > 100 {
			t.Fatalf("%d places for 2 deliveries", len(s.flight))
		}
	}
}

// Whatever is in flight, in whatever order it ends: the next identifier is the next that is not in
// use.
func TestTheNextIdentifierIsTheNextFreeOne(t *testing.T) { // [5.0 MQTT-2.2.1-4]
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, live := range []int{1, 2, 100, 5000} {
		s := sender{lastID: 9}
		s.begin(maxID)
		var ids []uint16
		inUse := map[uint16]bool{}
		for range 150_000 {
			if len(ids) >= live || len(ids) > 0 && rnd.IntN(3) == 0 {
				// mostly the older ones, and one may stay for long
				k := min(rnd.IntN(len(ids)), rnd.IntN(len(ids)), rnd.IntN(len(ids)))
				if live == 5000 {
					k = rnd.IntN(min(len(ids), 20))
				}
				id := ids[k]
				ids = slices.Delete(ids, k, k+1)
				delete(inUse, id)
				d := s.find(id)
				if d == nil || d.id != id {
					t.Fatalf("find(%d) is %+v", id, d)
				}
				s.finish(d)
				continue
			}
			want := s.lastID
			for {
				if want++; want != 0 && !inUse[want] {
					break
				}
			}
			id := s.open(&delivery{qos: packets.QoS1})
			if id != want {
				t.Fatalf("identifier %d, not %d, with %d in use", id, want, len(ids))
			}
			ids, inUse[id] = append(ids, id), true
		}
	}
}

// However many identifiers a client keeps in use, the next one is found at once: whoever publishes
// to the client waits for that.
func TestTheNextIdentifierIsFoundBehindManyInUse(t *testing.T) {
	s := sender{}
	s.begin(maxID)
	for range 60_000 {
		s.open(&delivery{qos: packets.QoS2})
	}
	for range maxID - 60_000 {
		s.ack(packets.TypePuback, s.open(&delivery{qos: packets.QoS1}), packets.Success)
	}
	began := time.Now()
	require.Equal(t, uint16(60_001), s.open(&delivery{qos: packets.QoS1}))
	// well below 1 ms; several seconds where each one that is in use costs a look at all
	require.Less(t, time.Since(began), time.Second)
}

func TestAllIdentifiersInUse(t *testing.T) { // [5.0 MQTT-2.2.1-4]
	var s sender
	s.begin(maxID)
	for range maxID {
		s.open(&delivery{qos: packets.QoS1})
	}
	require.False(t, s.room())
	for id := uint16(1); id < 10; id++ {
		s.finish(s.find(id))
		require.Equal(t, id, s.open(&delivery{qos: packets.QoS1}))
	}
	s.finish(s.find(12))
	require.EqualValues(t, 12, s.open(&delivery{qos: packets.QoS1}))
}

func TestAllIdentifiersInUseAreSentAgain(t *testing.T) { // [5.0 MQTT-4.4.0-1]
	var s sender
	s.begin(maxID)
	for range maxID {
		s.open(&delivery{msg: new(message), qos: packets.QoS1})
	}
	s.begin(maxID)
	for range maxID {
		require.NotNil(t, s.again())
	}
	require.Nil(t, s.again())
}
