package dunlin

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/retained"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A session is what outlives a Network Connection (4.1): subscriptions (in the tree, under num),
// queue, what is in flight in both directions, the Will and the expiry. In-process subscribers are
// sessions as well, with local in the place of conn.
type session struct {
	*holder
	b  *Broker
	id string // Client Identifier

	mu    lock.Mutex[sessionLock]
	conn  *conn         // nil while the client is away
	local *Subscription // in-process
	// Its number in the store; 0: it does not outlive the process. Set before anybody else sees the
	// Session
	stored  uint64
	born    uint64 // the batch that tells the store of it. As stored
	seq     uint64 // of the last entry of the queue, if stored is set
	num     uint32 // in the tree; 0 until the first subscription
	subs    int32  // subscriptions
	weight  int32  // of these, see owners.Weight
	expiry  uint32 // Session Expiry Interval, seconds; 0: ends with the connection
	gen     uint32 // how many connections have had it
	walking bool   // somebody looks for retained messages, or is about to
	ended   bool   // nothing may be added to it any more
	// How many identifiers of QoS 2 messages it has received at a time, see footprint
	most    uint16
	will    *will
	out     sender
	in      receiver
	cursors *retained.Cursors // retained messages still to be sent, see there; nil: none
	quota   queueLimits
	// When it expires, while the client is away, in Unix nanoseconds; 0: never
	endsAt int64
	client *hooks.Client // who has it, or had it last; nil in-process
	extra  *sessionExtra // see there; nil: there is nothing of it
	due    *timers.Timer // when it expires or its Will is due; nil until the client first leaves

	footprint footprint
}

// A holder is who a Session belongs to. Immutable, so that those without a name share one.
type holder struct {
	principal string // not named: one that is only claimed, or empty
	named     bool   // somebody with a name, be it an empty one
	mount     string // mount point
	key       string // in Broker.sessions; empty: the Client Identifier
}

var nobody holder

// claims says whether the principal of h is only a claim. It keeps nobody from a Client Identifier.
func (h *holder) claims() bool { return !h.named && h.principal != "" }

// identity is what is known of the client of a Session before it comes.
func (h *holder) identity() hooks.Identity {
	return hooks.Identity{Principal: h.principal, Unverified: h.claims()}
}

// place is the key of s in Broker.sessions.
func (s *session) place() string {
	if s.key != "" {
		return s.key
	}
	return s.id
}

// queueLimits bound the queue of a Session; overflow says what happens beyond.
type queueLimits struct {
	bytes    int
	messages int32
	overflow Overflow
}

// pumpBytes is how full an output buffer is made from the queue before the socket has to take some.
const pumpBytes = 64 << 10

// An eagerness says which messages a Session takes.
type eagerness bool

const (
	takesAny  eagerness = false
	takesSoon eagerness = true // only what it can send on at once
)

// deliver gives the session a message that it subscribes to and says whether it took it.
func (s *session) deliver(t *turn, o *outgoing, to *target, eager eagerness) bool {
	qos := min(o.pub.QoS, to.qos)
	retain := o.pub.Retain && to.retain
	s.mu.Lock()
	defer s.mu.Unlock()
	// a/# matches a, which is outside of a/
	if s.ended || len(o.pub.Topic) < len(s.mount) || eager == takesSoon && !s.ready(qos) {
		return false
	}
	c := s.conn
	if c != nil && (c.out.opening || c.stopping != nil) {
		// as if the client had not come yet, or had gone: behind a DISCONNECT comes nothing
		// [MQTT-3.14.4-1]
		c = nil
	}
	undecided := s.b.rules.shows != nil
	if s.b.rules.deliveries != nil && c != nil {
		may, known := s.reading(string(o.pub.Topic))
		if known && !may {
			s.missed(o, qos, hooks.DropNotAuthorized)
			return false
		}
		undecided = undecided || !known // it takes the way through the queue
	}
	switch {
	case c == nil && s.local == nil && qos == packets.QoS0 &&
		(!s.b.cfg().QueueQoS0 || s.b.memory.Over(leaveQoS0)):
		return false
	case c != nil && c.out.Backlog() > 0 && qos == packets.QoS0 && c.crowdedBy(o):
		s.missed(o, qos, hooks.DropMemory)
		return false
	case c == nil || undecided || qos > packets.QoS0 && (!s.out.direct() ||
		c.out.Size() > s.b.cfg().MaxOutboundBytes/2 || c.out.Backlog() > 0 && c.crowdedBy(o) ||
		s.lasting(to.group) && s.overdrawn(len(o.pub.Payload))) || s.out.qos0 > 0:
		return s.enqueue(t, delivery{msg: o.message(), extra: to.extra(o), qos: qos,
			retain: retain})
	case qos == packets.QoS0 && c.out.Size() > s.b.cfg().MaxOutboundBytes:
		s.missed(o, qos, hooks.DropSlowClient)
		return false
	case t.full() && !s.full(o.size()) && !s.overdrawn(o.size()):
		return s.enqueue(t, delivery{msg: o.message(), extra: to.extra(o), qos: qos,
			retain: retain})
	}
	return c.send(t, o, to, qos, retain)
}

