package dunlin

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what moves from one place to others: a Will that is due, to its subscribers, and the
// messages of a shared subscription, from a member that has ended to another one. With a Store a
// move is a part of one batch, which is committed whole: the message for those who get it, and that
// it is no longer where it was. If there is no room for that, the message stays, and moves when
// there is room. Whoever needs no store gets it at once.

// A debt is what a Session that has ended, may no longer have a subscription, or did not take a
// message, leaves to the other members of shared subscriptions. Guarded by records.mu.
type debt struct {
	shared []delivery
	moves  int  // that are not decided, or have not begun
	ended  bool // when nothing is left the Session is taken out of the store
}

// owe notes that s leaves messages of shared subscriptions to others, and says whether it owes
// anything. If it does the caller calls payDecided or begin, without a lock: nobody else pays
// before. What comes from the queue of s is noted before s.mu is unlocked, so that it can always be
// found: there, or here.
func (j *records) owe(s *session, shared ...delivery) bool {
	for i := range shared {
		shared[i].count(j.b.memory, budget.Queued)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.debts[s]
	switch {
	case x == nil && len(shared) == 0:
		return false
	case x == nil:
		x = new(debt)
		j.debts[s] = x
	}
	x.shared = append(x.shared, shared...)
	x.moves++
	return true
}

// forgive, with s.mu held, takes a message out of what s owes, if it is there, that could not be
// stored for s.
func (j *records) forgive(s *session, seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.debts[s]
	if x == nil {
		return
	}
	x.shared = slices.DeleteFunc(x.shared, func(d delivery) bool {
		if d.seq != seq {
			return false
		}
		d.uncount(j.b.memory, budget.Queued)
		d.withdraw()
		return true
	})
}

// noteEnd, with s.mu held, notes that s has ended, for the store and for those who take the place
// of s, and what s leaves to others. It says whether that is anything; the caller then calls
// payDecided.
func (j *records) noteEnd(s *session, shared []delivery) (owes bool) {
	if owes = j.owe(s, shared...); owes {
		j.mu.Lock()
		j.debts[s].ended = true
		j.mu.Unlock()
	}
	var ticket uint64
	switch {
	case s.stored == 0:
		return owes
	case owes:
		ticket = j.Add(s.put()) // it is over at once, also for the next process
	default:
		ticket = j.end(s)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ending[s.place()] = ticket
	return owes
}

// ends says whether it is not decided yet that the last Session in that place has ended.
func (j *records) ends(place string) bool {
	if j == nil {
		return false
	}
	j.mu.Lock()
	ticket := j.ending[place]
	j.mu.Unlock()
	return ticket > 0 && ticket > j.LastDecided()
}

// payDecided pays what owe has noted, when what was in the queue of s is decided: what is not
// durable there yet may still be refused, so that it is sent again.
func (b *Broker) payDecided(t *turn, s *session) {
	j := b.journal
	w := journal.NewWrite(j.Journal)
	w.Follow()
	if w.Batch() == nil {
		j.mu.Lock()
		j.debts[s].moves--
		j.mu.Unlock()
		b.pay(t, s)
		return
	}
	w.Lead(0)
	j.after(w.Batch(), func(q *sequel) { q.begins = append(q.begins, s) })
	w.Settle()
}

// begin lets s pay what owe has noted, now that what was in its queue is decided.
func (j *records) begin(s *session) {
	j.mu.Lock()
	j.debts[s].moves--
	j.mu.Unlock()
	j.payLater(s)
}

// pay moves what s owes, as far as that can be.
func (b *Broker) pay(t *turn, s *session) {
	j := b.journal
	j.mu.Lock()
	x := j.debts[s]
	if x == nil || x.moves > 0 {
		j.mu.Unlock()
		return
	}
	x.moves++
	shared := x.shared
	x.shared = nil
	j.mu.Unlock()
	for i := range shared {
		switch d := &shared[i]; b.moveMessage(t, s, d) {
		case stays:
			j.back(s, d)
		case moveOver:
			d.uncount(b.memory, budget.Queued)
		}
	}
	b.moved(s)
}

// payLater is pay on a goroutine of its own, as hooks may be asked.
func (j *records) payLater(s *session) { j.run(func(t *turn) { j.b.pay(t, s) }) }

// back gives back what could not move.
func (j *records) back(s *session, d *delivery) {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.debts[s]
	x.shared = append(x.shared, *d)
}

// decided is the end of a move whose batch is decided.
func (b *Broker) decided(m *move, err error) {
	switch {
	case m.will != nil && err != nil:
		m.will.told = true // whoever needs no store has it
		b.journal.keepWill(m.will)
		return
	case m.will != nil:
		m.will.delayed.over(b)
		return
	case err != nil:
		b.journal.back(m.s, &m.d)
	default:
		m.d.uncount(b.memory, budget.Queued)
	}
	b.moved(m.s)
}

// moved is the end of one move of s. After the last one s is paid for, or goes on when there is
// room.
func (b *Broker) moved(s *session) {
	j := b.journal
	j.mu.Lock()
	x := j.debts[s]
	if x.moves--; x.moves > 0 {
		j.mu.Unlock()
		return
	}
	paid := len(x.shared) == 0
	if paid {
		delete(j.debts, s)
	} else {
		slices.SortStableFunc(x.shared, func(a,
			b delivery) int {
			return cmp.Compare(a.seq, b.seq)
		})
	}
	j.mu.Unlock()
	switch {
	case paid && x.ended:
		j.end(s)
	case !paid && j.Health() == nil: // otherwise Recovered has those paid that owe
		j.payLater(s)
	}
}

// payAll goes on with all that waits for room.
func (j *records) payAll() {
	var owing []*session
	j.mu.Lock()
	for s, x := range j.debts {
		if x.moves == 0 {
			owing = append(owing, s)
		}
	}
	wills := len(j.wills) > 0
	j.mu.Unlock()
	for _, s := range owing {
		j.payLater(s)
	}
	if wills {
		j.run(j.b.payWills) // hooks may be asked
	}
}

// moveMessage gives d, which s had, as a member of a shared subscription that it is no longer, and
// did not complete, to another member.
func (b *Broker) moveMessage(t *turn, s *session, d *delivery) moveResult {
	w := &t.write
	if d.msg.Expires != 0 && d.msg.Expires <= t.now.UnixNano() {
		return s.unshared(d)
	}
	t.askAhead([]delivery{*d})
	failing := b.journal.Refusing() != nil
	t.write.Together()
	// after a panic as well: a batch that stays pinned would stop the committer
	defer t.write.Apart()
	o := t.again(d.msg)
	t.route.fill(t, t.own.Topic, origin{})
	i := slices.IndexFunc(t.route.shared, func(r sharedRoute) bool { return r.group == d.group() })
	if i < 0 {
		return s.unshared(d)
	}
	r := &t.route.shared[i]
	members := r.members
	if failing {
		if d.msg.QoS == packets.QoS2 { // it would have to leave the store before it leaves
			return stays
		}
		needs := func(to target) bool { return needsStore(&to, o.pub.QoS) }
		members = slices.DeleteFunc(slices.Clone(members), needs)
	}
	o.receipt = d.receipt()
	// A message without a place in the store is decided already: it goes to whom the store does not
	// know at once, or not at all.
	w.waits = d.msg.QoS == packets.QoS2 && d.seq != 0
	took := t.deliverShared(o, r.group, members)
	needs := w.Message() != nil || len(w.late) > 0
	t.conclude(o)
	w.waits = false
	switch {
	case !took && failing:
		return stays
	case !took:
		return s.unshared(d)
	}
	d.withdraw()
	var op store.Op
	if s.stored != 0 && d.seq != 0 {
		op = &store.Done{Session: s.stored, Seq: d.seq}
	}
	if !needs {
		if op != nil {
			t.write.Add(op)
		}
		return moveOver
	}
	return t.tie(move{s: s, d: *d}, op)
}

// unshared is the end of a message that no other member takes.
func (s *session) unshared(d *delivery) moveResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		d.settleLost(hooks.DropSessionEnded)
		s.dropped(&d.msg.Message, hooks.DropSessionEnded)
	} else { // the next process must not find it in the queue
		s.discardLocked(d, hooks.DropNotAuthorized)
	}
	return moveOver
}

