package dunlin

import (
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is who owns which Session: connecting, takeover, leaving and the end of a Session. Each
// is one change under the Session's lock; who lost a Session finds out because session.conn is not
// its connection any more.

// An attachment is what a CONNECT brings to its Session.
type attachment struct {
	clean   bool
	expiry  uint32
	will    *will
	quota   queueLimits
	limits  owners.Limits // of the principal
	connack *packets.Connack
	vetting decidedFor // what attach knows of the subscriptions that are kept
	instead bool       // a Session has ended for it, whose place it takes
	had     footprint  // of the Session that was in that place, or is, when the client came
	// A connection with the same Client Identifier was ended for it, and is in nobody's way
	replaces bool
	given    []hooks.Subscription // what the Authenticator granted
	granted  *journal.Batch       // that makes these durable; nil: they need not be
}

// put is about what the store is going to be told of a Session of c.
func (a *attachment) put(c *conn) *store.PutSession {
	op := &store.PutSession{ClientID: c.client.ID, Principal: c.client.Identity.Principal,
		Username: c.client.Username, Mount: c.readExtra().mount}
	if a.will != nil {
		op.Will = &store.Will{Message: a.will.msg.Message} // in a record of its own
	}
	return op
}

// sessionKey is the place of c's Session in the registry: its Client Identifier, and with
// SessionPerPrincipal also who it belongs to.
func (c *conn) sessionKey() string {
	return c.b.sessionKey(c.client.ID, c.client.Identity.Principal, c.named())
}

func (b *Broker) sessionKey(id, principal string, named bool) string {
	if !b.cfg().SessionPerPrincipal || !named {
		return id
	}
	return id + "\x00" + principal
}

// holder returns who the Session of a client belongs to.
func (b *Broker) holder(id, principal string, named bool, mount string) *holder {
	if !named && principal == "" && mount == "" {
		return &nobody
	}
	h := &holder{principal: principal, named: named, mount: mount}
	if key := b.sessionKey(id, principal, named); key != id {
		h.key = key
	}
	return h
}

// belongsTo says whether that is who h is.
func (h *holder) belongsTo(principal string, named bool) bool {
	return h.principal == principal && h.named == named
}

// named says whether c belongs to somebody with a name, be it an empty one, and not to one that c
// only claims. Where nobody is verified, see Config.open, each claim counts.
func (c *conn) named() bool { return c.b.names(c.client) }

// names is named for a client.
func (b *Broker) names(c *hooks.Client) bool {
	id := &c.Identity
	return (id.Principal != "" || c.HasUsername) && (!id.Unverified || b.cfg().open())
}

// attach gives c its Session, a new one or the one that is kept for its Client Identifier, and puts
// the CONNACK into its output. A connection that has the Session is told that it is taken over and
// is out of it, its Will decided, before that (3.1.4).
func (b *Broker) attach(t *turn, c *conn, a attachment) (present bool, err error) {
	key, named, principal := c.sessionKey(), c.named(), c.client.Identity.Principal
	durable := b.journal != nil && a.expiry > 0
	if durable {
		defer t.clear()
		if err := t.takeRoomFor(c, journal.Weigh(a.put(c))); errors.Is(err, journal.ErrNoRoom) {
			return false, err
		}
	}
	for {
		old := b.sessionAt(key)
		if durable && (old == nil || a.clean) { // before the one that there is ends for it
			if err := b.journal.Refusing(); err != nil {
				return false, err
			}
		}
		if old == nil {
			if err := b.begin(t, c, a); err != errTaken {
				return false, err
			}
			continue
		}
		if !old.belongsTo(principal, named) && !b.cfg().open() && !old.claims() {
			return false, recent.As(hooks.EndOtherPrincipal, packets.Errorf(
				packets.ClientIdentifierNotValid, "the Client Identifier belongs to somebody else"))
		}
		c.handOver()
		old.awaitReader()
		a.had.atLeast(old)
		result, err := b.takeOver(t, old, c, a)
		switch result {
		case resumed:
			return true, err
		case subscriptionsUndecided:
			if a.vetting, err = b.decideSubscriptions(old, c); err != nil {
				return false, err
			}
		case vacated:
			a.replaces = true
		case pointless:
			return false, err
		case over:
			a.instead = b.ownerName(old.principal, old.named) == b.ownerName(principal, named)
			if !a.instead {
				a.had = footprint{} // was that of another owner
			}
			old.mu.Lock()
			a.replaces = a.replaces || old.conn != nil
			old.mu.Unlock()
			b.endSession(t, old, packets.Errorf(packets.SessionTakenOver,
				"another connection with the same Client Identifier"))
		}
	}
}

var errCrowded = packets.Errorf(packets.ServerBusy, "too many connections")

// crowdedLocked says whether there is no room for a connection that does not take the place of
// another one. b.mu is held.
func (b *Broker) crowdedLocked(a *attachment) bool {
	full := len(b.conns) >= b.cfg().MaxConnections || !b.memory.Fits(budget.Connections, 1)
	return full && !a.replaces
}

// errDismissed is the end of a connection that was ended, with the Broker or alone, before it was
// accepted.
var errDismissed = packets.Errorf(packets.ServerShuttingDown,
	"the connection was ended before it was accepted")

// readerPatience is how long awaitReader waits at most: for a reader that waits for a hook, for
// instance.
const readerPatience = 100 * time.Millisecond

// awaitReader gives the reader of a connection that would leave a Will a moment to take in what has
// come already: the DISCONNECT of a client that connects anew right behind it was there first, and
// drops the Will [MQTT-3.14.4-3]. It wakes the reader, which reads what there is, and then answers
// by readerDone, unless the Will is gone before.
func (s *session) awaitReader() {
	s.mu.Lock()
	c, w := s.conn, s.will
	if c == nil || w == nil || c.nc.Raw == nil {
		s.mu.Unlock()
		return
	}
	if w.readerDone == nil {
		w.readerDone = make(chan struct{})
	}
	done := w.readerDone
	s.mu.Unlock()
	c.rouse()
	t := time.NewTimer(readerPatience)
	defer t.Stop()
	lock.NoneHeld("a wait")
	select {
	case <-done:
	case <-t.C:
	case <-s.b.ctx.Done():
	}
}

// hungUp says whether the client of c, which is being accepted, has closed the connection and has
// sent nothing but its CONNECT. Where c cannot be waited for without a buffer (TLS, WebSocket) it
// does not tell.
func (c *conn) hungUp(t *turn) bool {
	if c.nc.Raw == nil || !t.last {
		return false
	}
	n, err := c.nc.Peek()
	return n == 0 && err == nil || errors.Is(err, syscall.ECONNRESET)
}

// readerDone tells awaitReader, if it has asked, that the reader is done with all that has come.
func (c *conn) readerDone() {
	s := c.sess
	s.mu.Lock()
	if s.conn == c {
		s.will.readerIsDone()
	}
	s.mu.Unlock()
}

// isAwaited says whether awaitReader waits for c.
func (c *conn) isAwaited() bool {
	s := c.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn == c && s.will != nil && s.will.readerDone != nil
}

// A takeover is what became of an attempt to resume a Session.
type takeover byte

const (
	resumed                takeover = iota
	over                            // the Session ends, or has ended
	vacated                         // the connection that had it is out; try again
	subscriptionsUndecided          // its subscriptions have to be decided first
	pointless                       // the client that wanted it is not there any more
)

// begin makes a new Session for c. It returns errTaken if somebody else has just made it.
func (b *Broker) begin(t *turn, c *conn, a attachment) error {
	s := &session{
		out:    newSender(b.memory),
		holder: b.holder(c.client.ID, c.client.Identity.Principal, c.named(), c.readExtra().mount),
		b:      b, id: c.client.ID,
		expiry: a.expiry, will: a.will, quota: a.quota,
	}
	if err := s.ownNew(c, &a); err != nil {
		return err
	}
	s.mu.Lock()
	c.sess = s // before others find c among the connections
	s.resume(c)
	if err := b.enter(s, c, &a); err != nil {
		s.ended = true
		s.countLocked()
		b.owners.Close(s.disownLocked())
		c.sess = nil
		s.mu.Unlock()
		return err
	}
	var x *journal.Batch
	switch {
	case b.journal != nil && a.expiry > 0:
		x = b.journal.register(s)
	case b.journal != nil && a.will != nil && b.journal.Refusing() == nil:
		// it is published also if the process ends
		x = b.journal.awaitWill(s)
	case b.journal.ends(s.place()):
		// the client forgets what it had of the old one, which must not come back [MQTT-3.1.2-4]
		x = b.journal.All()
	}
	if a.granted = b.given.Begin(s, a.given); x != nil {
		c.out.opening = true
		s.mu.Unlock()
		return b.confirm(t, c, &a, x)
	}
	c.welcome(a.connack)
	s.mu.Unlock()
	c.flush(time.Now())
	return nil
}

// errTaken is the answer to one who comes too late with a new Session.
var errTaken = errors.New("there is such a Session")

// enter, with s.mu held, makes s, which is new, one of the Sessions, and c, which has it, one of
// the connections. The lock keeps others from an unfinished Session.
func (b *Broker) enter(s *session, c *conn, a *attachment) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.closing.drain.Load()
	switch {
	case b.closed || b.early[c]:
		return errDismissed
	case d != nil:
		return d.why
	case b.sessions.get(s.place()) != nil:
		return errTaken
	case b.sessions.len() >= b.cfg().MaxSessions && !a.instead:
		return recent.As(hooks.EndTooManySessions,
			packets.Errorf(packets.QuotaExceeded, "too many sessions"))
	case b.crowdedLocked(a): // others have come since acceptable looked
		return errCrowded
	}
	b.sessions.put(s.place(), s)
	b.moveLocked(c)
	return nil
}