// ready, with s.mu held, says whether the session could send a message on at once; a member of a
// shared subscription that cannot is passed over while another can.
func (s *session) ready(qos packets.QoS) bool {
	switch {
	case s.local != nil:
		return !s.full(0)
	case s.conn == nil || s.conn.out.opening || s.conn.stopping != nil:
		return false
	}
	return s.conn.out.Size() <= s.b.cfg().MaxOutboundBytes/2 &&
		(qos == packets.QoS0 || !s.full(0) && !s.overdrawn(1))
}

// full, with s.mu held, says whether the queue has no room for size more bytes.
func (s *session) full(size int) bool {
	return s.out.queue.Len() >= s.quota.messages || s.out.bytes+size > s.quota.bytes
}

// overdrawn, with s.mu held, says whether the owner of s may not have another delivery of the given
// size. A message counts in each queue that it is in and takes memory once. So a limit as large as
// the default holds only while memory is scarce.
func (s *session) overdrawn(size int) bool {
	a := s.out.owner
	if a.Room(owners.QueuedBytes, ownerSize(size)) {
		return false
	}
	return a.Most(owners.QueuedBytes) < int64(s.b.cfg().queuedShare()) ||
		s.b.memory.Over(queuedPercent)
}

// enqueue, with s.mu held, puts d into the queue, as the overflow policy has it.
func (s *session) enqueue(t *turn, d delivery) bool {
	policy, freed := s.quota.overflow, 0
	for s.full(d.size()) || freed < d.size() && s.overdrawn(d.size()) {
		if policy == OverflowBlock && s.local.mayExceed(t, d.size()) {
			break
		}
		// which never has room
		if policy != OverflowDropOldest || s.out.queue.Len() == 0 || d.size() > s.quota.bytes {
			s.discardLocked(&d, hooks.DropQueueFull)
			if policy == OverflowDisconnect && s.conn != nil {
				s.conn.stop(recent.As(hooks.EndQueueFull,
					packets.Errorf(packets.QuotaExceeded, "the queue of the client is full")))
				t.touch(s.conn)
			}
			return false
		}
		old := s.out.pop()
		freed += old.size()
		s.discardLocked(&old, hooks.DropQueueFull)
	}
	if s.stored != 0 && d.qos > packets.QoS0 {
		t.record(s, &d)
		if s.local != nil && d.strict() {
			s.local.doubt(t.write.Batch(), d.seq)
		}
	}
	s.out.push(d, ticks(s.b.started, t.now))
	s.b.crowded()
	if s.local != nil {
		s.local.signal()
	} else if s.conn != nil {
		t.touch(s.conn) // its flush fills the window from the queue
	}
	return true
}

// dropped, with s.mu held, counts and reports a message that did not reach the client. m is nil if
// it is not there any more.
func (s *session) dropped(m *packets.Message, why hooks.DropReason) {
	s.countDropLocked(why)
	topic := ""
	if m != nil {
		topic = m.Topic
	}
	s.b.stats.drops.Add(s.id, topic, why, time.Now())
	if s.local != nil && why != hooks.DropSessionEnded {
		s.local.lost()
	}
	if f := s.b.obs.Dropped; f != nil {
		f(hooks.Dropped{Client: s.observed(), Message: m, Reason: why})
	}
}

