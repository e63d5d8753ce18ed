package dunlin

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/loop"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/traffic"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file takes one Application Message to everybody who subscribes to it.

// A turn is what a goroutine holds while it works on what one read of a connection brought, or on
// one message of its own: scratch memory, the time, and the connections that have to be flushed at
// the end. Turns are pooled; an idle connection has none.
type turn struct {
	b        *Broker
	now      time.Time
	dirty    []*conn
	blocked  []*Subscription // full, with the policy OverflowBlock: who publishes waits for them
	receipt  *receipt        // of the next message that publishMessage routes
	untold   bool            // outgoing.untold of that message
	gathered int             // bytes of packets handled since the last flush
	rounds   int             // and how often gather said yes
	unknown  int             // acknowledgements in this turn with an unknown Packet Identifier
	reached  int             // receivers of the messages in this turn
	made     int             // bytes of messages in the output of others since the last flush
	read     *link.Buffer    // what was read; nil for turns that do not read
	reader   link.Reader     // for connections on an event loop
	worker   *loop.Worker    // that runs the turn for an event loop; nil: a goroutine of its own does
	// Until c is accepted: nothing has been read behind the packet that is handled
	last      bool
	congested []*conn // those that the flush left congested

	pub     packets.Publish
	ack     packets.Ack
	connect packets.Connect
	own     packets.Publish // what publishMessage routes
	out     outgoing
	topic   []byte // scratch: a topic
	mounted []byte // scratch: a topic with its mount point
	props   packets.Properties
	access  hooks.AccessRequest
	route   route // for routing without a connection's cache
	matches subs.Matches
	asked   bool // what the members of shared subscriptions may get has been asked
	refused bool // the store had no room for a message; the next flush tells the client
	found   int  // how many subscriptions the last message matched, whether or not anybody took it
	write   write

	traffic  traffic.Tally // added up at the end
	received Traffic       // of the connection that is read
}

// touch notes that c has something to write. c.sess.mu is held.
func (t *turn) touch(c *conn) {
	if c.touched != t {
		c.touched = t
		t.dirty = append(t.dirty, c)
	}
}

// end flushes what the turn has written to, each connection once.
func (t *turn) end() {
	for i, c := range t.dirty {
		n, congested := c.flushed(t.now)
		if n > 0 {
			t.traffic.Of(c.class).SentBytes += uint64(n)
		}
		if congested {
			t.congested = append(t.congested, c)
		}
		t.dirty[i] = nil
	}
	t.dirty, t.gathered, t.rounds, t.made = t.dirty[:0], 0, 0, 0
	t.unknown, t.reached = 0, 0
	t.refused = false
	t.traffic.AddUp()
}

// A turn makes at most maxBurst bytes of output before it flushes, and at most one part in
// burstPart of MaxMemory, because output is counted when it is flushed. Beyond that, messages take
// the way through the queues, which share one copy of each.
const (
	maxBurst  = 16 << 20
	burstPart = 32
)

// full says whether t has made so much output that it has to flush.
func (t *turn) full() bool {
	return t.made > 256<<10 && int64(t.made) > min(maxBurst, t.b.memory.Limit()/burstPart)
}

// An outgoing is one Application Message while it is routed. The frame that goes out is built once
// for each class of receivers, and the message that queues share is made only if somebody needs it.
type outgoing struct {
	pub *packets.Publish // topic complete, aliases resolved, properties only those that travel
	// The packet as it came, if it can go out as it is to receivers of the same kind
	raw     []byte
	rawV5   bool
	from    string
	expires int64
	msg     *message
	topic   string          // of the last message that was made: many in a row have the same
	lent    packets.Message // see lend
	receipt *receipt        // nil for most
	// Nobody can be told that it is not retained: then it is delivered all the same
	untold bool
	// Why it was delivered and not retained; nil: it was, or need not be. Of the last retained one.
	unretained error
	trying     bool     // another member of the group may take it: who does not has lost nothing
	waited     bool     // so that less is left of its Message Expiry Interval than pub says
	frames     [4]frame // by version 5.0 or not, and with Packet Identifier or not
}