// move, with c.sess.mu held, makes c one of the accepted connections, unless it was dismissed or
// there is no room.
func (b *Broker) move(c *conn, a *attachment) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.closing.drain.Load()
	switch {
	case b.closed || b.early[c]:
		return errDismissed
	case d != nil:
		return d.why
	case b.crowdedLocked(a):
		return errCrowded
	}
	b.moveLocked(c)
	return nil
}

// moveLocked is move with b.mu held.
func (b *Broker) moveLocked(c *conn) {
	b.leaveEarlyLocked(c)
	b.conns[c] = struct{}{}
	b.stats.accepted.Add(1)
	c.at = max(time.Since(b.started), b.stats.last+1)
	b.stats.last = c.at
	b.stats.most.Store(max(b.stats.most.Load(), uint64(len(b.conns)))) // b.mu is held
}

// welcome puts the CONNACK, which fits, at the front of the output. c.sess.mu is held.
func (c *conn) welcome(a *packets.Connack) {
	c.append(a)
}

// takeOver resumes s with c if nobody has it, and otherwise takes it from who has.
func (b *Broker) takeOver(t *turn, s *session, c *conn, a attachment) (takeover, error) {
	s.mu.Lock()
	old := s.conn
	for seen := (*conn)(nil); old != seen; old = s.conn { // each one that comes before c has s
		s.mu.Unlock()
		if c.hungUp(t) { // its CONNECT came before that of old
			return pointless, errGone
		}
		seen = old
		s.mu.Lock()
	}
	switch {
	case s.ended, a.clean, s.storeUncertain(),
		// it ends with its connection, which may have gone this moment
		s.expiry == 0 && !s.resuming(),
		s.mount != c.readExtra().mount, // another mount point is another world
		!s.belongsTo(c.client.Identity.Principal, c.named()):
		s.mu.Unlock()
		if old != nil {
			b.tookOver(c, t.now)
		}
		return over, nil
	case old == nil && !b.stillDecided(s, a.vetting):
		s.mu.Unlock()
		return subscriptionsUndecided, nil
	case old == nil:
		return b.resumeLocked(t, s, c, a)
	}
	w := s.abandon(old, t.now)
	s.countLocked()
	s.setEnd(t.now)
	if old.out.opening {
		b.journal.Add(s.put())
	}
	s.wait() // should c not resume it after all
	old.stop(packets.Errorf(packets.SessionTakenOver,
		"another connection with the same Client Identifier"))
	s.mu.Unlock()
	old.flush(t.now)
	b.tookOver(c, t.now)
	b.expireAuth(old, time.Time{})
	if w != nil {
		b.publishDue(t, w)
	}
	return vacated, nil
}

