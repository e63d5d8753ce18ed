package dunlin

import (
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/fifo"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the two directions of QoS 1 and 2 (4.3) as plain data: no clock, no lock, no I/O. A
// Session has one sender and one receiver; their Packet Identifiers have nothing to do with each
// other (2.2.1).

// A delivery is one message on its way to one Session: first in its queue, then in flight.
type delivery struct {
	msg    *message // nil in flight where nobody can ask for it again
	seq    uint64   // its place in the queue as the store knows it; 0: it does not
	extra  *extra   // nil for most
	id     uint16   // Packet Identifier, 0 while queued
	qos    packets.QoS
	state  flightState
	retain bool
	used   bool // it takes a place of the send quota of this connection
	found  bool // a retained message for a new subscription
	unsent bool // in flight, and its PUBLISH has never left
}

// extra is what few deliveries have. Those that have the same, and no receipt, share one; ids are
// immutable.
type extra struct {
	ids     []uint32    // Subscription Identifiers
	group   *subs.Group // the shared subscription that it came by
	receipt *receipt    // is told what becomes of the delivery; nil: nobody wants to know
	to      *session    // of the delivery with a receipt, until it is settled; then nil
	holders budget.Holders
}

type flightState byte

const (
	// In the queue; or in flight from an earlier connection and not sent on this one
	waiting flightState = iota
	sent                // PUBLISH is out, PUBACK or PUBREC is to come
	// PUBREC came, in flight from an earlier connection: PUBREL is due
	pubrelDue
	pubrelSent // PUBREL is out, PUBCOMP is to come
	done
)

func (d *delivery) group() *subs.Group {
	if d.extra == nil {
		return nil
	}
	return d.extra.group
}

func (d *delivery) ids() []uint32 {
	if d.extra == nil {
		return nil
	}
	return d.extra.ids
}

// deliverySize is what a queued delivery counts beside its message.
const deliverySize = 64

// size is what a queued delivery counts against MaxQueuedBytes.
func (d *delivery) size() int {
	n := len(d.msg.Payload) + len(d.msg.Topic) + len(d.msg.Properties) + deliverySize
	if d.extra != nil {
		n += len(d.extra.ids) * idBytes
	}
	return n
}

// ownerSize is what a delivery of the given size counts for its owner: about the memory that it
// takes if no other delivery has the same message.
func ownerSize(size int) int64 { return int64(size) + messageCost }

// A sender is the outbound half: the queue, and in sending order what is in flight.
type sender struct {
	owner  *owners.Account // what is held counts for it; nil: it is not counted
	mem    *budget.Budget  // counts what is held; nil: nobody does
	queue  fifo.Queue[delivery]
	bytes  int        // size of what is queued
	flight []delivery // flight[:head] is done
	head   int32
	live   int32 // how many of flight[head:] are not
	used   int32 // places of the send quota taken on this connection (4.9)
	// How many places there are: at most the client's Receive Maximum and MaxInflight
	quota   int32
	resend  int32  // flight[resend:] has not been sent on this connection; len(flight): all has
	qos0    int32  // how many of the queue are QoS 0
	free    uint16 // how many identifiers after lastID are known not to be in use
	lastID  uint16
	counted uint16        // live, as it was counted last
	stripe  budget.Stripe // of mem, for the places of this sender
	linked  bool          // owner counts the connection that it sends to
}

// count counts the place of d, which has its message, in the queue or in flight.
func (s *sender) count(d *delivery, k budget.Kind) {
	s.owner.Add(owners.QueuedBytes, ownerSize(d.size()))
	d.count(s.mem, k)
}

// uncount ends what count began.
func (s *sender) uncount(d *delivery, k budget.Kind) {
	s.owner.Add(owners.QueuedBytes, -ownerSize(d.size()))
	d.uncount(s.mem, k)
}

// count counts d, which has its message, in mem.
func (d *delivery) count(mem *budget.Budget, k budget.Kind) {
	mem.Hold(holdersOf(d.msg), k, heldSize(d.msg), deliveryCost)
	if d.extra != nil {
		mem.Hold(&d.extra.holders, k, d.extra.heldSize(), 0)
	}
}

// uncount ends what count began.
func (d *delivery) uncount(mem *budget.Budget, k budget.Kind) {
	mem.Release(holdersOf(d.msg), k, heldSize(d.msg), deliveryCost)
	if d.extra != nil {
		mem.Release(&d.extra.holders, k, d.extra.heldSize(), 0)
	}
}

// begin starts a Network Connection: what is in flight has to be sent again, in its order, before
// anything else [MQTT-4.4.0-1].
func (s *sender) begin(quota int) {
	s.quota, s.used = int32(quota), 0
	s.compact()
	s.resend = 0
	for i := range s.flight {
		d := &s.flight[i]
		d.used = false
		switch {
		case d.state == sent:
			if d.state = waiting; d.msg == nil { // it must not be sent again
				s.dropMessage(d, hooks.DropSessionEnded)
			}
		case d.state == pubrelSent:
			d.state = pubrelDue
		}
	}
	s.countLive()
}

// room says whether one more QoS 1 or 2 PUBLISH may go out: the quota allows it, and there is an
// identifier that is free. (Those of PUBRELs from earlier connections take no place of the quota.)
func (s *sender) room() bool { return s.used < s.quota && s.live < 65535 && s.mayGrow() }

// direct says whether a new message may go out at once, overtaking nothing.
func (s *sender) direct() bool {
	return s.queue.Len() == 0 && int(s.resend) == len(s.flight) && s.room()
}

// next returns the delivery that has to be repeated next on this connection, nil if there is none.
func (s *sender) next() *delivery {
	for ; int(s.resend) < len(s.flight); s.resend++ {
		if d := &s.flight[s.resend]; d.state == waiting || d.state == pubrelDue {
			return d
		}
	}
	return nil
}

// again returns the next delivery that has to be repeated on this connection, or nil: either there
// is none, or the quota is used up. dup tells a PUBLISH that was sent before from a PUBREL.
func (s *sender) again() *delivery {
	for int(s.resend) < len(s.flight) {
		d := &s.flight[s.resend]
		switch d.state {
		case waiting:
			if s.used >= s.quota { // it has its identifier
				return nil
			}
			d.state, d.used, d.unsent = sent, true, false
			s.used++
			s.resend++
			return d
		case pubrelDue:
			d.state = pubrelSent
			s.resend++
			return d
		default:
			s.resend++
		}
	}
	return nil
}

// open puts a copy of d in flight and gives it its Packet Identifier. There must be room.
func (s *sender) open(d *delivery) uint16 {
	if len(s.flight) == cap(s.flight) && len(s.flight) > 2*int(s.live)+8 {
		s.compact()
	}
	if d.msg != nil {
		s.count(d, budget.InFlight)
	} else if d.receipt() == nil {
		d.extra = nil // it is not sent again
	} else {
		s.mem.Hold(&d.extra.holders, budget.InFlight, d.extra.heldSize(), 0)
	}
	id, n := s.nextID(), len(s.flight)
	if n < cap(s.flight) {
		s.flight = s.flight[:n+1]
		s.flight[n] = *d
	} else {
		s.setFlight(append(s.flight, *d))
	}
	o := &s.flight[n]
	o.id, o.state, o.used = id, sent, true
	s.live++
	s.used++
	s.resend = int32(len(s.flight))
	return id
}

// find returns the live delivery with that identifier. Identifiers are given out in turn: it is
// nearly always as far from the end as its identifier is from the last one, or nearer, if compact
// has closed gaps. It is farther away only if the identifiers have begun anew since.
func (s *sender) find(id uint16) *delivery {
	guess := max(len(s.flight)-1-behind(s.lastID, id), int(s.head))
	for i := guess; i < len(s.flight); i++ {
		if d := &s.flight[i]; d.id == id && d.state != done {
			return d
		}
	}
	for i := int(s.head); i < guess; i++ {
		if d := &s.flight[i]; d.id == id && d.state != done {
			return d
		}
	}
	return nil
}

// finish ends a delivery and frees its identifier and its place.
func (s *sender) finish(d *delivery) {
	if d.used {
		s.used--
	}
	d.settleArrived()
	s.empty(d)
	*d = delivery{state: done}
	s.live--
	for int(s.head) < len(s.flight) && s.flight[s.head].state == done {
		s.head++
	}
	if int(s.head) == len(s.flight) {
		s.flight, s.head, s.resend = s.flight[:0], 0, 0
	}
}

// dropMessage takes the message out of a delivery in flight that must not be sent (again). If it is
// on its way it is still acknowledged. QoS 2 goes on with PUBREL: the client would take the next
// message with that Packet Identifier for this one.
func (s *sender) dropMessage(d *delivery, why hooks.DropReason) {
	d.settleLost(why)
	s.empty(d)
	switch {
	case d.state != waiting:
	case d.qos == packets.QoS1:
		s.finish(d)
	default:
		d.state = pubrelDue
	}
}

// empty takes the message, with what belongs to it, out of a delivery in flight that is settled.
func (s *sender) empty(d *delivery) {
	if d.msg != nil {
		s.uncount(d, budget.InFlight)
	} else if d.extra != nil { // with a receipt, see open
		s.mem.Release(&d.extra.holders, budget.InFlight, d.extra.heldSize(), 0)
	}
	d.msg, d.extra = nil, nil
}

// clear takes everything out.
func (s *sender) clear() {
	for i := range s.flight {
		s.empty(&s.flight[i])
	}
	s.queue.All(func(d *delivery) bool {
		s.uncount(d, budget.Queued)
		return true
	})
	s.setFlight(nil)
	s.addQueued(-s.queue.Len(), -s.bytes)
	s.live = 0
	s.countLive()
	*s = sender{mem: s.mem, owner: s.owner, stripe: s.stripe, linked: s.linked}
}

// compact moves the live deliveries to the front.
func (s *sender) compact() {
	n, resend := 0, len(s.flight)
	for i := range s.flight {
		if i == int(s.resend) {
			resend = n
		}
		if s.flight[i].state != done {
			s.flight[n] = s.flight[i]
			n++
		}
	}
	clear(s.flight[n:])
	s.flight, s.head, s.resend = s.flight[:n], 0, int32(min(resend, n))
}

// push puts d at the end of the queue. at says when it came, in ticks.
func (s *sender) push(d delivery, at uint32) {
	s.addQueued(1, d.size())
	if d.qos == packets.QoS0 {
		s.qos0++
	}
	s.count(&d, budget.Queued)
	s.queue.PushAt(d, at)
}

// pop takes the front of the queue, which must not be empty.
func (s *sender) pop() delivery {
	d := s.queue.Pop()
	s.uncount(&d, budget.Queued)
	s.addQueued(-1, -d.size())
	if d.qos == packets.QoS0 {
		s.qos0--
	}
	return d
}

// remove takes those that match out of the queue.
func (s *sender) remove(match func(*delivery) bool) {
	n, bytes := int32(0), 0
	s.queue.Filter(func(d *delivery) bool {
		if !match(d) {
			return true
		}
		s.uncount(d, budget.Queued)
		n, bytes = n+1, bytes+d.size()
		if d.qos == packets.QoS0 {
			s.qos0--
		}
		return false
	})
	s.addQueued(-n, -bytes)
}

// A verdict is what an acknowledgement leads to.
type verdict byte

const (
	ignored       verdict = iota // for nothing that is in flight
	completed                    // the delivery is over
	sendPubrel                   // PUBREL is due
	repeatPubrel                 // PUBREL is due once more
	unknownPubrec                // PUBREL with Packet Identifier not found is due
	mismatched                   // an acknowledgement of the other QoS: Protocol Error
)

// ack handles PUBACK, PUBREC and PUBCOMP from the client. seq is that of the delivery which has
// come to an end or is released.
func (s *sender) ack(kind packets.Type, id uint16, code packets.ReasonCode) (v verdict,
	seq uint64) {
	d := s.find(id)
	if d != nil {
		seq = d.seq
	}
	switch {
	case d == nil || d.state == waiting:
		// to a failing one PUBREL is no answer [MQTT-4.3.3-4]
		if kind == packets.TypePubrec && !code.Failed() {
			return unknownPubrec, 0
		}
		return ignored, 0
	case (kind == packets.TypePuback) != (d.qos == packets.QoS1):
		return mismatched, 0
	case kind == packets.TypePubrec && !code.Failed():
		if d.state != sent {
			d.state = pubrelSent
			return repeatPubrel, seq
		}
		d.settleArrived()
		s.empty(d) // it will never be sent again [MQTT-4.3.3-5]
		d.state = pubrelSent
		return sendPubrel, seq
	case kind == packets.TypePubcomp && d.state == sent:
		return mismatched, 0
	default:
		if code.Failed() {
			d.settleLost(hooks.DropRefused)
		} else {
			d.settleArrived()
		}
		s.finish(d)
		return completed, seq
	}
}

// A receiver is the inbound half: the Packet Identifiers of the QoS 2 messages that were received
// and not yet released. They live as long as the Session; nothing times them out.
type receiver struct {
	// Nil until the first; the runtime has maps of their own for keys of this size
	ids map[uint32]arrival
}

// A arrival is what is known of an identifier.
type arrival byte

const (
	// It came on this connection, and takes a place of its receive quota (4.9)
	counted  arrival = 1 << iota
	underWay         // its message is being routed
	asked            // and it came again meanwhile, on the next connection
)

// begin starts a Network Connection, with a quota of its own.
func (r *receiver) begin() {
	for id := range r.ids {
		r.ids[id] &^= counted
	}
}

// publish takes note of a QoS 2 PUBLISH. fresh: it is the first with its identifier, and only then
// it is delivered [MQTT-4.3.3-10]. counts: it is the first on this connection.
func (r *receiver) publish(id uint16) (fresh, counts bool) {
	state, known := r.ids[uint32(id)]
	if r.ids == nil {
		r.ids = make(map[uint32]arrival)
	}
	r.ids[uint32(id)] = state | counted
	return !known, state&counted == 0
}

// routes says that the message of a fresh identifier is being routed, until routed.
func (r *receiver) routes(id uint16) { r.ids[uint32(id)] |= underWay }

// again takes note that an identifier came again. If its message is still being routed, the answer
// is left to who does that.
func (r *receiver) again(id uint16) (left bool) {
	if r.ids[uint32(id)]&underWay == 0 {
		return false
	}
	r.ids[uint32(id)] |= asked
	return true
}

// abandon forgets identifiers whose messages were never routed.
func (r *receiver) abandon() {
	for id, state := range r.ids {
		if state&underWay != 0 {
			delete(r.ids, id)
		}
	}
}

// routed ends what routes began and says whether the identifier came again meanwhile.
func (r *receiver) routed(id uint16) (again bool) {
	state, known := r.ids[uint32(id)]
	if known {
		r.ids[uint32(id)] = state & counted
	}
	return state&asked != 0
}

// pubrel forgets the identifier and says whether it was known, and counted on this connection.
func (r *receiver) pubrel(id uint16) (known, quota bool) {
	state, known := r.ids[uint32(id)]
	delete(r.ids, uint32(id))
	return known, state&counted != 0
}