// size is what a delivery of o counts against MaxQueuedBytes, without Subscription Identifiers.
func (o *outgoing) size() int {
	return len(o.pub.Payload) + len(o.pub.Topic) + len(o.pub.Properties) + deliverySize
}

// A frame is a whole PUBLISH whose first byte and Packet Identifier are patched for each receiver.
type frame struct {
	b     []byte
	idAt  int
	ready bool
	own   []byte // memory for b
}

// reset prepares o for another message.
func (o *outgoing) reset(p *packets.Publish, from string, now time.Time, maxExpiry time.Duration) {
	o.pub, o.raw, o.from, o.msg, o.expires, o.receipt = p, nil, from, nil, 0, nil
	o.untold, o.trying, o.waited = false, false, false
	for i := range o.frames {
		o.frames[i].ready = false
	}
	if len(p.Properties) > 0 {
		if n, ok := p.Properties.Uint(packets.MessageExpiryInterval); ok {
			o.expires = unixNano(now.Add(time.Duration(n) * time.Second))
		}
	}
	if maxExpiry > 0 {
		if most := unixNano(now.Add(maxExpiry)); o.expires == 0 || o.expires > most {
			o.expires = most
		}
	}
}

// message returns the shared, immutable form.
func (o *outgoing) message() *message {
	if o.msg == nil {
		p := o.pub
		if o.topic != string(p.Topic) {
			o.topic = string(p.Topic)
		}
		o.msg = &message{Message: packets.Message{Topic: o.topic, QoS: p.QoS,
			Retain: p.Retain}, Expires: o.expires, From: o.from}
		// One allocation for both, or none.
		if n := len(p.Payload) + len(p.Properties); n > 0 {
			b := make([]byte, n)
			copy(b, p.Payload)
			copy(b[len(p.Payload):], p.Properties)
			o.msg.Payload = b[:len(p.Payload):len(p.Payload)]
			if len(p.Properties) > 0 {
				o.msg.Properties = b[len(p.Payload):]
			}
		}
	}
	return o.msg
}

// lend fills in what observed returns while there is no shared form. It points to what was read.
func (o *outgoing) lend(topic string) {
	p, m := o.pub, &o.lent
	m.Topic, m.Payload, m.Properties = topic, p.Payload, p.Properties
	m.QoS, m.Retain = p.QoS, p.Retain
}

// observed returns what the Observer gets to see of the message, until the end of its call: the
// shared form, or what lend made.
func (o *outgoing) observed() *packets.Message {
	if o.msg != nil {
		return &o.msg.Message
	}
	return &o.lent
}

// frame returns the frame for receivers of a version, with a Packet Identifier if qos has one.
func (o *outgoing) frame(v packets.Version, qos packets.QoS) *frame {
	k, v5, id := 0, v == packets.V5, qos > packets.QoS0
	if v5 {
		k |= 1
	}
	if id {
		k |= 2
	}
	f := &o.frames[k]
	if f.ready {
		return f
	}
	f.ready = true
	if o.raw != nil && v5 == o.rawV5 && id == (o.pub.QoS > packets.QoS0) {
		f.b = o.raw
	} else {
		w := wire{version: v}
		if id {
			w.qos = packets.QoS1
		}
		f.own = appendPublish(f.own[:0], w, o.pub.Topic, o.pub.Properties, o.pub.Payload)
		f.b = f.own
	}
	if id {
		f.idAt = 1
		for f.b[f.idAt] >= 0x80 {
			f.idAt++
		}
		f.idAt += 1 + 2 + len(o.pub.Topic)
	}
	return f
}

// A target is a session that a topic goes to, its matching subscriptions merged into one.
type target struct {
	s      *session
	qos    packets.QoS
	retain bool        // Retain As Published
	ids    []uint32    // Subscription Identifiers
	group  *subs.Group // by a shared subscription
	shares *extra      // what its deliveries have besides their message, once there was one
}

// extra returns what a delivery of o to the target has besides its message. Its receipt, if any,
// counts it from now on.
func (to *target) extra(o *outgoing) *extra {
	shares := to.share()
	if o.receipt == nil {
		return shares
	}
	o.receipt.enter()
	x := &extra{group: to.group, receipt: o.receipt, to: to.s}
	if shares != nil {
		x.ids = shares.ids
	}
	return x
}