// abandon, with s.mu held, takes s from old, which is being taken over, and returns the Will if
// that is due. One with a delay waits, as long as the connection that comes has not been accepted.
func (s *session) abandon(old *conn, now time.Time) (w *will) {
	s.conn = nil
	switch {
	case old.out.opening: // its client has not been accepted
		s.revert()
	case s.will == nil:
	case s.will.delay > 0:
		s.will.readerIsDone()
		s.will.at = now.Add(s.will.delay)
		s.tellWill()
	default:
		s.will.readerIsDone()
		w, s.will = s.will, nil
	}
	return w
}

var errGone = recent.As(hooks.EndConnectionLost,
	packets.Errorf(packets.UnspecifiedError, "the client is gone, and has connected anew"))

// resumeLocked gives c the Session s, which waits for its client. s.mu is held; resumeLocked
// unlocks it.
func (b *Broker) resumeLocked(t *turn, s *session, c *conn, a attachment) (takeover, error) {
	s.out.owner.Limit(a.limits)
	err := s.admitLocked(c, &a)
	if err == nil {
		c.sess = s // before others find c among the connections
		err = b.move(c, &a)
	}
	if err != nil {
		c.sess = nil
		s.countLocked()
		s.mu.Unlock()
		return pointless, err
	}
	// a Will that still waited is not published [MQTT-3.1.3-9]
	b.due.Cancel(s.due)
	if w := s.will; w != nil && !w.at.After(t.now) { // one whose time has come is
		s.will = nil
		defer b.publishDue(t, w)
	}
	before := &before{s.expiry, s.will, s.quota, nil}
	if a.given != nil {
		before.given = b.given.Own(s)
	}
	s.expiry, s.will, s.quota = a.expiry, a.will, a.quota
	s.resume(c)
	if a.granted = b.given.Resume(s, a.given); a.granted == nil {
		// The store takes away what a Grant takes away, even if it is full, and has not the room to
		// put it back: that stays so if c is not accepted after all.
		before.given = nil
	}
	c.number.Store(s.num)
	a.connack.SessionPresent = true
	if s.stored != 0 {
		c.out.opening = true
		x := b.journal.resume(s, before)
		s.mu.Unlock()
		return resumed, b.confirm(t, c, &a, x)
	}
	c.welcome(a.connack)
	s.mu.Unlock()
	c.flush(time.Now())
	return resumed, nil
}