// reassignAll is reassign for what s leaves, where there is no Store. What nobody takes is dropped.
func (b *Broker) reassignAll(t *turn, s *session, shared []delivery, why hooks.DropReason) {
	for i := range shared {
		if !b.reassign(t, &shared[i]) {
			s.mu.Lock()
			s.dropped(&shared[i].msg.Message, why)
			s.mu.Unlock()
		}
	}
}

// reassign gives a message that a member of a shared subscription did not complete to another one,
// and says whether one took it.
func (b *Broker) reassign(t *turn, d *delivery) bool {
	if d.msg.Expires != 0 && d.msg.Expires <= t.now.UnixNano() {
		d.settleLeft(hooks.DropExpired)
		return false
	}
	o := t.again(d.msg)
	o.receipt = d.receipt()
	t.route.fill(t, t.own.Topic, origin{})
	for i := range t.route.shared {
		if r := &t.route.shared[i]; r.group == d.group() {
			took := t.deliverShared(o, r.group, r.members)
			t.conclude(o)
			if took {
				d.withdraw()
				return true
			}
		}
	}
	d.settleLeft(hooks.DropSessionEnded)
	return false
}

// Wills. With a Store each has a record of its own there, a Session without Session
// Expiry that has nothing but the Will, so that it can be published and leave the store in one
// step, whatever becomes of its Session.