// discardLocked is the end of a delivery that does not reach the client. The caller has taken it
// out of the queue, or takes it out of what is in flight. s.mu is held.
func (s *session) discardLocked(d *delivery, why hooks.DropReason) {
	s.dropped(&d.msg.Message, why)
	d.settleLost(why)
	s.storeDone(d)
}

// pending says whether something waits for pump. s.mu is held.
func (s *session) pending() bool {
	return int(s.out.resend) < len(s.out.flight) || s.out.queue.Len() > 0 || s.cursors != nil
}

// missed, with s.mu held, is dropped for what did not get as far as a delivery, of this QoS.
func (s *session) missed(o *outgoing, qos packets.QoS, why hooks.DropReason) {
	if o.trying {
		return
	}
	if o.msg == nil && !s.b.observesMessages() { // but the list of what was lost has the topic
		o.lend(string(o.pub.Topic))
	}
	s.dropped(o.observed(), why)
	if o.receipt != nil {
		o.receipt.enter()
		o.receipt.leave(s, qos, why)
	}
}

// pump, with s.mu held, sends on c what waits for room, as far as there is room: first what is in
// flight from an earlier connection, then the queue, then retained messages.
func (s *session) pump(c *conn, now time.Time) {
	if !s.pending() {
		return
	}
	if s.conn != c || c.stopping != nil || c.out.opening {
		return
	}
	for n := c.out.Size(); n < pumpBytes; n = c.out.Size() {
		if n > 0 && s.b.memory.Over(dropQueued) { // one after the other
			return
		}
		if s.b.rules.deliveries != nil && !s.permitNext() {
			return // until askAndFlush has asked
		}
		if s.b.rules.shows != nil {
			ready, dropped := s.showNext(c)
			if !ready {
				return // until askShows has asked
			}
			if dropped {
				continue
			}
		}
		if d := s.out.again(); d != nil {
			s.repeat(c, d, now)
			continue
		}
		if int(s.out.resend) < len(s.out.flight) {
			return // the quota is used up
		}
		if d := s.out.queue.Front(); d != nil {
			if d.qos > packets.QoS0 && !s.out.room() || !s.admits(c, d) {
				return
			}
			s.sendQueued(c, s.out.pop(), now)
			continue
		}
		if !s.walking && s.walkableLocked(c) != nil {
			s.b.walkLaterLocked(s)
		}
		return
	}
}

// repeat, with s.mu held, sends what was in flight when the last connection ended: PUBLISH with
// DUP, or PUBREL.
func (s *session) repeat(c *conn, d *delivery, now time.Time) {
	at := c.out.End()
	if d.state == pubrelSent {
		c.ack(nil, packets.TypePubrel, d.id, packets.Success)
		c.hold(at, s.undecided(c), link.Durable, d.id)
		return
	}
	if !c.appendMessage(s.takeShown(d.msg), wire{qos: d.qos, dup: true, retain: d.retain, id: d.id,
		ids: d.ids()}, now) {
		s.discardLocked(d, hooks.DropTooLarge)
		s.out.finish(d)
		return
	}
	ticket := uint64(0)
	if d.strict() {
		ticket = s.undecided(c)
	}
	c.hold(at, ticket, link.Message, d.id)
}

// sendQueued, with s.mu held, sends what came off the front of the queue.
func (s *session) sendQueued(c *conn, d delivery, now time.Time) {
	if d.msg.Expires != 0 && d.msg.Expires <= now.UnixNano() {
		s.discardLocked(&d, hooks.DropExpired)
		return
	}
	w, shown := wire{qos: d.qos, retain: d.retain, ids: d.ids()}, s.takeShown(d.msg)
	if c.tooLarge(shown, w) {
		s.discardLocked(&d, hooks.DropTooLarge)
		return
	}
	if d.qos > packets.QoS0 {
		if d.seq == 0 && s.stored != 0 { // a retained one
			s.seq++
			d.seq = s.seq
			s.b.journal.Enqueue(d.msg, d.forStore(s.stored))
		}
		m := d.msg
		if !s.lasting(d.group()) {
			d.msg = nil
		}
		w.id = s.out.open(&d)
		d.msg = m
	} else {
		d.settleArrived()
	}
	at := c.out.End()
	c.appendMessage(shown, w, now)
	if w.id != 0 {
		c.holdSent(nil, store.Sent{Seq: d.seq, ID: w.id}, at, d.strict())
	}
}