// before is what a Session was before a client wanted to resume it.
type before struct {
	expiry uint32
	will   *will
	quota  queueLimits
	// What its last client had brought; nil: that has not changed, or is less now, and stays so
	given []hooks.Subscription
}

// resuming, with s.mu held, says whether the connection of s wants to resume it, and is not
// accepted yet.
func (s *session) resuming() bool {
	j := s.b.journal
	if j == nil {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.resuming[s] != nil
}

// revert, with s.mu held, makes s, as far as it is not new, what it was before its connection came,
// which has not been accepted.
func (s *session) revert() {
	s.dropWill()
	if was := s.b.journal.resumed(s); was != nil {
		s.expiry, s.will, s.quota = was.expiry, was.will, was.quota
		s.tellWill()
		s.countLocked()
		if was.given != nil {
			s.b.given.Resume(s, was.given)
			s.b.given.DoubtOwn(s)
		}
	}
}

// confirm waits until the Session of c, which is new or resumes, is durable as c wants it, and then
// accepts c. If that fails the Session is what it was before, or none.
func (b *Broker) confirm(t *turn, c *conn, a *attachment, x *journal.Batch) error {
	t.end() // the others need not wait
	s, resumes := c.sess, a.connack.SessionPresent
	wait := b.journal.WaitAdded
	if resumes {
		wait = b.journal.WaitFollowing
	}
	err := wait(b.ctx, x)
	if err == nil && a.granted != nil {
		err = b.journal.WaitAdded(b.ctx, a.granted)
	}
	if err != nil && a.granted != nil {
		b.given.DoubtOwn(s)
	}
	refused := !resumes && err != nil
	if s.stored == 0 && errors.Is(err, journal.ErrNotStored) {
		// nothing of s has to be stored, and the end of the Session before it is tried until it is
		err = nil
	}
	s.mu.Lock()
	c.out.opening = false
	switch {
	case s.conn != c:
		err = packets.Errorf(packets.SessionTakenOver,
			"another connection with the same Client Identifier")
	case c.stopping != nil:
		err = c.stopping
	}
	if err == nil {
		b.journal.resumed(s)
		c.welcome(a.connack)
		s.mu.Unlock()
		c.flush(time.Now())
		return nil
	}
	defer b.expireAuth(c, time.Time{})
	if s.conn != c {
		ends := refused && s.born == never
		s.mu.Unlock()
		if ends {
			b.endSession(t, s, nil)
		}
		return err
	}
	s.revert()
	if !resumes {
		s.mu.Unlock()
		b.endSession(t, s, nil)
		return err
	}
	s.conn = nil
	s.countLocked()
	s.wait()
	b.journal.Add(s.put())
	s.mu.Unlock()
	return err
}

// connected says whether a connection has s.
func (s *session) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil
}

