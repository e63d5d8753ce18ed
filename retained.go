package dunlin

import (
	"context"
	"hash/maphash"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/fifo"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/retained"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is how retained messages (3.3.1.3) change and expire, and how new subscriptions get
// them. Where they are kept is in package internal/retained.

// retention is the retained messages of a Broker, and who looks for them.
type retention struct {
	retained    *retained.Store
	topics      topicLocks
	retainedDue timers.Timer // set with the lock of retained held
	walkers     walkers
}

// newRetained returns the Store for the retained messages, which counts them in b.memory.
func (b *Broker) newRetained() *retained.Store {
	return retained.New(retained.Options{
		Limits: b.cfg().retainedLimits(),
		Admit:  b.admitRetained,
		Hold: func(m *message) {
			b.memory.Hold(holdersOf(m), budget.Retained, heldSize(m), retainedCost)
			b.ownRetained(m)
		},
		Release: func(m *message) {
			b.disownRetained(m)
			b.memory.Release(holdersOf(m), budget.Retained, heldSize(m), retainedCost)
		},
	})
}

func (c *Config) retainedLimits() retained.Limits {
	return retained.Limits{Messages: c.MaxRetained, Bytes: int64(c.MaxRetainedBytes)}
}

// topicLocks make the publishers of one topic take turns while its retained message changes, is
// given to the journal, and is delivered: so all three happen in one order. Several topics share a
// lock. Nobody takes one while holding another lock, and no hook that decides is asked while one is
// held.
type topicLocks [256]lock.Mutex[topicLock]

// lockTopic locks the topic for a change of its retained message.
func (b *Broker) lockTopic(topic []byte) *lock.Mutex[topicLock] {
	mu := &b.topics[maphash.Bytes(b.seed, topic)%uint64(len(b.topics))]
	mu.Lock()
	return mu
}

// lasts says whether a retained message of the topic outlives the Broker.
func lasts[T string | []byte](topic T) bool {
	return len(topic) < 5 || string(topic[:5]) != "$SYS/"
}

// restoreRetained undoes a change of a retained message, unless there has been another one.
func (b *Broker) restoreRetained(u *retainedUndo) {
	defer b.lockTopic([]byte(u.topic)).Unlock()
	old := b.journal.standing(u.old)
	switch {
	case u.now == nil: // a removal is tried again
	case b.retained.Get(u.topic) != u.now: // by a later batch, which may fail as well
		b.journal.undone[u.now] = old
	case old != nil:
		b.retained.Restore(old)
	default:
		b.retained.Remove(u.topic)
	}
}

// watchRetained has retained messages removed when they expire.
func (b *Broker) watchRetained() {
	b.retained.OnExpiry(func(at time.Time) { b.due.Set(&b.retainedDue, at, b.expireRetained) })
}

// expireRetained removes the retained messages that have expired.
func (b *Broker) expireRetained(now time.Time) {
	for {
		expired := b.retained.Expired(now, 64)
		for _, m := range expired {
			if f := b.obs.Dropped; b.removeExpired(m) && f != nil {
				f(hooks.Dropped{Client: program, Message: &m.Message, Reason: hooks.DropExpired})
			}
		}
		if len(expired) == 0 {
			return
		}
	}
}

// removeExpired removes m if it still is the retained message of its topic, and says whether it
// was.
func (b *Broker) removeExpired(m *message) bool {
	defer b.lockTopic([]byte(m.Topic)).Unlock()
	if !b.retained.RemoveExactly(m) {
		return false
	}
	if b.journal != nil && lasts(m.Topic) {
		b.journal.Add(&store.DeleteRetained{Topic: m.Topic})
	}
	return true
}

// New subscriptions get the retained messages that match them. A cursor goes through these, at the
// pace of the client. To find them is work that has nothing to do with the size of the SUBSCRIBE,
// so it is done with no lock of a Session held, and for all clients by few workers. These take one
// Session after the other, do a bounded piece of work for it, and rest if they find little: however
// much a client subscribes to, the others do not notice.

const (
	walkPiece = 4 << 10 // work for one Session at a time, see retained.Found
	walkLook  = 512     // work with the lock of the retained messages held
	// work that the reader of a client does itself for a SUBSCRIBE
	walkAtOnce  = 256
	walkPerSend = 32                     // work that is worth a message
	walkRound   = 500 * time.Microsecond // of work that is not, after which a worker rests as long
	walkRest    = 10 * time.Millisecond  // at most
)

// admitCursorLocked says why there is no room for a cursor for filter, nil if there is, or if none
// is needed.
func (s *session) admitCursorLocked(filter string) error {
	was, is := s.cursors.Bytes(), s.cursors.With(filter)
	full := was > 0 && is > was && is > s.quota.bytes
	switch {
	case !full && s.b.fitsOf(s.out.owner, int64(is-was)), !s.needsCursor(filter):
		return nil
	case full:
		return packets.Errorf(packets.QuotaExceeded,
			"the subscriptions whose retained messages are still to be sent take more than %d "+
				"bytes",
			s.quota.bytes)
	}
	return errNoMemory
}

// needsCursor says whether there may be a retained message that matches filter now.
func (s *session) needsCursor(filter string) bool {
	return strings.ContainsAny(filter, "+#") || s.b.retained.Get(filter) != nil
}

// addCursorLocked makes the cursor of a new subscription. It takes the place of an earlier one for
// the filter [MQTT-3.8.4-3], which is returned.
func (s *session) addCursorLocked(filter string, o *subs.Options) (cur, replaced *retained.Cursor) {
	if !s.needsCursor(filter) {
		s.dropCursorLocked(filter)
		return nil, nil // what becomes retained from now on comes as it is published
	}
	cur = &retained.Cursor{Filter: filter, QoS: o.QoS, NoLocal: o.NoLocal, ID: o.ID}
	return cur, s.putCursorLocked(cur)
}

func (s *session) putCursorLocked(cur *retained.Cursor) (replaced *retained.Cursor) {
	if s.cursors == nil {
		s.cursors = new(retained.Cursors)
	}
	was := s.cursors.Bytes()
	replaced = s.cursors.Put(cur)
	s.countCursorsLocked(was)
	return replaced
}

// countCursorsLocked tells the count of memory what has become of was bytes.
func (s *session) countCursorsLocked(was int) {
	n := int64(s.cursors.Bytes() - was)
	s.b.memory.Add(budget.Sessions, n)
	s.out.owner.Add(owners.Kept, n)
	if s.cursors.Len() == 0 {
		s.cursors = nil
	}
}

// dropCursorLocked ends the cursor for filter, if there is one.
func (s *session) dropCursorLocked(filter string) {
	was := s.cursors.Bytes()
	s.cursors.Drop(filter)
	s.countCursorsLocked(was)
}

// advanceLocked has cur go on at the topic from; empty: it is over.
func (s *session) advanceLocked(cur *retained.Cursor, from string) {
	was := s.cursors.Bytes()
	s.cursors.Advance(cur, from)
	s.countCursorsLocked(was)
}

// dropCursorsLocked ends all cursors and returns how many there were.
func (s *session) dropCursorsLocked() int {
	n, was := s.cursors.Len(), s.cursors.Bytes()
	s.cursors = nil
	s.countCursorsLocked(was)
	return n
}

// walkableLocked returns the cursor for which retained messages may be looked for now, to be sent
// on c. It is nil if there is none, or if something else comes first: what waits in the queue, or
// the client has to take what it was sent.
func (s *session) walkableLocked(c *conn) *retained.Cursor {
	if s.cursors == nil || c == nil || s.conn != c || c.stopping != nil || c.out.opening ||
		c.out.dead || c.out.parked || c.out.full ||
		int(s.out.resend) < len(s.out.flight) || s.out.queue.Len() > 0 ||
		c.out.Size() >= pumpBytes {
		return nil
	}
	cur := s.cursors.First()
	// Not for each place that becomes free in the window: a search finds several messages.
	if !cur.Ready || cur.Blocked && (!s.out.room() || s.out.used > s.out.quota-s.out.quota/4) {
		return nil
	}
	return cur
}

// walkers are the workers that look for retained messages.
type walkers struct {
	mu      lock.Mutex[walkersLock] // a leaf
	waiting fifo.Queue[*session]
	running int
	most    int       // immutable after New
	rooms   sync.Pool // of *walkRoom
}

// walkRoom is room for what a worker finds at a time.
type walkRoom [64]*message

// walkLaterLocked has a worker look for retained messages for s.
func (b *Broker) walkLaterLocked(s *session) {
	s.walking = true
	w := &b.walkers
	w.mu.Lock()
	w.waiting.Push(s)
	more := w.running < w.most
	if more {
		w.running++
	}
	w.mu.Unlock()
	if more {
		b.writers.Go(b.walkAll) // Close waits for it
	}
}

// next returns the Session that has waited longest, or ends the worker that asks.
func (w *walkers) next(ctx context.Context) *session {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting.Len() == 0 || ctx.Err() != nil {
		w.running--
		return nil
	}
	return w.waiting.Pop()
}

// walkAll is a worker. It ends when no Session waits.
func (b *Broker) walkAll() {
	var idle time.Duration
	for s := b.walkers.next(b.ctx); s != nil; s = b.walkers.next(b.ctx) {
		began := time.Now()
		looked, sent := b.walk(s, walkPiece)
		if looked > sent*walkPerSend {
			idle += time.Since(began)
		}
		if idle < walkRound {
			runtime.Gosched()
			continue
		}
		lock.NoneHeld("a wait")
		select {
		case <-time.After(min(idle, walkRest)):
		case <-b.ctx.Done():
		}
		idle = 0
	}
}

// walk looks for retained messages for s, work about as much as piece, and sends what it finds. It
// returns how much work it was, and how many messages were sent. The caller has set s.walking.
func (b *Broker) walk(s *session, piece int) (looked, sent int) {
	room, _ := b.walkers.rooms.Get().(*walkRoom)
	if room == nil {
		room = new(walkRoom)
	}
	var unknown []string
	s.mu.Lock()
	for looked < piece && len(unknown) == 0 && !s.showing() {
		c := s.conn
		cur := s.walkableLocked(c)
		if cur == nil {
			break
		}
		filter, from, limit := cur.Filter, cur.From(), len(room)
		if cur.QoS > packets.QoS0 {
			limit = min(limit, max(1, int(s.out.quota-s.out.used)))
		}
		s.mu.Unlock()
		f := b.retained.Scan(filter, from, limit, min(walkLook, piece-looked), room[:0])
		looked += f.Looked
		s.mu.Lock()
		var n int
		n, unknown = s.sendFoundLocked(c, cur, &f)
		sent += n
	}
	c := s.conn
	if s.walking = len(unknown) > 0; !s.walking && s.showing() {
		s.walking, s.extra.shows.walks = true, true
	} else if s.walking {
		// a decision may take long: no worker waits for it
		over := func() { s.walking = false }
		b.writers.Go(func() { b.askAndFlush(s, over, unknown...) }) // Close waits for it
	}
	s.mu.Unlock()
	clear(room[:])
	b.walkers.rooms.Put(room)
	if c != nil {
		c.flush(time.Now()) // which has a worker go on, if there is more
	}
	return looked, sent
}

// sendFoundLocked sends on c what was found for cur. It returns how many messages that was, and the
// topics about which is to be asked first.
func (s *session) sendFoundLocked(c *conn, cur *retained.Cursor, f *retained.Found) (sent int,
	unknown []string) {
	if s.cursors.First() != cur { // it has come to an end meanwhile
		return 0, nil
	}
	now := time.Now()
	for i, m := range f.Messages {
		if s.walkableLocked(c) != cur {
			s.advanceLocked(cur, strings.Clone(m.Topic))
			return sent, nil
		}
		if m = s.b.retained.Current(m, f.Version); !s.wantsLocked(cur, m, now) {
			continue
		}
		if s.b.rules.deliveries != nil {
			may, known := s.reading(m.Topic)
			if !known {
				s.advanceLocked(cur, strings.Clone(m.Topic))
				for _, m := range f.Messages[i:] {
					unknown = append(unknown, m.Topic)
				}
				return sent, unknown
			}
			if !may {
				continue
			}
		}
		if s.b.rules.shows != nil {
			as, known := s.shown(m)
			if !known {
				s.advanceLocked(cur, strings.Clone(m.Topic))
				f.Messages = f.Messages[i:]
				s.askShowsLocked(c, s.foundMessagesLocked(cur, f, now))
				return sent, nil
			}
			if as == nil {
				s.takeShown(m)
				s.dropped(&m.Message, hooks.DropIntercepted)
				continue
			}
		}
		d := retainedDelivery(cur, m)
		if d.qos > packets.QoS0 && !s.out.room() {
			s.advanceLocked(cur, strings.Clone(m.Topic))
			cur.Blocked = true
			return sent, nil
		}
		if !s.admits(c, &d) {
			s.advanceLocked(cur, strings.Clone(m.Topic))
			return sent, nil
		}
		s.sendQueued(c, d, now)
		sent++
	}
	s.advanceLocked(cur, f.Next)
	return sent, nil
}

// foundMessagesLocked returns those of the retained messages that were found for cur which its
// client gets. s.mu is held.
func (s *session) foundMessagesLocked(cur *retained.Cursor, f *retained.Found,
	now time.Time) (list []*message) {
	for _, m := range f.Messages {
		if m = s.b.retained.Current(m, f.Version); s.wantsLocked(cur, m, now) {
			list = append(list, m)
		}
	}
	return list
}

// admits, with s.mu held, says whether the store has room for d, a retained message that it has to
// know before c sends it. If it has not, c is flushed again when there may be room.
func (s *session) admits(c *conn, d *delivery) bool {
	if d.seq != 0 || d.qos == packets.QoS0 || s.stored == 0 {
		return true
	}
	if c.out.admitted {
		c.out.admitted = false
		return true
	}
	n := int64(journal.OpWeight + journal.WeighMessage(d.msg) + journal.DeliveryWeight)
	if c.out.parked || s.waitsForStoreLocked(c, d) {
		return false
	}
	c.out.parked = !s.b.journal.Room.Open(n, func() {
		s.mu.Lock()
		c.out.parked, c.out.admitted = false, true
		s.mu.Unlock()
		c.flush(time.Now())
	})
	if c.out.parked {
		s.b.journal.Rouse() // so that what is there is committed
	}
	return !c.out.parked
}

// wantsLocked says whether m, which may be nil, is for the subscription of cur.
func (s *session) wantsLocked(cur *retained.Cursor, m *message, now time.Time) bool {
	return m != nil && (m.Expires == 0 || m.Expires > now.UnixNano()) &&
		len(m.Topic) >= len(s.mount) &&
		!(cur.NoLocal && s.b.placeOf(m.From) == s.place())
}

// waitsForStoreLocked says whether d, which may not leave before it is durable, waits because the
// store refuses it now. resumeWalks goes on with it. s.mu is held.
func (s *session) waitsForStoreLocked(c *conn, d *delivery) bool {
	j := s.b.journal
	if !d.strict() || j.Refusing() == nil {
		return false
	}
	c.out.full = true
	return j.Refusing() != nil // otherwise resumeWalks may have come by already
}

// resumeWalks goes on with the retained messages that waited while the store was full.
func (b *Broker) resumeWalks(*turn) {
	b.mu.Lock()
	conns := slices.Collect(maps.Keys(b.conns))
	b.mu.Unlock()
	for _, c := range conns {
		c.sess.mu.Lock()
		full := c.out.full
		c.out.full = false
		c.sess.mu.Unlock()
		if full {
			c.flush(time.Now())
		}
	}
}

// findAgainLocked has the retained message of d, which could not be stored, sent when it can be:
// what is the retained message of its topic then. s.mu is held.
func (s *session) findAgainLocked(d *delivery) {
	cur := &retained.Cursor{Filter: d.msg.Topic, QoS: d.qos, Ready: true}
	if ids := d.ids(); len(ids) > 0 {
		cur.ID = ids[0]
	}
	s.putCursorLocked(cur)
}

// retainedDelivery is m on its way to the subscription of cur.
func retainedDelivery(cur *retained.Cursor, m *message) delivery {
	d := delivery{msg: m, qos: min(m.QoS, cur.QoS), retain: true, found: true}
	if cur.ID != 0 {
		d.extra = &extra{ids: []uint32{cur.ID}}
	}
	return d
}

// sendRetained begins to send the retained messages for subscriptions that c has made, the SUBACK
// being written. It begins itself, so that few messages go out with the SUBACK.
func (c *conn) sendRetained(grants []*grant) {
	s := c.sess
	s.mu.Lock()
	mine := s.readyCursorsLocked(grants) && !s.walking
	s.walking = s.walking || mine
	s.mu.Unlock()
	if mine {
		c.b.walk(s, walkAtOnce)
	}
}

// readyCursorsLocked makes the cursors of new subscriptions ready, and says whether there are any.
func (s *session) readyCursorsLocked(grants []*grant) (any bool) {
	for i := range grants {
		if cur := grants[i].cursor; cur != nil {
			cur.Ready, any = true, true
		}
	}
	return any
}

// nextRetainedLocked looks for the next retained message for the reader of an in-process Session,
// with the lock released meanwhile. more says that there may be some although none was found.
func (s *session) nextRetainedLocked(sub *Subscription, now time.Time) (d delivery, ok, more bool) {
	walkable := func() *retained.Cursor {
		if s.local != sub || s.cursors == nil || !s.cursors.First().Ready ||
			s.out.queue.Len() > 0 ||
			int(s.out.resend) < len(s.out.flight) || !s.out.room() {
			return nil
		}
		return s.cursors.First()
	}
	cur := walkable()
	if cur == nil {
		return d, false, false
	}
	filter, from := cur.Filter, cur.From()
	s.mu.Unlock()
	var room [1]*message
	f := s.b.retained.Scan(filter, from, 1, walkLook, room[:0])
	s.mu.Lock()
	// another reader was faster, or something comes first
	if walkable() != cur || cur.From() != from {
		return d, false, true
	}
	s.advanceLocked(cur, f.Next)
	for _, m := range f.Messages {
		if m = s.b.retained.Current(m, f.Version); s.wantsLocked(cur, m, now) {
			d, ok = retainedDelivery(cur, m), true
		}
	}
	return d, ok, !ok && s.cursors != nil
}

// shedCursorsLocked gives up the retained messages that are still to be sent to an absent client,
// and returns for how many subscriptions.
func (s *session) shedCursorsLocked() int {
	n := s.dropCursorsLocked()
	for range n {
		s.dropped(nil, hooks.DropMemory)
	}
	return n
}