// A will is a Will Message (3.1.2.5) with its delay. The identity that it was authorized with stays
// with it.
type will struct {
	msg    *message // its topic with the mount point
	mount  string
	delay  time.Duration
	client *hooks.Client
	at     time.Time // due, once the connection has ended; zero before
	stored uint64    // its number in the store; 0: it has none

	delayed *delayed // not nil: it is no Will, but this delayed message

	// Not nil: awaitReader waits until it is closed. Guarded by the mu of the Session
	readerDone chan struct{}

	// Owned by whoever publishes it.
	decided bool          // the hooks were asked
	out     *message      // what they have made of it; nil: nothing is published
	told    bool          // whoever needs no store has it
	served  []*subs.Group // that have it without the Store
}

// putWill describes w, the Will of s, which gets a number if it has none. s.mu is held.
func (j *records) putWill(s *session, w *will) *store.PutSession {
	if w.stored == 0 {
		w.stored = j.key()
	}
	op := &store.PutSession{
		Session: w.stored, ClientID: s.id, Principal: s.principal, Username: w.client.Username,
		Named: s.named, Mount: s.mount, Will: &store.Will{Message: w.msg.Message},
	}
	op.Will.Delay = uint32(min(w.delay/time.Second, math.MaxUint32))
	if !w.at.IsZero() {
		op.Will.At = unixNano(w.at)
	}
	return op
}

// register, with s.mu held, gives a new Session its key and adds it, with its Will, which the
// caller waits for.
func (j *records) register(s *session) *journal.Batch {
	s.stored = j.key()
	j.mu.Lock()
	j.sessions[s.stored] = s
	j.mu.Unlock()
	var ops []*store.PutSession
	if s.will != nil {
		ops = append(ops, j.putWill(s, s.will))
	}
	x := j.Begin(append(ops, s.put())...)
	s.born = x.Ticket()
	return x
}

// resume, with s.mu held, adds what s is now that a client resumes it, with another Will than
// before, which the caller waits for.
func (j *records) resume(s *session, was *before) *journal.Batch {
	j.mu.Lock()
	j.resuming[s] = was
	j.mu.Unlock()
	var ops []store.Op
	if w := was.will; w != nil && w.stored != 0 {
		ops = append(ops, &store.DeleteSession{Session: w.stored})
	}
	if s.will != nil {
		ops = append(ops, j.putWill(s, s.will))
	}
	return j.Await(append(ops, s.put())...)
}

// resumed returns what s was before the client that resumes it, nil if it is new, and forgets that.
func (j *records) resumed(s *session) *before {
	j.mu.Lock()
	defer j.mu.Unlock()
	was := j.resuming[s]
	delete(j.resuming, s)
	return was
}

// awaitWill, with s.mu held, adds the Will of s, which the store does not know, and which the
// caller waits for.
func (j *records) awaitWill(s *session) *journal.Batch {
	return j.Await(j.putWill(s, s.will))
}

// tellWill tells the store what the Will of s, if it has one, is now. s.mu is held.
func (s *session) tellWill() {
	if j := s.b.journal; j != nil && s.will != nil {
		j.Add(j.putWill(s, s.will))
	}
}

// dropWill gives up the Will of s, if it has one, and says whether the store is told. s.mu is held.
func (s *session) dropWill() bool {
	w := s.will
	s.will = nil
	s.countLocked()
	w.readerIsDone()
	if w == nil || w.stored == 0 {
		return false
	}
	s.b.journal.Add(&store.DeleteSession{Session: w.stored})
	return true
}

// readerIsDone, with session.mu held, lets awaitReader go on. It is called whenever its connection,
// or w, which may be nil, leaves the Session.
func (w *will) readerIsDone() {
	if w != nil && w.readerDone != nil {
		close(w.readerDone)
		w.readerDone = nil
	}
}

// publishDue publishes w, whose time has come. It has left its Session.
func (b *Broker) publishDue(t *turn, w *will) {
	if b.journal == nil {
		b.publishWill(t, w, everybody)
		w.delayed.over(b)
		return
	}
	switch b.moveWill(t, w) {
	case stays:
		b.journal.keepWill(w)
	case moveOver:
		w.delayed.over(b)
	}
}

// moveWill publishes w and takes it out of the store, in one step.
func (b *Broker) moveWill(t *turn, w *will) moveResult {
	t.write.Together()
	// after a panic as well: a batch that stays pinned would stop the committer
	defer t.write.Apart()
	t.write.anyway = true
	defer func() { t.write.anyway = false }()
	to := everybody
	if w.told {
		to = withStore
	}
	if err := b.publishWill(t, w, to); errors.Is(err, journal.ErrNotStored) {
		if !w.told {
			w.told = true
			b.publishWill(t, w, withoutStore)
		}
		return stays
	}
	var op store.Op
	if w.stored != 0 {
		op = &store.DeleteSession{Session: w.stored}
	}
	return t.tie(move{will: w}, op)
}