// share returns what all deliveries to the target have besides their message, nil if they have
// nothing.
func (to *target) share() *extra {
	if to.shares == nil && (len(to.ids) > 0 || to.group != nil) {
		to.shares = &extra{ids: slices.Clone(to.ids), group: to.group}
	}
	return to.shares
}

// A route is who gets the messages of one topic, valid as long as the part of the tree that it came
// from has not changed.
type route struct {
	topic   []byte
	text    string // topic, or an earlier one, see name
	watch   subs.Watch
	version uint64 // of watch
	valid   bool
	durable bool   // some of the receivers are known to the store
	as      byte   // the QoS and RETAIN that decided holds for, see decidedAs
	from    origin // whose messages these are
	// The epoch of the rules in which refused was said to the connection that has this route; 0:
	// never
	decided uint64
	refused error
	targets []target
	ids     []uint32 // of all targets
	shared  []sharedRoute
	share   share         // of these; everybody but for a Will that has moved in part
	served  []*subs.Group // that have got the message without the Store

	// In the cache of a connection.
	in      *routes // the cache; nil: it has no place there any more, or never had
	inTable bool
	size    int32 // bytes, as they are counted
}

// A sharedRoute is a shared subscription that the topic matches: one of the members gets the
// message.
type sharedRoute struct {
	group   *subs.Group
	members []target
}

// An origin is the Session that publishes a message, for No Local. The zero value is none that
// subscribes.
type origin struct {
	s      *session
	number uint32 // that s had
}

// numberLocked returns the number in the tree, 0 if the Session has none, or has ended: then
// another one may have its number. Broker.numbers is held.
func (o origin) numberLocked(b *Broker) uint32 {
	if b.numberedLocked(o.number) != o.s {
		return 0
	}
	return o.number
}

// fill resolves who gets messages of topic that come from a Session.
func (r *route) fill(t *turn, topic []byte, from origin) {
	b, m := t.b, &t.matches
	if string(r.topic) != string(topic) {
		r.topic, r.valid, r.decided = append(r.topic[:0], topic...), false, 0
		r.text = ""
	}
	if !r.valid {
		r.watch, r.valid = b.tree.Watch(topic), true
	}
	r.version, r.durable, r.from = r.watch.Version(), false, from
	// The lock is held from before Match, so that no number is given to another Session meanwhile.
	// To do it again whenever a subscription has changed would have no end while others subscribe.
	b.numbers.RLock()
	b.tree.Match(topic, from.numberLocked(b), m)
	r.ids = append(r.ids[:0], m.IDs...)
	clear(r.targets)
	r.targets = r.targets[:0]
	clear(r.shared)
	r.shared = r.shared[:0]
	for i := range m.Subs {
		x := &m.Subs[i]
		if s := b.numberedLocked(x.Sub); s != nil {
			to := target{s: s, qos: x.QoS, retain: x.RetainAsPublished, ids: x.IDs(r.ids)}
			r.targets = append(r.targets, to)
			r.durable = r.durable || s.stored != 0 && x.QoS > packets.QoS0
		}
	}
	for i := range m.Groups {
		r.addGroup(b, &m.Groups[i])
	}
	b.numbers.RUnlock()
	if r.share != everybody {
		r.keepShare(t.own.QoS)
	}
	r.filled(b)
}

// name returns the topic as a string, which is made once.
func (r *route) name(b *Broker) string {
	if r.text == "" { // no topic is
		r.text = string(r.topic)
		r.filled(b)
	}
	return r.text
}

// numberedLocked returns the session with that number, nil if there is none. b.numbers is held.
func (b *Broker) numberedLocked(num uint32) *session {
	if int(num) >= len(b.byNumber) {
		return nil
	}
	return b.byNumber[num]
}

