package dunlin

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is how turns and Sessions describe what they do to the journal. A Session is durable,
// from its beginning to its end, if there is a Store and it was begun with a Session Expiry
// Interval: then it has a key, and each QoS 1 or 2 entry of its queue a seq.

// lateWeight is about what a receiver of a late message takes.
const lateWeight = 96

// A write is what a turn is about to give the journal.
type write struct {
	journal.Write
	// The message is QoS 2: whom the store does not know gets it once it is durable
	waits  bool
	late   []target        // who gets the message once it is durable
	anyway bool            // they get it also if it is not
	noRoom error           // why what was not refused cannot be retained
	conn   *conn           // whose reader may wait for room, until the connection ends; nil: none
	ctx    context.Context // until when the program may wait for it; nil: not at all
	from   *session        // whose QoS 2 message it is, if it is durable
	id     uint16          // and its Packet Identifier
}

// publishStored is publish for a message that the store has to know.
func (t *turn) publishStored(o *outgoing, r *route) (matched int, err error) {
	w := &t.write
	t.askMembers(o, r)
	w.waits = o.pub.QoS == packets.QoS2 || t.follows(o)
	defer func() { w.waits, w.from, t.asked = false, nil, false }()
	if err := t.pinFor(o, r); err != nil {
		return 0, err
	}
	if w.from != nil {
		op := w.Publish(o.message(), 0)
		op.FromSession, op.FromID = w.from.stored, w.id
	}
	if o.pub.Retain {
		err := w.noRoom
		if err == nil {
			err = t.retainStored(o)
		}
		if err := t.orDeliver(o, err); err != nil {
			if op := w.Message(); op != nil {
				op.FromSession, op.FromID = 0, 0 // it is not received: the PUBREC says so
			}
			t.conclude(o)
			return 0, err
		}
		t.renew(r)
	}
	matched = t.deliver(o, r)
	t.conclude(o)
	return matched, nil
}