// size is about what w takes in memory.
func (w *will) size() int { return journal.OpWeight + journal.WeighMessage(w.msg) }

// keepWill keeps w until there is room, if there is not too much that waits.
func (j *records) keepWill(w *will) {
	if x := w.delayed; x != nil { // it counts already, and was acknowledged
		x.wait(j.b, time.Now().Add(delayedPause))
		return
	}
	n := w.size()
	j.mu.Lock()
	fits := int64(j.kept+n) <= max(j.Room.Most, int64(n))
	if fits {
		j.kept += n
		j.wills = append(j.wills, w)
		j.b.memory.Add(budget.Uncommitted, int64(n))
	}
	j.mu.Unlock()
	switch {
	case fits:
		// Otherwise Recovered, or the next process, goes on.
		if j.Health() == nil && j.b.ctx.Err() == nil {
			j.run(j.b.payWills)
		}
	default:
		if w.stored != 0 {
			j.Add(&store.DeleteSession{Session: w.stored})
		}
		j.b.stats.dropped[hooks.DropMemory].Add(1)
		j.b.log.Warn("a Will is lost: the store is full, and too many Wills wait",
			"client", w.msg.From, "topic", w.msg.Topic)
	}
}

// startWills publishes those Wills that were due when the process ended.
func (j *records) startWills(due []*will) {
	if len(due) == 0 {
		return
	}
	n := 0
	for _, w := range due {
		n += w.size()
	}
	j.b.memory.Add(budget.Uncommitted, int64(n))
	j.mu.Lock()
	j.wills, j.kept = append(due, j.wills...), j.kept+n
	j.mu.Unlock()
	j.run(j.b.payWills)
}

func (b *Broker) payWills(t *turn) {
	j := b.journal
	j.mu.Lock()
	wills, n := j.wills, j.kept
	j.wills, j.kept = nil, 0
	j.mu.Unlock()
	b.memory.Add(budget.Uncommitted, -int64(n))
	for _, w := range wills {
		b.publishDue(t, w)
	}
}

// A share says which of those who match get a message.
type share byte

const (
	everybody    share = iota
	withoutStore       // those who get it without the Store, a group if all its members do
	withStore          // the others
)

// needsStore says whether the Store has to know that to gets a message of that QoS.
func needsStore(to *target, q packets.QoS) bool {
	return to.s.stored != 0 && min(q, to.qos) > packets.QoS0
}

// keepShare leaves in r who gets the message, of that QoS, with this share.
func (r *route) keepShare(q packets.QoS) {
	r.targets = slices.DeleteFunc(r.targets, func(to target) bool {
		return needsStore(&to, q) != (r.share == withStore)
	})
	r.shared = slices.DeleteFunc(r.shared, func(g sharedRoute) bool {
		if r.share == withStore {
			return slices.Contains(r.served, g.group)
		}
		return slices.ContainsFunc(g.members, func(to target) bool { return needsStore(&to, q) })
	})
}

// A delayed message waits for its time.
type delayed struct {
	will
	timer   timers.Timer
	account *owners.Account // of who has published it
	by      *delayer
}

// A delayer is a client whose delayed messages wait. What is known of the client stays as long, and
// counts once for all of them.
type delayer struct {
	client  *hooks.Client
	share   string // of Broker.due
	bytes   int64  // of the client
	waiting atomic.Int32
}

func newDelayer(c *hooks.Client, share string) *delayer {
	return &delayer{client: c, share: share, bytes: int64(budget.ClientBytes(c))}
}

const (
	delayedCost  = 512         // about what one takes besides its message
	delayedPause = time.Second // until one is tried again that the store did not take
)

// size is what x counts besides its client.
func (x *delayed) size() int64 { return heldSize(x.msg) + delayedCost }

// count counts n more for the owner of x and for all.
func (x *delayed) count(b *Broker, n int64) {
	x.account.Add(owners.Kept, n)
	b.memory.Add(budget.Sessions, n)
}

// over is the end of x, which may be nil.
func (x *delayed) over(b *Broker) {
	if x == nil {
		return
	}
	n := x.size()
	if x.by.waiting.Add(-1) == 0 {
		n += x.by.bytes
	}
	x.count(b, -n)
	x.account.Add(owners.Delayed, -1)
	b.owners.Close(x.account)
}

// wait publishes x at that time.
func (x *delayed) wait(b *Broker, at time.Time) {
	b.due.SetSlow(&x.timer, x.by.share, at, func(time.Time) {
		b.work(func(t *turn) { b.publishDue(t, &x.will) })
	})
}
