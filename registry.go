package dunlin

import (
	"cmp"
	"errors"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is who owns which Session: connecting, takeover, leaving and the end of a Session. Each is one change under the
// Session's lock; who lost a Session finds out because session.conn is not its connection any more.

// An attachment is what a CONNECT brings to its Session.
type attachment struct {
	clean    bool
	expiry   uint32
	will     *will
	quota    queueLimits
	connack  *packets.Connack
	vetting  vetting // what attach knows of the subscriptions that are kept
	ends     bool    // a Session that the store knows has ended for it
	instead  bool    // a Session has ended for it, whose place it takes
	replaces bool    // a connection with the same Client Identifier was ended for it, and is in nobody's way
}

// put is about what the store is going to be told of a Session of c.
func (a *attachment) put(c *conn) *store.PutSession {
	op := &store.PutSession{ClientID: c.client.ID, Principal: c.client.Identity.Principal, Username: c.client.Username, Mount: c.few().mount}
	if a.will != nil {
		op.Will = &store.Will{Message: a.will.msg.Message}
	}
	return op
}

// sessionKey is the place of c's Session in the registry: its Client Identifier, and with SessionPerPrincipal also who it belongs to.
func (c *conn) sessionKey() string {
	return c.b.sessionKey(c.client.ID, c.client.Identity.Principal, c.named())
}

func (b *Broker) sessionKey(id, principal string, named bool) string {
	if !b.cfg.SessionPerPrincipal || !named {
		return id
	}
	return id + "\x00" + principal
}

// holder returns who the Session of a client belongs to.
func (b *Broker) holder(id, principal string, named bool, mount string) *holder {
	if !named && mount == "" {
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

// open says whether nobody is verified, so that a name is no more than a claim and keeps nobody from a Client Identifier.
func (b *Broker) open() bool {
	return b.cfg.Authenticator == hooks.Authenticator(hooks.AllowAll) && len(b.cfg.EnhancedAuth) == 0
}

// named says whether c belongs to somebody with a name, be it an empty one.
func (c *conn) named() bool { return c.client.Identity.Principal != "" || c.client.HasUsername }

// attach gives c its Session, a new one or the one that is kept for its Client Identifier, and puts the CONNACK into its
// output. A connection that has the Session is told that it is taken over and is out of it, its Will decided, before that (3.1.4).
func (b *Broker) attach(t *turn, c *conn, a attachment) (present bool, err error) {
	key, named, principal := c.sessionKey(), c.named(), c.client.Identity.Principal
	durable := b.journal != nil && a.expiry > 0
	if durable {
		defer t.clear()
		if err := t.takeRoomFor(c, weigh(a.put(c))); errors.Is(err, errNoRoom) {
			return false, err
		}
	}
	for {
		old := b.sessionAt(key)
		if durable && (old == nil || a.clean) { // before the one that there is ends for it
			if err := b.journal.refusing(); err != nil {
				return false, err
			}
		}
		if old == nil {
			if err := b.begin(t, c, a); err != errTaken {
				return false, err
			}
			continue
		}
		if !old.belongsTo(principal, named) && !b.open() {
			return false, packets.Errorf(packets.ClientIdentifierNotValid, "the Client Identifier belongs to somebody else")
		}
		old.hearOut()
		result, err := b.takeOver(t, old, c, a)
		switch result {
		case resumed:
			return true, err
		case unvetted:
			if a.vetting, err = b.vet(old, c); err != nil {
				return false, err
			}
		case vacated:
			a.replaces = true
		case pointless:
			return false, err
		case over:
			a.instead = true
			old.mu.Lock()
			a.replaces = a.replaces || old.conn != nil
			a.ends = a.ends || old.stored != 0 || old.conn != nil && old.conn.out.opening // which waits for the end of one before
			old.mu.Unlock()
			b.endSession(t, old, packets.Errorf(packets.SessionTakenOver, "another connection with the same Client Identifier"))
		}
	}
}

var errCrowded = packets.Errorf(packets.ServerBusy, "too many connections")

// crowdedLocked says whether there is no room for a connection that does not take the place of another one. b.mu is held.
func (b *Broker) crowdedLocked(a *attachment) bool {
	return len(b.conns) >= b.cfg.MaxConnections && !a.replaces
}

// errDismissed is the end of a connection that was ended, with the Broker or alone, before it was accepted.
var errDismissed = packets.Errorf(packets.ServerShuttingDown, "the connection was ended before it was accepted")

// hearingTime is how long hearOut waits at most: for a reader that waits for a hook, for instance.
const hearingTime = 100 * time.Millisecond

// hearOut gives the reader of a connection that would leave a Will a moment to take in what has come already: the DISCONNECT of a
// client that connects anew right behind it was there first, and drops the Will [MQTT-3.14.4-3]. It wakes the reader, which reads
// what there is, and then answers by heard, unless the Will is gone before.
func (s *session) hearOut() {
	s.mu.Lock()
	c, w := s.conn, s.will
	if c == nil || w == nil || c.raw == nil {
		s.mu.Unlock()
		return
	}
	if w.heard == nil {
		w.heard = make(chan struct{})
	}
	heard := w.heard
	s.mu.Unlock()
	c.nc.SetReadDeadline(aLongTimeAgo)
	t := time.NewTimer(hearingTime)
	defer t.Stop()
	select {
	case <-heard:
	case <-t.C:
	case <-s.b.ctx.Done():
	}
}

// peek says what the next read from c will return if nothing more comes until then.
func (c *conn) peek() (n int, err error) {
	cerr := c.raw.Control(func(fd uintptr) { n, err = peekFD(fd) })
	return n, cmp.Or(cerr, err)
}

// hungUp says whether the client of c, which is being accepted, has closed the connection and has sent nothing but its CONNECT.
// Where c cannot be waited for without a buffer (TLS, WebSocket) it does not tell.
func (c *conn) hungUp(t *turn) bool {
	if c.raw == nil || !t.last {
		return false
	}
	n, err := c.peek()
	return n == 0 && err == nil || errors.Is(err, syscall.ECONNRESET)
}

// heard tells hearOut, if it has asked, that the reader is done with all that has come.
func (c *conn) heard() {
	s := c.sess
	s.mu.Lock()
	if s.conn == c {
		s.will.answer()
	}
	s.mu.Unlock()
}

// asked says whether hearOut waits for c.
func (c *conn) asked() bool {
	s := c.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn == c && s.will != nil && s.will.heard != nil
}

// answer lets hearOut go on. It is called whenever its connection, or w, which may be nil, leaves the Session. The lock of
// the Session is held.
func (w *will) answer() {
	if w != nil && w.heard != nil {
		close(w.heard)
		w.heard = nil
	}
}

// A takeover is what became of an attempt to resume a Session.
type takeover byte

const (
	resumed   takeover = iota
	over               // the Session ends, or has ended
	vacated            // the connection that had it is out; try again
	unvetted           // its subscriptions have to be decided first
	pointless          // the client that wanted it is not there any more
)

// begin makes a new Session for c. It returns errTaken if somebody else has just made it.
func (b *Broker) begin(t *turn, c *conn, a attachment) error {
	s := &session{
		out:    sender{mem: b.memory},
		holder: b.holder(c.client.ID, c.client.Identity.Principal, c.named(), c.few().mount), b: b, id: c.client.ID,
		expiry: a.expiry, will: a.will, quota: a.quota,
	}
	s.mu.Lock()
	c.sess = s // before others find c among the connections
	s.resume(c)
	if err := b.enter(s, c, &a); err != nil {
		c.sess = nil
		s.mu.Unlock()
		return err
	}
	var x *batch
	switch {
	case b.journal != nil && a.expiry > 0:
		x = b.journal.register(s, s.put())
	case a.ends: // the client forgets what it had of the old one, which must not come back [MQTT-3.1.2-4]
		x = b.journal.all()
	}
	if x != nil {
		c.out.opening = true
		s.mu.Unlock()
		return b.confirm(t, c, &a, x, nil)
	}
	c.welcome(a.connack)
	s.mu.Unlock()
	c.flush(time.Now())
	return nil
}

// errTaken is the answer to one who comes too late with a new Session.
var errTaken = errors.New("there is such a Session")

// enter makes s, which is new, one of the Sessions, and c, which has it, one of the connections.
// s.mu is held, so that nobody sees an unfinished Session.
func (b *Broker) enter(s *session, c *conn, a *attachment) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed || b.early[c]:
		return errDismissed
	case b.sessions.get(s.place()) != nil:
		return errTaken
	case b.sessions.len() >= b.cfg.MaxSessions && !a.instead:
		return packets.Errorf(packets.QuotaExceeded, "too many sessions")
	case b.crowdedLocked(a): // others have come since acceptable looked
		return errCrowded
	}
	b.sessions.put(s.place(), s)
	b.moveLocked(c)
	return nil
}

// move makes c one of the accepted connections, unless it was dismissed or there is no room. The lock
// of its Session is held.
func (b *Broker) move(c *conn, a *attachment) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed || b.early[c]:
		return errDismissed
	case b.crowdedLocked(a):
		return errCrowded
	}
	b.moveLocked(c)
	return nil
}