func (r *route) addGroup(b *Broker, g *subs.SharedMatch) {
	sr := sharedRoute{group: g.Group, members: make([]target, 0, len(g.Members))}
	for i := range g.Members {
		m := &g.Members[i]
		s := b.numberedLocked(m.Sub)
		if s == nil {
			continue
		}
		to := target{s: s, qos: m.QoS, retain: m.RetainAsPublished, group: g.Group}
		if m.ID != 0 {
			to.ids = []uint32{m.ID}
		}
		sr.members = append(sr.members, to)
		r.durable = r.durable || s.stored != 0 && to.qos > packets.QoS0
	}
	r.shared = append(r.shared, sr)
}

// resolve makes r, from the cache of a connection, the route of topic, if it is not that already. A
// topic that has no place there gets the turn's route, which is good until the next one does.
func (t *turn) resolve(r *route, topic []byte, from origin) *route {
	if r == nil {
		r = &t.route
		r.valid = false
	}
	if !r.valid || r.version != r.watch.Version() || string(r.topic) != string(topic) {
		r.fill(t, topic, from)
	}
	return r
}

// deliver takes o to everybody in r and returns how many sessions took it.
func (t *turn) deliver(o *outgoing, r *route) (n int) {
	for i := range r.targets {
		if t.deliverOrKeep(o, &r.targets[i], takesAny) {
			n++
		}
	}
	for i := range r.shared {
		if t.deliverShared(o, r.shared[i].group, r.shared[i].members) {
			n++
		}
	}
	return n
}

// deliverShared gives o to one of the members: to the first from where the strategy starts that can
// send it on at once, otherwise to the first that takes it at all.
func (t *turn) deliverShared(o *outgoing, g *subs.Group, members []target) bool {
	n := uint64(len(members))
	if n == 0 {
		return false
	}
	var start uint64
	switch t.b.cfg().Shared {
	case SharedRoundRobin:
		start = uint64(g.Next.Add(1) - 1)
	case SharedSticky:
		start = uint64(g.Next.Load())
	case SharedHashTopic:
		start = maphash.Bytes(t.b.seed, o.pub.Topic)
	case SharedHashClient:
		start = maphash.String(t.b.seed, t.b.placeOf(o.from))
	}
	o.trying = true
	for i := range n {
		to := &members[(start+i)%n]
		if t.b.rules.deliveries != nil && !t.permits(to.s, string(o.pub.Topic)) {
			continue
		}
		if t.deliverOrKeep(o, to, takesSoon) {
			if t.b.cfg().Shared == SharedSticky {
				g.Next.Store(uint32((start + i) % n))
			}
			o.trying = false
			g.Last.Store(to.s.num)
			t.noteServed(o, to)
			return true
		}
	}
	o.trying = false
	for i := range n {
		to := &members[(start+i)%n]
		if t.b.rules.deliveries != nil && !t.permits(to.s, string(o.pub.Topic)) {
			continue
		}
		if t.deliverOrKeep(o, to, takesAny) {
			g.Last.Store(to.s.num)
			t.noteServed(o, to)
			return true
		}
	}
	return false
}

// noteServed notes that the group of to has a Will without the Store, so that it does not get the
// Will again if the batch fails.
func (t *turn) noteServed(o *outgoing, to *target) {
	if t.write.anyway && !needsStore(to, o.pub.QoS) {
		t.route.served = append(t.route.served, to.group)
	}
}

// publish routes o and takes care of its retained state. r is its route.
func (t *turn) publish(o *outgoing, r *route) (matched int, err error) {
	t.found = len(r.targets) + len(r.shared)
	if r.share == withoutStore {
		return t.deliver(o, r), nil
	}
	if t.needsJournal(o, r) {
		if err := t.takeRoom(o, r); err != nil { // before the topic is locked
			return 0, err
		}
	}
	if o.pub.Retain {
		return t.publishRetained(o, r)
	}
	return t.pass(o, r)
}

// needsJournal says whether o is for the store, or has to wait behind what is.
func (t *turn) needsJournal(o *outgoing, r *route) bool {
	return t.b.journal != nil && (t.stores(o, r) || t.follows(o))
}