// takeRoom takes the room of o, before anything of it is added, and waits for that where the turn
// may wait. It returns why o is refused. What cannot be refused, because nobody would learn that it
// was, is not retained then.
func (t *turn) takeRoom(o *outgoing, r *route) error {
	w := &t.write
	w.noRoom = nil
	needs := o.pub.QoS > packets.QoS0 && t.stores(o, r)
	if needs {
		if err := t.refusing(); err != nil {
			return err
		}
		if t.refused { // there is room again; the client learns of the refusal first
			t.worker.HandOver()
			t.end()
		}
	}
	n := int64(journal.OpWeight + len(o.pub.Topic) + len(o.pub.Payload) + len(o.pub.Properties) +
		len(o.from))
	n += int64(journal.DeliveryWeight * (len(r.targets) + len(r.shared)))
	switch {
	case w.TakeRoom(n):
	case !w.Waits() || w.conn == nil && w.ctx == nil: // what may not wait goes beyond
		w.Exceed(n)
	default:
		err := t.awaitRoom(n)
		t.renew(r)
		if err != nil && o.untold {
			w.noRoom = err
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refusing says why the store takes nothing now, nil if it does.
func (t *turn) refusing() error {
	err := t.b.journal.Refusing()
	t.refused = t.refused || err != nil
	return err
}

// pinFor pins the batch of o and returns why o is refused. takeRoom has looked at the store before,
// but hooks may have been asked since, and the store may have refused earlier messages of the same
// client meanwhile. A 3.1.1 client sends those again, and o must not overtake them [MQTT-4.6.0-6].
// Once a batch is pinned, such a refusal is seen here, or it refuses that batch as well.
func (t *turn) pinFor(o *outgoing, r *route) error {
	w := &t.write
	if o.pub.QoS == packets.QoS0 || o.untold || !t.stores(o, r) {
		return nil
	}
	w.Pin()
	if err := t.refusing(); err != nil {
		return err
	}
	if w.conn != nil {
		return w.conn.stopped()
	}
	return nil
}

// takeRoomFor is takeRoom for operations of c, which weigh n bytes. The turn has to be cleared when
// they have been added.
func (t *turn) takeRoomFor(c *conn, n int) error {
	w := &t.write
	if w.conn = c; w.TakeRoom(int64(n)) {
		return nil
	}
	return t.awaitRoom(int64(n))
}

// awaitRoom waits for n bytes of room, with nothing of the turn left unflushed, and takes them. It
// does not wait while the store fails.
func (t *turn) awaitRoom(n int64) error {
	w := &t.write
	if err := t.b.journal.Refusing(); err != nil {
		return err
	}
	t.worker.HandOver()
	ctx := w.ctx
	if c := w.conn; c != nil {
		ctx = c.context()
		if t.read != nil {
			t.b.memory.Recount(budget.Partial, &c.restCounted, cap(t.read.B))
			defer c.countRest()
		}
	}
	t.end()
	err := w.AwaitRoom(ctx, n)
	t.now = time.Now()
	return err
}

// ask decides whether the members of a shared subscription may get messages of topic, before a
// batch is pinned, which would keep everybody else's from the store meanwhile, or the topic is
// locked.
func (t *turn) ask(r *sharedRoute, topic string) {
	t.worker.HandOver()
	for k := range r.members {
		t.b.permits(r.members[k].s, topic)
	}
}

// askMembers is ask for all shared subscriptions of r. Until t.asked is reset, permits asks nobody.
func (t *turn) askMembers(o *outgoing, r *route) {
	if t.b.rules.deliveries == nil || t.asked {
		return
	}
	for i := range r.shared {
		t.ask(&r.shared[i], string(o.pub.Topic))
	}
	t.asked = true
}

// permits says whether s, a member of a shared subscription, may get messages of topic. If that was
// to be asked already and is not known, as the rules have changed this moment, s gets the message
// into its queue, and it is asked when that is sent.
func (t *turn) permits(s *session, topic string) bool {
	if !t.asked {
		t.worker.HandOver()
		return t.b.permits(s, topic)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	may, known := s.reading(topic)
	return may || !known
}

// askAhead is ask for messages that go to other members.
func (t *turn) askAhead(shared []delivery) {
	if t.b.journal == nil || t.b.rules.deliveries == nil {
		return
	}
	for i := range shared {
		d := &shared[i]
		t.again(d.msg)
		t.route.fill(t, t.own.Topic, origin{})
		for k := range t.route.shared {
			if r := &t.route.shared[k]; r.group == d.group() {
				t.ask(r, d.msg.Topic)
			}
		}
	}
}

// stores says whether the store has to know of o.
func (t *turn) stores(o *outgoing, r *route) bool {
	return o.pub.QoS > packets.QoS0 && r.durable || o.pub.Retain && lasts(o.pub.Topic) ||
		t.write.from != nil
}

// follows says whether o, although the store need not know of it, has to wait behind QoS 2 messages
// that are not durable yet: it may be of the publisher of one, and must not overtake it
// [MQTT-4.6.0-6]; or one of them may be of the same topic, and what is retained came last.
func (t *turn) follows(o *outgoing) bool {
	return (o.pub.QoS == packets.QoS2 || o.pub.Retain) && t.b.journal.lates.Load() > 0
}

// deliverOrKeep hands o to one receiver, or notes that he gets it when it is durable.
func (t *turn) deliverOrKeep(o *outgoing, to *target, eager eagerness) bool {
	w := &t.write
	if !w.waits || to.s.stored != 0 && to.qos > packets.QoS0 {
		return to.s.deliver(t, o, to, eager)
	}
	to.s.mu.Lock()
	takes := !to.s.ended && (eager == takesAny || to.s.ready(min(o.pub.QoS, to.qos)))
	if takes && to.s.quota.overflow == OverflowBlock && to.s.full(0) {
		to.s.local.mayExceed(t, 0) // nobody waits when it gets there
	}
	to.s.mu.Unlock()
	if takes {
		l := *to
		if shares := to.share(); shares != nil {
			l.ids, l.shares = shares.ids, shares
		}
		w.late = append(w.late, l)
		o.receipt.enter()
	}
	return takes
}

// conclude ends the operation of a message: all that it is for is in it.
func (t *turn) conclude(o *outgoing) {
	w := &t.write
	if len(w.late) > 0 {
		w.Lead(journal.OpWeight + journal.WeighMessage(o.message()) + lateWeight*len(w.late))
		l := late{o.message(), slices.Clone(w.late), o.receipt, w.anyway}
		t.b.journal.after(w.Batch(), func(q *sequel) { q.late = append(q.late, l) })
		t.b.journal.lates.Add(1)
		clear(w.late)
		w.late = w.late[:0]
	}
	switch {
	case w.Batch() == nil:
	case o.pub.QoS > packets.QoS0:
		w.ConcludeUrgently()
	default:
		w.Conclude()
	}
}

// waiting is c, which is about to hold output. c.sess.mu is held.
func (c *conn) waiting() journal.Waiting {
	return journal.Waiting{Waiter: c, Last: c.out.LastTicket()}
}

// clear is for the end of what a packet has led to, a panic included.
func (t *turn) clear() {
	w := &t.write
	w.from, w.waits, t.untold = nil, false, false
	w.conn, w.ctx, w.noRoom = nil, nil, nil
	w.anyway = false
	clear(w.late)
	w.late = w.late[:0]
	w.Clear()
}

// A moveResult is what becomes of a move.
type moveResult byte

const (
	moveOver moveResult = iota // it is over
	inBatch                    // it is part of one, see decided
	stays                      // it cannot be yet
)

// tie adds op, which may be nil, to what the turn has just added, so that both are committed or
// neither is. Without anything that was added the move is over.
func (t *turn) tie(m move, op store.Op) moveResult {
	if !t.write.Tie(op) {
		return moveOver
	}
	r := t.b.journal
	r.after(t.write.Batch(), func(q *sequel) {
		q.moves = append(q.moves, m)
		if m.s != nil {
			r.debts[m.s].moves++
		}
	})
	return inBatch
}

// forStore is d as the store knows it.
func (d *delivery) forStore(key uint64) store.Delivery {
	sd := store.Delivery{Session: key, Seq: d.seq, QoS: d.qos, Retain: d.retain, IDs: d.ids()}
	if g := d.group(); g != nil {
		sd.Group = g.Filter
	}
	return sd
}

// record, with s.mu held, gives d, which enters the queue of s, its place there, and puts it into
// the operation of its message.
func (t *turn) record(s *session, d *delivery) {
	s.seq++
	d.seq = s.seq
	op := t.write.Publish(d.msg, s.born)
	op.To = append(op.To, d.forStore(s.stored))
}

// holdSent, with c.sess.mu held, notes that a new delivery was given its identifier, and holds its
// PUBLISH, which begins at the given place of the output, if it has to wait. x is the batch that
// its message was just added to, nil: an earlier one.
func (c *conn) holdSent(x *journal.Batch, op store.Sent, at int, strict bool) {
	switch op.Session = c.sess.stored; {
	case op.Session == 0:
		c.hold(at, 0, link.KeepsPlace, op.ID)
	case strict:
		c.hold(at, c.b.journal.Sent(x, c.waiting(), op), link.Message, op.ID)
	default:
		c.b.journal.Sent(x, journal.Waiting{}, op)
		c.hold(at, 0, link.KeepsPlace, op.ID)
	}
}

// strict says whether d may not leave before the store knows that it does: it was published at QoS
// 2, so that a crash must not make it arrive twice.
func (d *delivery) strict() bool { return d.msg.QoS == packets.QoS2 }

// undecided, with s.mu held, returns the ticket that c has to wait for so that all that the Session
// has written is durable, 0 if there is nothing.
func (s *session) undecided(c *conn) uint64 {
	if s.stored == 0 {
		return 0
	}
	return s.b.journal.Join(c.waiting())
}

// never is the batch of a Session that was refused.
const never = math.MaxUint64

// storeUncertain, with s.mu held, says whether it is not certain yet that the store has s, or it
// has refused s. Nobody resumes such a Session.
func (s *session) storeUncertain() bool {
	return s.stored != 0 && s.born > s.b.journal.LastDecided()
}

// dropMessage takes the message out of a delivery that must not be sent (again). s.mu is held.
func (s *session) dropMessage(d *delivery, why hooks.DropReason) {
	switch {
	case d.seq == 0:
	case d.qos == packets.QoS1:
		s.storeDone(d)
	default:
		s.b.journal.Add(&store.Released{Session: s.stored, Seq: d.seq})
	}
	s.out.dropMessage(d, why)
	s.out.countLive()
}

// storeDone, with s.mu held, tells the store that d, which the Session no longer has, is over.
func (s *session) storeDone(d *delivery) {
	if d.seq != 0 {
		s.b.journal.Done(store.Done{Session: s.stored, Seq: d.seq})
	}
}

// put describes the Session as it is now, without its Will. s.mu is held.
func (s *session) put() *store.PutSession {
	op := &store.PutSession{Session: s.stored, ClientID: s.id, Principal: s.principal,
		Named: s.named, Mount: s.mount, Expiry: s.expiry}
	switch {
	case s.ended:
		op.Expiry = 0
	case s.conn == nil:
		op.ExpiresAt = s.endsAt
	}
	return op
}

// withdrawQueued removes an entry of the queue whose message could not be stored, unless it is on
// its way: then it was QoS 1, and will come twice.
func (s *session) withdrawQueued(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := int(s.out.head); i < len(s.out.flight); i++ {
		d := &s.out.flight[i]
		if d.seq != seq || d.state == done {
			continue
		}
		if d.msg != nil && d.strict() {
			if s.conn != nil {
				s.conn.out.Withdraw(d.id, func(m *link.Mark,
					_ byte) bool {
					return m.Kind == link.Message
				})
			}
			if d.found && !s.ended {
				s.findAgainLocked(d)
			}
			d.withdraw()
			s.out.finish(d)
			s.out.countLive()
		}
		return
	}
	s.out.remove(func(d *delivery) bool {
		if d.seq != seq {
			return false
		}
		d.withdraw()
		return true
	})
	s.b.journal.forgive(s, seq)
}

// neverReceived forgets a QoS 2 identifier that could not be stored with its message in batch n.
// Whoever waits for the PUBREC is refused: a connection that has sent the message again; what waits
// for that batch itself batchDecided refuses.
func (s *session) neverReceived(id uint16, n uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conn
	if c == nil {
		s.in.pubrel(id)
		return
	}
	var first byte
	isPubrec := func(m *link.Mark, b byte) bool {
		first = b
		if packets.Type(b>>4) != packets.TypePubrec || m.Kind == link.Acknowledgement &&
			m.Ticket == n {
			return false
		}
		c.leaves(m)
		return true
	}
	for c.out.Withdraw(id, isPubrec) {
		c.refuseAnswer(first, id, err)
	}
	c.forgetReceived(id)
}

// retainStored is retain for what outlives the Broker.
func (t *turn) retainStored(o *outgoing) error {
	old, err := t.retain(o)
	if err != nil || !lasts(o.pub.Topic) {
		return err
	}
	w, u := &t.write, retainedUndo{topic: string(o.pub.Topic), old: old}
	switch {
	case len(o.pub.Payload) > 0:
		u.now = o.message()
		w.Publish(u.now, 0).Retain = true
	case old == nil:
		w.Follow()
		return nil
	default:
		w.Put(&store.DeleteRetained{Topic: u.topic})
	}
	t.b.journal.after(w.Batch(), func(q *sequel) { q.undo = append(q.undo, u) })
	return nil
}

// deliverLate hands a QoS 2 message, now that it is durable, to those that the store does not know.
func (b *Broker) deliverLate(t *turn, l *late) {
	for i := range l.to {
		to, o := &l.to[i], t.again(l.msg)
		o.receipt = l.receipt
		if !to.s.deliver(t, o, to, takesAny) && to.group != nil {
			b.journal.owe(to.s, delivery{msg: l.msg, qos: to.qos, extra: to.extra(o)})
			b.journal.begin(to.s) // not here: hooks may be asked, and the releaser waits for nobody
		}
		l.receipt.moved() // from the place that was kept for it
	}
}

// again prepares a message that was published before to be delivered.
func (t *turn) again(m *message) *outgoing {
	t.own = packets.Publish{QoS: m.QoS, Retain: m.Retain, Topic: []byte(m.Topic),
		Properties: m.Properties, Payload: m.Payload}
	t.out.reset(&t.own, m.From, t.now, 0)
	t.out.msg, t.out.expires, t.out.waited = m, m.Expires, m.Expires != 0
	return &t.out
}

// Healthy returns nil while the Store works, and otherwise the error that it failed with. While it
// is not nil, what needs the Store is refused: QoS 1 and 2 publishes that a durable Session would
// get, retained messages, new durable Sessions and their subscriptions. All else goes on. An error
// that is store.ErrFull passes when there is room; any other one lasts until a new Broker opens the
// Store.
func (b *Broker) Healthy() error {
	if b.journal == nil {
		return nil
	}
	return b.journal.Health()
}