// lasting, with s.mu held, says whether a delivery, once in flight, may be needed again: on a later
// connection, or by another member of its group, which is nil for most.
func (s *session) lasting(group *subs.Group) bool {
	return s.expiry > 0 || s.stored != 0 || group != nil
}

// acked handles PUBACK, PUBREC and PUBCOMP from the client. There is something to write only for a
// PUBREC, or if messages wait for a place in the window.
func (s *session) acked(t *turn, c *conn, a *packets.Ack) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c {
		return nil
	}
	var refused *packets.Message // nil: it was not, or the message is not there any more
	if a.Code.Failed() {
		if d := s.out.find(a.PacketID); d != nil && d.msg != nil {
			refused = &d.msg.Message
		}
	}
	v, seq := s.out.ack(a.Kind, a.PacketID, a.Code)
	if a.Kind == packets.TypePubrec || s.pending() {
		t.touch(c)
	}
	at := c.out.End()
	switch v {
	case sendPubrel:
		c.ack(t, packets.TypePubrel, a.PacketID, packets.Success)
		c.hold(at, s.storePubrec(c, seq), link.Durable, a.PacketID)
	case repeatPubrel:
		c.ack(t, packets.TypePubrel, a.PacketID, packets.Success)
		c.hold(at, s.undecided(c), link.Durable, a.PacketID)
	case ignored:
		t.unknown++
	case unknownPubrec:
		t.unknown++
		c.ack(t, packets.TypePubrel, a.PacketID, packets.PacketIdentifierNotFound)
		c.hold(at, 0, link.KeepsPlace, a.PacketID)
	case mismatched:
		return packets.Errorf(packets.ProtocolError, "%v for a message of another QoS", a.Kind)
	case completed:
		if seq != 0 {
			s.b.journal.Done(store.Done{Session: s.stored, Seq: seq})
		}
		if a.Code.Failed() {
			s.dropped(refused, hooks.DropRefused)
		} else if f := s.b.obs.Acknowledged; f != nil {
			f(hooks.Acknowledged{Client: s.observed(), PacketID: a.PacketID})
		}
		if s.out.queue.Len() > 0 && s.out.quota < int32(c.window) && a.Kind == packets.TypePuback {
			s.widenLocked(c, t.now)
		}
	}
	return nil
}

// storePubrec, with s.mu held, tells the store that PUBREC came for an entry, which is not in the
// store if seq is 0. It returns the ticket that the PUBREL waits for.
func (s *session) storePubrec(c *conn, seq uint64) uint64 {
	if seq == 0 {
		return 0
	}
	return s.b.journal.Released(c.waiting(), store.Released{Session: s.stored, Seq: seq})
}

// resume, with s.mu held, gives the session its new connection, whose sess the caller has set.
// Whatever the old one had of its own is gone.
func (s *session) resume(c *conn) {
	s.conn, s.client = c, c.client
	s.gen++
	s.forgetReadingsLocked()
	s.forgetShowsLocked()
	s.out.begin(int(min(c.window, firstWindow)))
	if s.extra != nil {
		s.extra.round, s.extra.stuck = round{}, stuck{}
	}
	s.in.begin()
	s.countLocked()
}

// leave, with s.mu held, is the end of the connection of s at now: the Session waits for its
// client, or, with no expiry, is over. It returns the Will if that is to be published now, and
// whether the Session goes on.
func (s *session) leave(now time.Time) (w *will, stays bool) {
	s.will.readerIsDone()
	if s.conn != nil {
		s.withdrawMessagesLocked()
		s.conn = nil
	}
	s.forgetReadingsLocked()
	s.forgetShowsLocked()
	if s.expiry == 0 {
		return nil, false
	}
	s.out.trim()
	s.trimArrivalsLocked()
	s.setEnd(now)
	if s.will != nil && s.will.delay == 0 {
		w, s.will = s.will, nil
	} else if s.will != nil {
		s.will.at = now.Add(s.will.delay)
		s.tellWill()
	}
	s.countLocked()
	return w, true
}

