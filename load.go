package dunlin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/given"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/written"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file rebuilds what was committed before anything is served, and carries out what fell due
// meanwhile.

// loadSilence is how long a load may take without a word in the log.
const loadSilence = 2 * time.Second

// A loader turns the operations of a store into Sessions.
type loader struct {
	b        *Broker
	sessions map[uint64]*loaded
	queued   int // entries of all queues
	// stand-ins for shared subscriptions, by filter, until all of these are known
	groups map[string]*extra
}

// loaded is a Session while its operations come. queue is in the order of seq, what is done
// included.
type loaded struct {
	s     *session
	put   *store.PutSession
	queue []delivery
	gone  int          // of queue
	sent  []store.Sent // what the store does not know
	extra *extra       // the last one with Subscription Identifiers
}

// load reads the whole store. The journal has not been started yet.
func (b *Broker) load() error {
	began := time.Now()
	l := &loader{b: b, sessions: make(map[uint64]*loaded), groups: make(map[string]*extra)}
	ops, said := 0, began
	lock.NoneHeld("a call of the Store")
	for op, err := range b.cfg().Store.Load(context.Background()) {
		if err != nil {
			return fmt.Errorf("dunlin: loading the store, after %d operations: %w", ops, err)
		}
		if err := l.apply(op); err != nil {
			return fmt.Errorf("dunlin: loading the store, operation %d: %w", ops+1, err)
		}
		if ops++; ops%4096 == 0 {
			if now := time.Now(); now.Sub(said) > loadSilence {
				said = now
				b.log.Info("loading the store", "operations", ops, "for",
					now.Sub(began).Round(time.Second))
			}
		}
	}
	loaded := len(l.sessions)
	l.finish()
	if ops > 0 {
		b.log.Info("the store is loaded", "sessions", loaded, "retained", b.retained.Len(),
			"messages queued", l.queued,
			"took", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// apply does what one operation says.
func (l *loader) apply(op store.Op) error {
	if q := highestQoS(op); q > packets.QoS2 {
		return fmt.Errorf("QoS %d, expected at most 2: the store is damaged", q)
	}
	if l.b.given.Load(op) {
		return nil
	}
	switch op := op.(type) {
	case *store.PutSession:
		return l.putSession(op)
	case *store.DeleteSession:
		if x := l.sessions[op.Session]; x != nil {
			l.drop(x)
		}
	case *store.PutSubscription:
		return l.subscribe(op)
	case *store.DeleteSubscription:
		if x := l.sessions[op.Session]; x != nil {
			if wrote, _, ok := written.Split(op.Filter); ok {
				x.s.writtenLocked().Remove(wrote)
			} else if group, filter, err := packets.SplitShared(op.Filter); err == nil && x.s.num != 0 &&
				l.b.tree.Remove(x.s.num, group, filter) {
				x.s.weighLocked(group, filter, -1)
			}
		}
	case *store.Publish:
		l.publish(op)
	case *store.Sent:
		if d := l.entry(op.Session, op.Seq); d != nil {
			d.id = op.ID
			l.sessions[op.Session].s.out.lastID = op.ID
		}
	case *store.Released:
		if d := l.entry(op.Session, op.Seq); d != nil {
			d.state = pubrelDue
		}
	case *store.Done:
		l.done(op)
	case *store.Received:
		l.received(op.Session, op.ID)
	case *store.Forget:
		if x := l.sessions[op.Session]; x != nil {
			x.s.in.pubrel(op.ID)
		}
	case *store.PutRetained:
		l.retain(op.Message)
	case *store.DeleteRetained:
		l.b.retained.Remove(op.Topic)
	default:
		return fmt.Errorf("a %T, which this version does not know", op)
	}
	return nil
}

// highestQoS returns the highest QoS in op, for which no packet has a place if it is above 2.
func highestQoS(op store.Op) (q packets.QoS) {
	switch op := op.(type) {
	case *store.PutSession:
		if op.Will != nil {
			q = op.Will.Message.QoS
		}
	case *store.PutSubscription:
		q = op.QoS
	case *store.PutRetained:
		q = op.Message.QoS
	case *store.Publish:
		q = op.Message.QoS
		for i := range op.To {
			q = max(q, op.To[i].QoS)
		}
	}
	return q
}

func (l *loader) putSession(op *store.PutSession) error {
	x := l.sessions[op.Session]
	if x == nil {
		if op.Session == 0 {
			return errors.New("a Session without number")
		}
		x = &loaded{s: &session{holder: &nobody, b: l.b, out: newSender(l.b.memory),
			stored: op.Session, quota: l.b.queueLimits(&hooks.Limits{})}}
		l.sessions[op.Session] = x
	}
	x.put = op
	return nil
}

// drop forgets a Session with all that it has.
func (l *loader) drop(x *loaded) {
	delete(l.sessions, x.s.stored)
	if x.s.num != 0 {
		l.b.freeNumber(x.s.num)
	}
}

func (l *loader) subscribe(op *store.PutSubscription) error {
	x := l.sessions[op.Session]
	if x == nil {
		return nil
	}
	wrote, by, replaced := written.Split(op.Filter)
	if !replaced {
		by = op.Filter
	}
	group, filter, err := packets.SplitShared(by)
	if err != nil || !packets.ValidTopicFilter(filter) {
		return fmt.Errorf("a subscription to %q, which is no Topic Filter", op.Filter)
	}
	if replaced {
		x.s.makeWrittenLocked().Put(wrote, by)
		return nil
	}
	if x.s.num == 0 {
		x.s.num = l.b.number(x.s)
	}
	o := subs.Options{QoS: op.QoS, NoLocal: op.NoLocal, RetainAsPublished: op.RetainAsPublished,
		RetainHandling: op.RetainHandling, ID: op.ID}
	if !l.b.tree.Restore(x.s.num, group, filter, o) {
		x.s.weighLocked(group, filter, 1)
	}
	return nil
}

func (l *loader) publish(op *store.Publish) {
	r := l.b.receiptOf(nil, op.Message.Properties)
	for i := range op.To {
		to := &op.To[i]
		x := l.sessions[to.Session]
		if x == nil {
			continue
		}
		d := delivery{msg: op.Message, seq: to.Seq, qos: to.QoS, retain: to.Retain}
		d.extra = l.extra(x, to)
		if r != nil {
			e := &extra{receipt: r, to: x.s}
			if d.extra != nil {
				e.ids, e.group = d.extra.ids, d.extra.group
			}
			r.enter()
			d.extra = e
		}
		k := len(x.queue)
		if k > 0 && x.queue[k-1].seq >= d.seq {
			var found bool
			if k, found = x.find(d.seq); found {
				x.queue[k] = d
				continue
			}
		}
		x.queue = slices.Insert(x.queue, k, d)
	}
	if op.Retain {
		l.retain(op.Message)
	}
	if op.FromSession != 0 {
		l.received(op.FromSession, op.FromID)
	}
}

// extra returns what an entry of the queue of x has beside its message. Entries that follow each
// other share it if it is the same.
func (l *loader) extra(x *loaded, to *store.Delivery) (e *extra) {
	if to.Group != "" {
		if e = l.groups[to.Group]; e == nil {
			e = &extra{group: &subs.Group{Filter: strings.Clone(to.Group)}}
			l.groups[to.Group] = e
		}
	}
	if len(to.IDs) == 0 {
		return e
	}
	var g *subs.Group
	if e != nil {
		g = e.group
	}
	if last := x.extra; last == nil || last.group != g || !slices.Equal(last.ids, to.IDs) {
		x.extra = &extra{ids: slices.Clone(to.IDs), group: g}
	}
	return x.extra
}

// find returns the place of seq in the queue.
func (x *loaded) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(x.queue, seq,
		func(d delivery, seq uint64) int { return cmp.Compare(d.seq, seq) })
}

func (l *loader) entry(session, seq uint64) *delivery {
	if x := l.sessions[session]; x != nil {
		if k, ok := x.find(seq); ok && x.queue[k].state != done {
			return &x.queue[k]
		}
	}
	return nil
}

// done ends an entry. The queue is made shorter when half of it is over.
func (l *loader) done(op *store.Done) {
	d := l.entry(op.Session, op.Seq)
	if d == nil {
		return
	}
	*d = delivery{seq: d.seq, state: done}
	x := l.sessions[op.Session]
	if x.s.seq = max(x.s.seq, op.Seq); x.gone < 64 || x.gone < len(x.queue)/2 {
		x.gone++
		return
	}
	x.queue = slices.DeleteFunc(x.queue, func(d delivery) bool { return d.state == done })
	x.gone = 0
}

func (l *loader) received(session uint64, id uint16) {
	if x := l.sessions[session]; x != nil {
		x.s.in.publish(id)
	}
}

func (l *loader) retain(m *message) {
	if len(m.Payload) > 0 {
		l.b.retained.Restore(m)
	} else {
		l.b.retained.Remove(m.Topic)
	}
}

// finish makes Sessions of what was loaded, starts the journal, and does what fell due meanwhile.
func (l *loader) finish() {
	b, now := l.b, time.Now()
	byKey := make(map[string]*loaded)
	var ended, over, wills, delayed []*loaded
	var owing []*session
	for _, x := range l.sessions {
		x.complete(now)
		b.journal.lastKey.Store(max(b.journal.lastKey.Load(), x.s.stored))
		switch other := byKey[x.s.place()]; {
		case x.isWill() && strings.HasPrefix(x.s.id, delayedPrefix):
			delayed = append(delayed, x)
			continue
		case x.isWill():
			wills = append(wills, x)
			continue
		case x.put.Expiry == 0: // it has ended, and had something to leave to others
			ended = append(ended, x)
			continue
		case other != nil:
			// The process ended between the beginning of a Session and the end of the one before.
			if other.s.stored > x.s.stored {
				x, other = other, x
			}
			over = append(over, other)
		}
		byKey[x.s.place()] = x
	}
	for _, x := range byKey {
		b.sessions.put(x.s.place(), x.s)
	}
	stale := l.giveLoaded(byKey)
	for _, e := range l.groups { // what still names a stand-in has no group to go to
		if group, filter, err := packets.SplitShared(e.group.Filter); err == nil {
			if g := b.tree.Group(group, filter); g != nil {
				e.group = g
			}
		}
	}
	for _, x := range l.sessions {
		if x.isWill() {
			continue // giveWills has it, and it counts with the Session that gets it
		}
		b.journal.sessions[x.s.stored] = x.s
		if l.fill(x) {
			owing = append(owing, x.s)
		}
	}
	l.sessions = nil
	due := giveWills(wills, byKey)
	b.journal.Start()
	for _, op := range stale {
		b.journal.Add(op)
	}
	for _, x := range over {
		x.s.will = nil // the Session goes on, in its successor
		b.work(func(t *turn) { b.endSession(t, x.s, nil) })
	}
	for _, x := range byKey {
		b.resumeLoaded(x, now)
	}
	for _, x := range ended {
		b.resumeLoaded(x, now)
	}
	b.journal.startWills(due)
	for _, x := range delayed {
		b.loadDelayed(x)
	}
	for _, s := range owing {
		b.journal.begin(s)
	}
}

// giveLoaded gives the Sessions what the server subscribed them to. It returns the operations that
// end records of Sessions that are not there any more.
func (l *loader) giveLoaded(byKey map[string]*loaded) (stale []store.Op) {
	last, principals, stale := l.b.given.Loaded(func(k given.Key, number uint64) bool {
		x := byKey[k.Name]
		return k.Scope != given.ToSession || x != nil && x.s.stored < number
	})
	l.b.journal.lastKey.Store(max(l.b.journal.lastKey.Load(), last))
	if principals {
		l.b.given.Follow()
	}
	for _, x := range byKey {
		x.s.mu.Lock()
		l.b.given.Reload(x.s)
		x.s.mu.Unlock()
	}
	return stale
}

// isWill says whether x is the record of a Will.
func (x *loaded) isWill() bool {
	return x.put.Expiry == 0 && x.put.Will != nil && len(x.queue) == 0 && x.s.num == 0
}

// giveWills gives each Session the Will that it has, which came last, and returns the others: they
// are due.
func giveWills(wills []*loaded, byKey map[string]*loaded) (due []*will) {
	slices.SortFunc(wills, func(a, b *loaded) int { return cmp.Compare(b.s.stored, a.s.stored) })
	for _, x := range wills {
		w := x.s.will
		w.stored = x.s.stored
		to := byKey[x.s.place()]
		// A Will is younger than its Session: an older one was left by the Session before it. A
		// Will without a number is that of an older version, of which this is the record.
		if to != nil && w.stored > to.s.stored && (to.s.will == nil || to.s.will.stored == 0) {
			to.s.will = w
			to.s.countLocked()
		} else {
			due = append(due, w)
		}
	}
	slices.Reverse(due)
	return due
}

// complete fills in what PutSession said. A client that was connected has left now.
func (x *loaded) complete(now time.Time) {
	s, p := x.s, x.put
	s.id, s.holder = p.ClientID, s.b.holder(p.ClientID, p.Principal, p.Named, p.Mount)
	if !s.inProcess() && !x.isWill() {
		s.ownLoaded()
	}
	s.expiry, s.endsAt = p.Expiry, p.ExpiresAt
	connected := p.ExpiresAt == 0 && p.Expiry != noExpiry
	if connected {
		s.setEnd(now)
	}
	if w := p.Will; w != nil {
		s.will = &will{msg: &message{Message: w.Message, From: s.publisher(w.Message.Retain)},
			mount: s.mount, delay: time.Duration(w.Delay) * time.Second, client: &hooks.Client{
				ID: s.id, Username: p.Username, HasUsername: s.named, MountPoint: s.mount,
				Identity: s.identity(),
			}}
		if s.will.at = now.Add(s.will.delay); w.At != 0 {
			s.will.at = time.Unix(0, w.At)
		}
	}
}

// fill makes the queue and what is in flight of what is left of the operations. Messages leave in
// the order of the queue. So what stands before one that was sent was sent too: the crash came
// before the batch that says so. It is in flight, with a new Packet Identifier, and keeps its
// place. What was not sent of a shared subscription that is revoked goes to others: fill says
// whether there is any.
func (l *loader) fill(x *loaded) (owes bool) {
	s := x.s
	var left []delivery
	inFlight := len(x.queue)
	for inFlight > 0 && x.queue[inFlight-1].id == 0 {
		inFlight--
	}
	for i := range x.queue {
		d := &x.queue[i]
		s.seq = max(s.seq, d.seq)
		if d.state == done {
			continue
		}
		if g := d.group(); g != nil {
			d.extra.group = l.groups[g.Filter].group
		}
		if i >= inFlight {
			d.state = waiting
			if l.left(x, d) {
				left = append(left, *d)
			} else {
				s.out.push(*d, 0)
			}
			continue
		}
		if d.state == pubrelDue {
			d.msg, d.extra = nil, nil // its receipt was settled by the PUBREC
		}
		if d.msg != nil {
			s.out.count(d, budget.InFlight)
		}
		s.out.setFlight(append(s.out.flight, *d))
		s.out.live++
	}
	for i := range s.out.flight {
		if d := &s.out.flight[i]; d.id == 0 {
			d.id = s.out.nextID()
			x.sent = append(x.sent, store.Sent{Session: s.stored, Seq: d.seq, ID: d.id})
		}
	}
	s.out.countLive()
	s.noteArrivalsLocked()
	s.countLocked()
	l.queued += int(s.out.queue.Len() + s.out.live)
	x.queue = nil
	return len(left) > 0 && l.b.journal.owe(s, left...)
}

// left says whether d came by a shared subscription that the Session no longer has and others do.
// One that has ended leaves all as it ends.
func (l *loader) left(x *loaded, d *delivery) bool {
	g := d.group()
	if g == nil || x.put.Expiry == 0 {
		return false
	}
	group, filter, err := packets.SplitShared(g.Filter)
	if err != nil || l.b.tree.Group(group, filter) == nil {
		return false
	}
	_, has := l.b.tree.Get(x.s.num, group, filter)
	return x.s.num == 0 || !has
}

// resumeLoaded lets a loaded Session wait for its client, or carries out what is due.
func (b *Broker) resumeLoaded(x *loaded, now time.Time) {
	s := x.s
	s.mu.Lock()
	s.wait()
	for i := range x.sent {
		b.journal.Add(&x.sent[i])
	}
	// before the Session is written without the Will that an older version wrote into it
	s.tellWill()
	if p := s.put(); p.ExpiresAt != x.put.ExpiresAt || x.put.Will != nil {
		b.journal.Add(p) // its deadlines count from now, and not anew from the next start
	}
	slow := s.asks()
	s.mu.Unlock()
	if !slow { // New waits for no hook: its Timer sees to what is due
		s.whenDue(now)
	}
}