// moveLocked is move with b.mu held.
func (b *Broker) moveLocked(c *conn) {
	delete(b.early, c)
	b.conns[c] = struct{}{}
	b.stats.accepted.Add(1)
}

// welcome puts the CONNACK, which fits, at the front of the output. The lock is held.
func (c *conn) welcome(a *packets.Connack) {
	c.append(a)
}

// takeOver resumes s with c if nobody has it, and otherwise takes it from who has.
func (b *Broker) takeOver(t *turn, s *session, c *conn, a attachment) (takeover, error) {
	if s.connected() && c.hungUp(t) { // its CONNECT came before that of the connection that has s
		return pointless, errGone
	}
	s.mu.Lock()
	old := s.conn
	switch {
	case s.ended, a.clean, s.expiry == 0, // with no expiry it ends with its connection, which may have gone this moment
		s.mount != c.few().mount, // another mount point is another world
		!s.belongsTo(c.client.Identity.Principal, c.named()):
		s.mu.Unlock()
		if old != nil {
			b.tookOver(c, t.now)
		}
		return over, nil
	case old == nil && !b.vetted(s, a.vetting):
		s.mu.Unlock()
		return unvetted, nil
	case old == nil:
		return b.resumeLocked(t, s, c, a)
	}
	w := s.will
	if w != nil && (w.delay > 0 || old.out.opening) {
		w = nil // the Session goes on in time; or its client has not been accepted
	}
	s.will.answer()
	s.conn, s.will = nil, nil
	s.setEnd(t.now)
	old.stop(packets.Errorf(packets.SessionTakenOver, "another connection with the same Client Identifier"))
	s.mu.Unlock()
	old.flush(t.now)
	b.tookOver(c, t.now)
	b.expireAuth(old, time.Time{})
	if w != nil {
		b.publishWillOf(t, s, w)
	}
	return vacated, nil
}