// setEnd makes the Session expire in time, counted from now. s.mu is held.
func (s *session) setEnd(now time.Time) {
	s.endsAt = 0
	if s.expiry != noExpiry {
		s.endsAt = unixNano(now.Add(time.Duration(s.expiry) * time.Second))
	}
}

// expiresAt, with s.mu held, is endsAt as a time, zero for never.
func (s *session) expiresAt() time.Time {
	if s.endsAt == 0 {
		return time.Time{}
	}
	return time.Unix(0, s.endsAt)
}

// withdrawMessagesLocked takes back what the connection of s, which ends, holds of messages. Those
// that are held for the first time have never left. s.mu is held.
func (s *session) withdrawMessagesLocked() {
	const dup = 8
	s.conn.out.WithdrawMessages(func(id uint16, first byte) {
		if d := s.out.find(id); d != nil && first&dup == 0 {
			d.unsent = true
		}
	})
}

// endState, with s.mu held, takes everything out of the session, once. It returns the Will if one
// is still to be published, and the undelivered messages that came by a shared subscription, which
// go to other members, but for those of QoS 2 that were sent [MQTT-4.8.2-5].
func (s *session) endState() (w *will, shared []delivery) {
	s.ended = true
	if s.conn != nil {
		s.withdrawMessagesLocked()
	}
	s.forgetReadingsLocked()
	s.forgetShowsLocked()
	s.will.readerIsDone()
	w, s.will = s.will, nil
	collect := func(d *delivery) {
		if d.group() != nil && d.msg != nil && (d.qos == packets.QoS1 || d.id == 0 || d.unsent) {
			shared = append(shared, *d)
			return
		}
		d.settleLost(hooks.DropSessionEnded)
		if d.msg != nil {
			s.dropped(&d.msg.Message, hooks.DropSessionEnded)
		}
	}
	for i := int(s.out.head); i < len(s.out.flight); i++ {
		if s.out.flight[i].state != done {
			collect(&s.out.flight[i])
		}
	}
	s.out.queue.All(func(d *delivery) bool { collect(d); return true })
	s.out.clear()
	s.dropCursorsLocked()
	s.in, s.subs = receiver{}, 0
	s.countLocked()
	return w, shared
}

// wire is what a PUBLISH has of its own on one hop.
type wire struct {
	qos         packets.QoS
	dup, retain bool
	version     packets.Version
	id          uint16
	alias       uint16   // 0: none
	ids         []uint32 // Subscription Identifiers
}

// packet is the PUBLISH without its topic, and without more.
func (w *wire) packet(props packets.Properties, payload []byte) packets.Publish {
	return packets.Publish{
		Dup: w.dup, Retain: w.retain, QoS: w.qos, PacketID: w.id, Properties: props, Payload: payload,
	}
}

// more appends the properties that do not travel with the message.
func (w *wire) more(dst packets.Properties) packets.Properties {
	for _, id := range w.ids {
		dst = dst.AppendUint(packets.SubscriptionIdentifier, id)
	}
	if w.alias != 0 {
		dst = dst.AppendUint(packets.TopicAlias, uint32(w.alias))
	}
	return dst
}

// moreRoom is what more takes for most.
const moreRoom = 32

// appendPublish appends a whole PUBLISH. props are those that travel with the message.
func appendPublish[T string | []byte](
	dst []byte, w wire, topic T, props packets.Properties, payload []byte,
) []byte {
	p := w.packet(props, payload)
	var room [moreRoom]byte
	return packets.AppendPublish(dst, w.version, &p, topic, w.more(room[:0]))
}

// publishSize returns the length of the PUBLISH of m, with a topic of that length.
func publishSize(w wire, topic int, m *message) int {
	p := w.packet(m.Properties, m.Payload)
	var room [moreRoom]byte
	return packets.PublishSize(w.version, &p, topic, len(w.more(room[:0])))
}