// detach is the end of c's part in its Session, unless it was taken over. normal drops the Will.
// told says that the store knows of the Session or of its Will.
func (b *Broker) detach(c *conn, normal bool) (told bool) {
	s := c.sess
	now := time.Now()
	s.mu.Lock()
	told = s.stored != 0
	if s.conn != c {
		s.mu.Unlock()
		return told
	}
	told = told || s.will != nil && s.will.stored != 0
	if normal {
		s.dropWill()
	}
	w, stays := s.leave(now)
	if stays {
		s.wait()
		if s.stored != 0 {
			b.journal.Add(s.put())
		}
	}
	s.mu.Unlock()
	if !stays || w != nil {
		b.work(func(t *turn) {
			if w != nil {
				b.publishDue(t, w)
			}
			if !stays {
				b.endSession(t, s, nil)
			}
		})
	}
	return told
}

// wait sets the Timer of a Session whose client is away. s.mu is held.
func (s *session) wait() {
	at := s.expiresAt()
	if s.will != nil && (at.IsZero() || s.will.at.Before(at)) {
		at = s.will.at
	}
	if s.due == nil {
		s.due = new(timers.Timer)
	}
	if s.asks() {
		s.b.due.SetSlow(s.due, s.share(), at, s.whenDue)
	} else {
		s.b.due.Set(s.due, at, s.whenDue)
	}
}

// share is the share of Broker.due that s takes: that of its owner, or one of its own if the owner
// has no name.
func (s *session) share() string {
	if name := s.b.ownerName(s.principal, s.named); name != "" {
		return name
	}
	return "client " + s.id
}

// asks says whether hooks are asked when the Will of s is due or s ends. s.mu is held.
func (s *session) asks() bool {
	b := s.b
	wills := b.authorizer != nil || b.cfg().Interceptor != nil
	return s.will != nil && wills || b.rules.deliveries != nil
}