var errGone = packets.Errorf(packets.UnspecifiedError, "the client is gone, and has connected anew")

// resumeLocked gives c the Session s, which waits for its client. s.mu is held; resumeLocked
// unlocks it.
func (b *Broker) resumeLocked(t *turn, s *session, c *conn, a attachment) (takeover, error) {
	c.sess = s // before others find c among the connections
	if err := b.move(c, &a); err != nil {
		c.sess = nil
		s.mu.Unlock()
		return pointless, err
	}
	b.due.Cancel(s.due) // a Will that still waited is not published [MQTT-3.1.3-9]
	before := before{s.expiry, s.will, s.quota}
	s.expiry, s.will, s.quota = a.expiry, a.will, a.quota
	s.resume(c)
	c.number = s.num
	a.connack.SessionPresent = true
	if s.stored != 0 {
		c.out.opening = true
		x := b.journal.await(s.put())
		s.mu.Unlock()
		return resumed, b.confirm(t, c, &a, x, &before)
	}
	c.welcome(a.connack)
	s.mu.Unlock()
	c.flush(time.Now())
	return resumed, nil
}

// connected says whether a connection has s.
func (s *session) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil
}

// detach is the end of c's part in its Session, unless it was taken over. normal drops the Will.
func (b *Broker) detach(c *conn, normal bool) {
	s := c.sess
	now := time.Now()
	s.mu.Lock()
	if s.conn != c {
		s.mu.Unlock()
		return
	}
	w, stays := s.leave(now, normal)
	if stays {
		s.wait()
		if w == nil && s.stored != 0 {
			b.journal.add(s.put())
		}
	}
	s.mu.Unlock()
	if !stays || w != nil {
		b.work(func(t *turn) {
			if w != nil {
				b.publishWillOf(t, s, w)
			}
			if !stays {
				b.endSession(t, s, nil)
			}
		})
	}
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
		s.b.due.SetSlow(s.due, at, s.whenDue)
	} else {
		s.b.due.Set(s.due, at, s.whenDue)
	}
}