// pass is publish with the topic locked, if o has to do with its retained message.
func (t *turn) pass(o *outgoing, r *route) (matched int, err error) {
	if t.needsJournal(o, r) {
		return t.publishStored(o, r)
	}
	if o.pub.Retain {
		_, err := t.retain(o)
		if err := t.orDeliver(o, err); err != nil {
			return 0, err
		}
		t.renew(r)
	}
	return t.deliver(o, r), nil
}

// orDeliver returns err, with which o was not retained, or nil if o is to be delivered
// nevertheless: a Will, a message of the Broker itself, or one of QoS 0, whose publisher would not
// learn that it has reached nobody.
func (t *turn) orDeliver(o *outgoing, err error) error {
	if err == nil || !o.untold {
		return err
	}
	o.unretained = err
	return nil
}

// publishRetained is publish for a message that becomes the retained one of its topic, or removes
// it.
func (t *turn) publishRetained(o *outgoing, r *route) (matched int, err error) {
	t.askMembers(o, r)
	o.unretained = nil
	if matched, err = t.passInTurn(o, r); o.unretained != nil {
		topic := string(o.pub.Topic)
		t.b.log.Debug("a message is delivered, but not retained", "topic", topic, "err",
			o.unretained)
	}
	return matched, err
}

// passInTurn is pass with the topic locked meanwhile.
func (t *turn) passInTurn(o *outgoing, r *route) (matched int, err error) {
	defer t.b.lockTopic(o.pub.Topic).Unlock() // after a panic as well
	defer func() { t.asked = false }()
	return t.pass(o, r)
}

// retain makes o the retained message of its topic, or, with no payload, removes that one
// [MQTT-3.3.1-5] [MQTT-3.3.1-6]. It returns the retained message that there was, nil for none. The
// topic is locked.
func (t *turn) retain(o *outgoing) (old *message, err error) {
	if len(o.pub.Payload) == 0 {
		return t.b.retained.Remove(string(o.pub.Topic)), nil
	}
	if old, err = t.b.retained.Set(o.message(), ticks(t.b.started, t.now)+1); err != nil {
		return nil, packets.Errorf(packets.QuotaExceeded, "%v", err)
	}
	return old, nil
}

// renew looks again who gets a message that has become the retained one: who subscribed after r was
// resolved may have looked for retained messages before this one was there, and has to get it now.
func (t *turn) renew(r *route) {
	if r.version != r.watch.Version() {
		r.fill(t, r.topic, r.from)
		t.found = len(r.targets) + len(r.shared)
	}
}

// publishMessage routes a message that comes from no connection: a Will, an in-process publish,
// $SYS.
func (t *turn) publishMessage(m *message, from origin) (matched int, err error) {
	t.topic = append(t.topic[:0], m.Topic...)
	t.own = packets.Publish{QoS: m.QoS, Retain: m.Retain, Topic: t.topic, Properties: m.Properties,
		Payload: m.Payload}
	o := &t.out
	o.reset(&t.own, m.From, t.now, t.b.cfg().MaxMessageExpiry)
	if m.Expires == 0 || o.expires != 0 && o.expires < m.Expires { // MaxMessageExpiry
		m.Expires = o.expires
	}
	o.msg = m
	o.receipt, t.receipt = t.b.receiptOf(t.receipt, m.Properties), nil
	o.untold, t.untold = t.untold, false
	t.route.fill(t, t.topic, from)
	return t.publish(o, &t.route)
}