// whenDue is called when the Will of an absent client is due, or its Session expires.
func (s *session) whenDue(now time.Time) {
	b := s.b
	s.mu.Lock()
	if s.conn != nil || s.local != nil || s.ended || s.due == nil || !s.due.Over(now) {
		s.mu.Unlock()
		return
	}
	w := s.will
	if w == nil || w.at.After(now) || s.endsAt != 0 && s.endsAt <= now.UnixNano() {
		s.expiry = 0 // nobody resumes it any more
		s.mu.Unlock()
		b.stats.expired.Add(1)
		b.work(func(t *turn) { b.endSession(t, s, nil) })
		return
	}
	s.will = nil
	s.countLocked()
	s.wait() // until its end, which comes behind the Will: the calls of one Timer do not overlap
	s.mu.Unlock()
	b.work(func(t *turn) { b.publishDue(t, w) })
}

// endSession ends s with all that belongs to it, in one step. A connection that still has it is
// told why.
func (b *Broker) endSession(t *turn, s *session, why *packets.Error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		b.unregister(s)
		return
	}
	c := s.conn
	if c != nil && c.out.opening {
		s.revert() // its client has not been accepted
	}
	w, shared := s.endState()
	owes := b.journal != nil && b.journal.noteEnd(s, shared)
	defer b.owners.Close(s.disownLocked()) // after its Will, which counts for its owner as well
	s.conn = nil
	if c != nil && why != nil {
		c.stop(why)
	}
	num, local := s.num, s.local
	var client *hooks.Client
	if b.obs.SessionEnded != nil {
		client = s.observed()
	}
	b.due.Cancel(s.due)
	b.given.End(s)
	s.mu.Unlock()
	if num != 0 {
		b.freeNumber(num)
	}
	b.unregister(s)
	if c != nil {
		c.flush(t.now)
	}
	if w != nil {
		b.publishDue(t, w)
	}
	switch {
	case owes:
		b.payDecided(t, s)
	case b.journal == nil:
		b.reassignAll(t, s, shared, hooks.DropSessionEnded)
	}
	if f := b.obs.SessionEnded; f != nil {
		f(hooks.SessionEnded{Client: client})
	}
	if local != nil && local.Err() == nil { // one that came at the last moment
		local.end(ErrSubscriptionClosed, sessionEnds)
	}
}

// unregister takes s out of the registry, if it is still the one there.
func (b *Broker) unregister(s *session) {
	b.mu.Lock()
	b.sessions.remove(s.place(), s)
	b.mu.Unlock()
}

// number gives a session its number in the tree.
func (b *Broker) number(s *session) uint32 {
	num := b.tree.Join()
	b.numbers.Lock()
	defer b.numbers.Unlock()
	for int(num) >= len(b.byNumber) {
		b.byNumber = append(b.byNumber, nil)
	}
	b.byNumber[num] = s
	return num
}

// originOf returns the Session that a message says it is from as its origin.
func (b *Broker) originOf(from string) origin {
	place := b.placeOf(from)
	s := b.sessionAt(place)
	if s == nil {
		return origin{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return origin{s, s.num}
}

// freeNumber ends the subscriptions of a session, and takes its number back.
func (b *Broker) freeNumber(num uint32) {
	b.numbers.Lock()
	b.byNumber[num] = nil
	n := len(b.byNumber)
	for n > 1 && b.byNumber[n-1] == nil {
		n--
	}
	if b.byNumber = b.byNumber[:n]; cap(b.byNumber) > 4*n+1024 {
		b.byNumber = slices.Clone(b.byNumber)
	}
	b.numbers.Unlock()
	b.tree.Leave(num)
}

// expireAuth ends the connection at the given time with Maximum connect time, unless it has
// authenticated anew by then. Zero: never.
func (b *Broker) expireAuth(c *conn, at time.Time) {
	c.sess.mu.Lock()
	defer c.sess.mu.Unlock()
	if c.extra == nil {
		return
	}
	b.due.Set(&c.extra.expires, at, func(now time.Time) {
		c.sess.mu.Lock()
		over := c.extra.expires.Over(now) // or it was set anew this moment
		c.sess.mu.Unlock()
		if over {
			b.endConn(c, packets.Errorf(packets.MaximumConnectTime,
				"the authentication has expired"))
		}
	})
}
