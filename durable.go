package dunlin

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is how turns and Sessions describe what they do to the journal. A Session is durable, from its beginning to its end, if there is a
// Store and it was begun with a Session Expiry Interval: then it has a key, and each QoS 1 or 2 entry of its queue a seq.

// A write is what a turn is about to give the journal.
type write struct {
	batch  *batch          // pinned, so that it is not committed before all is in; nil: nothing was added
	op     *store.Publish  // of the message that is being routed; nil: nobody needed it yet
	slot   int             // its place in batch.ops
	keep   int             // how many callers want batch to stay pinned: what they do belongs together
	waits  bool            // the message is QoS 2: whom the store does not know gets it once it is durable
	late   []target        // who gets the message once it is durable
	room   int64           // taken for what is about to be added; given back by clear
	noRoom error           // why what was not refused cannot be retained
	conn   *conn           // whose reader may wait for that, until the connection ends; nil: none
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
	if w.from != nil {
		op := t.operation(o.message(), 0)
		op.FromSession, op.FromID = w.from.stored, w.id
	}
	if o.pub.Retain {
		err := w.noRoom
		if err == nil {
			err = t.retainStored(o)
		}
		if err := t.orDeliver(o, err); err != nil {
			if w.op != nil {
				w.op.FromSession, w.op.FromID = 0, 0 // it is not received: the PUBREC says so
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
	j, w := t.b.journal, &t.write
	w.noRoom = nil
	needs := o.pub.QoS > packets.QoS0 && t.stores(o, r)
	if needs {
		if err := j.refusing(); err != nil {
			return err
		}
	}
	n := int64(opWeight + len(o.pub.Topic) + len(o.pub.Payload) + len(o.pub.Properties) + len(o.from))
	n += int64(deliveryWeight * (len(r.targets) + len(r.shared)))
	switch {
	case j.room.take(n):
	case w.batch != nil || w.keep > 0 || w.conn == nil && w.ctx == nil: // what may not wait goes beyond
		j.room.add(n)
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
	w.room += n
	return nil
}

// takeRoomFor is takeRoom for operations of c, which weigh n bytes. The turn has to be cleared when
// they have been added.
func (t *turn) takeRoomFor(c *conn, n int) error {
	j, w := t.b.journal, &t.write
	if w.conn = c; !j.room.take(int64(n)) {
		if err := t.awaitRoom(int64(n)); err != nil {
			return err
		}
	}
	w.room += int64(n)
	return nil
}

// awaitRoom waits for n bytes of room, with nothing of the turn left unflushed, and takes them. It
// does not wait while the store fails.
func (t *turn) awaitRoom(n int64) error {
	w, j := &t.write, t.b.journal
	if err := j.refusing(); err != nil {
		return err
	}
	ctx := w.ctx
	if c := w.conn; c != nil {
		ctx = c.context()
		if t.read != nil {
			t.b.memory.Recount(budget.Partial, &c.restCounted, cap(t.read.b))
			defer c.countRest()
		}
	}
	t.end()
	j.rouse() // so that what is there is committed
	err := j.room.await(ctx, n, j.ended)
	t.now = time.Now()
	if err != nil {
		return err
	}
	if err = j.refusing(); err != nil { // it has failed meanwhile
		j.room.give(n)
	}
	return err
}

// ask decides whether the members of a shared subscription may get messages of topic, before a batch is pinned, which would keep everybody
// else's from the store meanwhile, or the topic is locked.
func (t *turn) ask(r *sharedRoute, topic string) {
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

// permits says whether s, a member of a shared subscription, may get messages of topic. If that was to be asked already and is not known, as
// the rules have changed this moment, s gets the message into its queue, and it is asked when that is sent.
func (t *turn) permits(s *session, topic string) bool {
	if !t.asked {
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
	return o.pub.QoS > packets.QoS0 && r.durable || o.pub.Retain && lasts(o.pub.Topic) || t.write.from != nil
}

// follows says whether o, although the store need not know of it, has to wait behind QoS 2 messages that are not durable yet: it may be of
// the publisher of one, and must not overtake it [MQTT-4.6.0-6]; or one of them may be of the same topic, and what is retained came last.
func (t *turn) follows(o *outgoing) bool {
	return (o.pub.QoS == packets.QoS2 || o.pub.Retain) && t.b.journal.lates.Load() > 0
}

// give hands o to one receiver, or notes that he gets it when it is durable.
func (t *turn) give(o *outgoing, to *target, eager bool) bool {
	w := &t.write
	if !w.waits || to.s.stored != 0 && to.qos > packets.QoS0 {
		return to.s.deliver(t, o, to, eager)
	}
	to.s.mu.Lock()
	takes := !to.s.ended && (!eager || to.s.ready(min(o.pub.QoS, to.qos)))
	if takes && to.s.quota.overflow == Block && to.s.full(0) {
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

// operation returns the operation of the message that is being routed. born is the batch in which the Session began that is
// to be named in it.
func (t *turn) operation(m *message, born uint64) *store.Publish {
	w, j := &t.write, t.b.journal
	if w.op != nil && w.batch.n >= born {
		return w.op
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if w.batch != nil && w.batch.n < born {
		w.op = nil // that one is complete
		j.unpin(w.batch)
		w.batch = nil
	}
	t.pin()
	x := w.batch
	w.slot = len(x.ops)
	w.op = x.publishes.next()
	w.op.Message, w.op.To, w.op.Retain, w.op.FromSession, w.op.FromID = m, w.op.To[:0], false, 0, 0
	j.put(x, w.op)
	return w.op
}

// pin makes the pending batch the one of the turn, unless it has one. journal.mu is held.
func (t *turn) pin() {
	if w := &t.write; w.batch == nil {
		w.batch = t.b.journal.pending
		w.batch.pins++
	}
}

// follow makes whoever waits for what the turn does wait for all that is not decided yet, although
// the turn adds nothing.
func (t *turn) follow() {
	j := t.b.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.settled() {
		t.pin()
	}
}

// unpin lets x be committed. mu is held.
func (j *journal) unpin(x *batch) {
	if x.pins--; x.pins == 0 && x.unpinned != nil {
		close(x.unpinned)
	}
}

// conclude ends the operation of a message: all that it is for is in it.
func (t *turn) conclude(o *outgoing) {
	w, j := &t.write, t.b.journal
	if w.batch == nil && len(w.late) == 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	t.pin()
	x := w.batch
	if len(w.late) > 0 {
		x.late = append(x.late, late{o.message(), slices.Clone(w.late), o.receipt})
		j.grow(x, opWeight+messageWeight(o.message())+lateWeight*len(w.late))
		j.lates.Add(1)
		x.urgent = true
		clear(w.late)
		w.late = w.late[:0]
	}
	if op := w.op; op != nil {
		w.op = nil
		j.grow(x, weighDeliveries(op.To))
		if len(op.To) == 0 && !op.Retain {
			j.withdraw(x, w.slot, op)
		}
	}
	if o.pub.QoS > packets.QoS0 {
		x.urgent = true
	}
}

// wait makes c a waiter for what the turn has just added, and returns where that is; nil: nothing was. The lock of c's session is held.
func (t *turn) wait(c *conn) *batch {
	x := t.write.batch
	if x == nil {
		return nil
	}
	j := t.b.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	x.enlist(c)
	return x
}

// together keeps what is added until apart in one batch.
func (t *turn) together() { t.write.keep++ }

// apart ends what together began.
func (t *turn) apart() {
	t.write.keep--
	t.settle()
}

// clear is for the end of what a packet has led to, a panic included.
func (t *turn) clear() {
	w := &t.write
	w.op, w.from, w.waits, t.untold = nil, nil, false, false
	w.conn, w.ctx, w.noRoom = nil, nil, nil
	clear(w.late)
	w.late = w.late[:0]
	t.settle()
	if n := w.room; n > 0 { // what was added counts itself by now
		w.room = 0
		t.b.journal.room.give(n)
	}
}

// settle lets the committer have what the turn has added.
func (t *turn) settle() {
	w := &t.write
	if w.batch == nil || w.keep > 0 {
		return
	}
	j := t.b.journal
	j.mu.Lock()
	j.unpin(w.batch)
	urgent := w.batch.urgent
	w.batch = nil
	j.mu.Unlock()
	if urgent {
		j.wake()
	}
}

// addTo adds op, which nobody waits for, to what the turn writes together.
func (t *turn) addTo(op store.Op) {
	j := t.b.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	if t.write.keep > 0 {
		t.pin()
		j.put(t.write.batch, op)
	} else {
		j.put(j.pending, op)
	}
}

// forStore is d as the store knows it.
func (d *delivery) forStore(key uint64) store.Delivery {
	sd := store.Delivery{Session: key, Seq: d.seq, QoS: d.qos, Retain: d.retain, IDs: d.ids()}
	if g := d.group(); g != nil {
		sd.Group = g.Filter
	}
	return sd
}

// record gives d, which enters the queue of s, its place there, and puts it into the operation of its message. The lock of s is held.
func (t *turn) record(s *session, d *delivery) {
	s.seq++
	d.seq = s.seq
	op := t.operation(d.msg, s.born)
	op.To = append(op.To, d.forStore(s.stored))
}

// goes notes that a new delivery was given its identifier, and holds its PUBLISH, which begins at the given place of the output, if that has
// to wait. x is the batch that its message was just added to, nil: an earlier one. The lock is held.
func (c *conn) goes(x *batch, seq uint64, id uint16, at int, strict bool) {
	s := c.sess
	if s.stored == 0 {
		c.hold(at, nil, after, id)
		return
	}
	if !strict {
		s.b.journal.sent(x, nil, s.stored, seq, id)
		c.hold(at, nil, after, id)
		return
	}
	c.hold(at, s.b.journal.sent(x, c, s.stored, seq, id), aPublish, id)
}

// strict says whether d may not leave before the store knows that it does: it was published at QoS 2, so that a crash must not make
// it arrive twice.
func (d *delivery) strict() bool { return d.msg.QoS == packets.QoS2 }

// undecided returns what c has to wait for so that all that the Session has written is durable, nil if there is nothing or if that is not
// wanted. The lock is held.
func (s *session) undecided(c *conn, wanted bool) *batch {
	if s.stored == 0 || !wanted {
		return nil
	}
	return s.b.journal.join(c)
}

// forget takes the message out of a delivery that must not be sent (again). The lock is held.
func (s *session) forget(d *delivery) {
	switch {
	case d.seq == 0:
	case d.qos == packets.QoS1:
		s.gone(d)
	default:
		s.b.journal.add(&store.Released{Session: s.stored, Seq: d.seq})
	}
	s.out.forget(d)
}

// gone tells the store that d, which the Session no longer has, is over.
func (s *session) gone(d *delivery) {
	if d.seq != 0 {
		s.b.journal.done(s.stored, d.seq)
	}
}

// put describes the Session as it is now. The lock is held.
func (s *session) put() *store.PutSession {
	op := &store.PutSession{Session: s.stored, ClientID: s.id, Principal: s.principal, Named: s.named, Mount: s.mount, Expiry: s.expiry}
	if s.conn == nil {
		op.ExpiresAt = s.endsAt
	}
	if w := s.will; w != nil {
		op.Username = w.client.Username
		op.Will = &store.Will{Message: w.msg.Message, Delay: uint32(min(w.delay/time.Second, math.MaxUint32))}
		if !w.at.IsZero() {
			op.Will.At = unixNano(w.at)
		}
	}
	return op
}

// save adds the Session as it is now to what the turn writes.
func (t *turn) save(s *session) {
	if s.stored == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		t.addTo(s.put())
	}
}

// before is what a Session was before a client wanted to resume it.
type before struct {
	expiry uint32
	will   *will
	quota  queueLimits
}

// confirm waits until the Session of c is durable as c wants it, and then accepts c. If that fails the Session is what it was: was, or, if that is
// nil, none.
func (b *Broker) confirm(t *turn, c *conn, a *attachment, x *batch, was *before) error {
	t.end() // the others need not wait
	s := c.sess
	err := b.journal.wait(b.ctx, x, was != nil)
	if s.stored == 0 && errors.Is(err, errNotStored) {
		err = nil // nothing of s has to be stored, and the end of the Session before it is tried until it is
	}
	s.mu.Lock()
	c.out.opening = false
	switch {
	case s.conn != c:
		err = packets.Errorf(packets.UnspecifiedError, "another connection with the same Client Identifier")
	case c.stopping != nil:
		err = c.stopping
	}
	if err == nil {
		c.welcome(a.connack)
		s.mu.Unlock()
		c.flush(time.Now())
		return nil
	}
	defer b.expireAuth(c, time.Time{})
	if s.conn != c {
		s.mu.Unlock()
		return err
	}
	if was == nil {
		s.will.answer()
		s.will = nil
		s.mu.Unlock()
		b.endSession(t, s, nil)
		return err
	}
	s.will.answer()
	s.conn, s.expiry, s.will, s.quota = nil, was.expiry, was.will, was.quota
	s.wait()
	b.journal.add(s.put())
	s.mu.Unlock()
	return err
}

// publishWillOf publishes the Will of a Session that goes on, and in the same step tells the store that it has none any more.
func (b *Broker) publishWillOf(t *turn, s *session, w *will) {
	t.together()
	defer t.apart() // after a panic as well: a batch that stays pinned would stop the committer
	b.publishWill(t, w)
	t.save(s)
}

// takeBack removes an entry of the queue whose message could not be stored, unless it is on its way: then it was QoS 1, and will come twice.
func (s *session) takeBack(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := int(s.out.head); i < len(s.out.flight); i++ {
		d := &s.out.flight[i]
		if d.seq != seq || d.state == done {
			continue
		}
		if d.msg != nil && d.strict() {
			if s.conn != nil {
				s.conn.out.withdraw(d.id, func(m *mark, _ byte) bool { return m.kind == aPublish })
			}
			d.settle(false)
			s.out.finish(d)
		}
		return
	}
	s.out.remove(func(d *delivery) bool {
		if d.seq != seq {
			return false
		}
		d.settle(false)
		return true
	})
}

// neverReceived forgets a QoS 2 identifier that could not be stored with its message in batch n. Whoever waits for the PUBREC is refused:
// a connection that has sent the message again; what waits for that batch itself letGo refuses.
func (s *session) neverReceived(id uint16, n uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conn
	if c == nil {
		s.in.pubrel(id)
		return
	}
	var first byte
	isPubrec := func(m *mark, b byte) bool {
		first = b
		return packets.Type(b>>4) == packets.TypePubrec && !(m.kind == answer && m.batch == n)
	}
	for c.out.withdraw(id, isPubrec) {
		c.refuseAnswer(first, id, err)
	}
	c.released(id)
}

// retainStored is retain for what outlives the Broker.
func (t *turn) retainStored(o *outgoing) error {
	old, err := t.retain(o)
	if err != nil || !lasts(o.pub.Topic) {
		return err
	}
	j, u := t.b.journal, retainedUndo{topic: string(o.pub.Topic), old: old}
	if old == nil && len(o.pub.Payload) == 0 {
		t.follow()
		return nil
	}
	if len(o.pub.Payload) > 0 {
		u.now = o.message()
		t.operation(u.now, 0).Retain = true
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	t.pin()
	if u.now == nil {
		j.put(t.write.batch, &store.DeleteRetained{Topic: u.topic})
	}
	t.write.batch.undo = append(t.write.batch.undo, u)
	return nil
}

// deliverLate hands a QoS 2 message, now that it is durable, to those that the store does not know.
func (b *Broker) deliverLate(t *turn, l *late) {
	for i := range l.to {
		to, o := &l.to[i], t.again(l.msg)
		o.receipt = l.receipt
		if !to.s.deliver(t, o, to, false) && to.group != nil {
			b.passOn(t, &delivery{msg: l.msg, extra: to.extra(o)})
		}
		l.receipt.moved() // from the place that was kept for it
	}
}

// again prepares a message that was published before to be delivered.
func (t *turn) again(m *message) *outgoing {
	t.own = packets.Publish{QoS: m.QoS, Retain: m.Retain, Topic: []byte(m.Topic), Properties: m.Properties, Payload: m.Payload}
	t.out.reset(&t.own, m.From, t.now, 0)
	t.out.msg, t.out.expires, t.out.waited = m, m.Expires, m.Expires != 0
	return &t.out
}

// Healthy returns nil while the Store works, and otherwise the error that it failed with. While it is not nil, what needs the Store is
// refused: QoS 1 and 2 publishes that a durable Session would get, retained messages, new durable Sessions and their subscriptions. All else goes
// on. An error that is store.ErrFull passes when there is room; any other one lasts until a new Broker opens the Store.
func (b *Broker) Healthy() error {
	if b.journal == nil {
		return nil
	}
	b.journal.mu.Lock()
	defer b.journal.mu.Unlock()
	return b.journal.failure
}