// send appends a PUBLISH for o to the output of c. c.sess.mu is held; there is room in the window
// if qos needs it.
func (c *conn) send(t *turn, o *outgoing, to *target, qos packets.QoS, retain bool) bool {
	s := c.sess
	r := c.readExtra()
	plain := r.mount == "" && !o.waited &&
		(c.version < packets.V5 || len(to.ids) == 0 && r.outAliases == nil)
	var w wire // a literal would be made elsewhere and copied, which the processor waits for
	w.qos, w.retain, w.ids = qos, retain, to.ids
	var f *frame
	var x *link.Buffer
	if plain {
		f = o.frame(c.version, qos)
		if x = c.room(len(f.b)); x == nil {
			s.missed(o, qos, hooks.DropTooLarge)
			return false
		}
	} else if c.tooLarge(o.message(), w) {
		s.missed(o, qos, hooks.DropTooLarge)
		return false
	}
	var seq uint64
	if qos > packets.QoS0 {
		d := delivery{extra: to.extra(o), qos: qos, retain: retain}
		if s.lasting(to.group) {
			d.msg = o.message()
		}
		if s.stored != 0 {
			t.record(s, &d)
			seq = d.seq
		}
		w.id = s.out.open(&d)
	} else if o.receipt != nil {
		o.receipt.enter()
		o.receipt.leave(s, qos, 0)
	}
	at := c.out.End()
	if plain {
		n := len(x.B)
		x.B = append(x.B, f.b...)
		x.B[n] = packets.FirstByte(qos, retain)
		if w.id != 0 {
			binary.BigEndian.PutUint16(x.B[n+f.idAt:], w.id)
			if o.msg != nil {
				x.EndsWith(o.msg.Payload)
			}
		}
		t.made += len(f.b)
		t.countSent(c, qos, len(o.pub.Payload), len(f.b))
		if c.b.obs.Delivered != nil {
			c.b.deliveredLocked(c.client, o.observed(), qos, w.id)
		}
	} else {
		c.appendMessage(o.message(), w, t.now)
		t.made += len(o.pub.Topic) + len(o.pub.Payload)
	}
	if w.id != 0 {
		c.holdSent(t.write.Batch(), store.Sent{Seq: seq, ID: w.id}, at, o.pub.QoS == packets.QoS2)
	}
	t.touch(c)
	return true
}

// crowdedBy says whether memory is scarce once the output has o. c.sess.mu is held.
func (c *conn) crowdedBy(o *outgoing) bool {
	return c.b.memory.OverWith(leaveQoS0, int64(c.out.Grows(o.size())))
}

// tooLarge says whether m exceeds what the client accepts. Such a message counts as delivered
// [MQTT-3.1.2-25].
func (c *conn) tooLarge(m *message, w wire) bool {
	if c.maxPacket == maxPacketSize {
		return false
	}
	w.version = c.version
	return publishSize(w, len(m.Topic)-len(c.readExtra().mount), m) > int(c.maxPacket)
}

// appendMessage, with c.sess.mu held, appends m to the output of c, which has room for it, and says
// whether the client accepts its size.
func (c *conn) appendMessage(m *message, w wire, now time.Time) bool {
	name := m.Topic[len(c.readExtra().mount):]
	topic, alias := c.readExtra().outAliases.send(c.sess, name)
	w.version, w.alias = c.version, alias
	n := publishSize(w, len(topic), m)
	if alias != 0 && n > int(c.maxPacket) { // without it the packet has room
		if topic != "" {
			c.readExtra().outAliases.unsent(c.b, name)
		}
		topic, w.alias = name, 0
		n = publishSize(w, len(topic), m)
	}
	x := c.room(n)
	if x == nil {
		return false
	}
	at := len(x.B)
	x.B = appendPublish(x.B, w, topic, m.Properties, m.Payload)
	x.EndsWith(m.Payload)
	if c.version == packets.V5 && m.Expires != 0 {
		patchExpiry(x.B[at:], w, len(topic), m, now)
	}
	c.countSent(w.qos, len(m.Payload), len(x.B)-at)
	if c.b.obs.Delivered != nil {
		c.b.deliveredLocked(c.client, &m.Message, w.qos, w.id)
	}
	return true
}

// patchExpiry writes what remains of the Message Expiry Interval into a PUBLISH [MQTT-3.3.2-6].
func patchExpiry(p []byte, w wire, topic int, m *message, now time.Time) {
	at := m.Properties.Offset(packets.MessageExpiryInterval)
	if at < 0 {
		return
	}
	rest := int64(0)
	if at := now.UnixNano(); m.Expires > at {
		rest = (m.Expires-at-1)/int64(time.Second) + 1
	}
	i := 1
	for ; p[i] >= 0x80; i++ {
	}
	i += 1 + 2 + topic
	if w.qos > packets.QoS0 {
		i += 2
	}
	for ; p[i] >= 0x80; i++ {
	}
	binary.BigEndian.PutUint32(p[i+1+at:], uint32(min(rest, noExpiry)))
}