// asks says whether hooks are asked when the Will of s is due or s ends. s.mu is held.
func (s *session) asks() bool {
	b := s.b
	wills := b.authorizer != nil || b.cfg.Interceptor != nil
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
		b.work(func(t *turn) { b.endSession(t, s, nil) })
		return
	}
	s.will = nil
	s.wait() // until its end, which comes behind the Will: the calls of one Timer do not overlap
	s.mu.Unlock()
	b.work(func(t *turn) { b.publishWillOf(t, s, w) })
}

// endSession ends s with all that belongs to it, in one step. A connection that still has it is told why.
func (b *Broker) endSession(t *turn, s *session, why *packets.Error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		b.forget(s)
		return
	}
	c := s.conn
	if c != nil && c.out.opening {
		s.will.answer()
		s.will = nil // of a client that has not been accepted
	}
	w, shared := s.end()
	s.conn = nil
	if c != nil && why != nil {
		c.stop(why)
	}
	num, local := s.num, s.local
	b.due.Cancel(s.due)
	s.mu.Unlock()
	if num != 0 {
		b.tree.RemoveAll(num)
		b.release(num)
	}
	b.forget(s)
	if c != nil {
		c.flush(t.now)
	}
	b.leaveBehind(t, s, w, shared)
	if f := b.obs.SessionEnded; f != nil {
		f(s.id)
	}
	if local != nil && local.Err() == nil { // one that came at the last moment
		local.end(ErrSubscriptionClosed, true)
	}
}

// leaveBehind publishes the Will of a Session that has ended, passes on what others can have, and tells the store, all in one batch.
func (b *Broker) leaveBehind(t *turn, s *session, w *will, shared []delivery) {
	t.askAhead(shared)
	t.together()
	defer t.apart() // after a panic as well: a batch that stays pinned would stop the committer
	if w != nil {
		b.publishWill(t, w)
	}
	for i := range shared {
		if !b.passOn(t, &shared[i]) {
			s.dropped(shared[i].msg, hooks.DropSessionEnded)
		}
	}
	if s.stored != 0 {
		b.journal.end(t, s)
	}
}

// passOn gives a message that the ended member of a shared subscription did not complete to another one, and says whether one took it.
func (b *Broker) passOn(t *turn, d *delivery) bool {
	if d.msg.Expires != 0 && d.msg.Expires <= t.now.UnixNano() {
		d.settle(false)
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
				d.receipt().moved()
				return true
			}
		}
	}
	d.settle(false)
	return false
}

// forget takes s out of the registry, if it is still the one there.
func (b *Broker) forget(s *session) {
	b.mu.Lock()
	b.sessions.remove(s.place(), s)
	b.mu.Unlock()
}

// number gives a session its number in the tree.
func (b *Broker) number(s *session) uint32 {
	b.numbers.Lock()
	defer b.numbers.Unlock()
	if n := len(b.unused); n > 0 {
		num := b.unused[n-1]
		b.unused = b.unused[:n-1]
		b.byNumber[num] = s
		return num
	}
	b.byNumber = append(b.byNumber, s)
	return uint32(len(b.byNumber) - 1)
}

// originOf returns the Session in a place of the registry as the origin of a message.
func (b *Broker) originOf(place string) origin {
	s := b.sessionAt(place)
	if s == nil {
		return origin{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return origin{s, s.num}
}

func (b *Broker) release(num uint32) {
	b.numbers.Lock()
	defer b.numbers.Unlock()
	b.byNumber[num] = nil
	b.unused = append(b.unused, num)
}

// expireAuth ends the connection at the given time with Maximum connect time, unless it has authenticated anew by then. Zero: never.
func (b *Broker) expireAuth(c *conn, at time.Time) {
	c.sess.mu.Lock()
	defer c.sess.mu.Unlock()
	if c.rare == nil {
		return
	}
	b.due.Set(&c.rare.expires, at, func(now time.Time) {
		c.sess.mu.Lock()
		over := c.rare.expires.Over(now) // or it was set anew this moment
		c.sess.mu.Unlock()
		if over {
			b.end(c, packets.Errorf(packets.MaximumConnectTime, "the authentication has expired"))
		}
	})
}
