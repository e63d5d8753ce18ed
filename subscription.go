package dunlin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is how the program that runs the Broker subscribes. A Subscription is the reader of a
// Session like any other; only that there is a program in the place of a connection, and what it
// has read needs no encoding.

// localPrefix begins the Client Identifiers of the program's own Sessions. No client may have one
// like that.
const localPrefix = "$local/"

// inProcess says whether s is one of the program's own.
func (s *session) inProcess() bool { return strings.HasPrefix(s.id, localPrefix) }

// Incoming is a message as a Subscription receives it. It is shared and must not be modified.
type Incoming struct {
	// Message is as it was published, but for QoS, which is that of this delivery, and Retain, for
	// which see RetainAsPublished. Of a client with a mount point (hooks.Grant) Topic has it in
	// front; ResponseTopic is as the client wrote it, without: Respond puts it there.
	Message
	// Publisher is the Client Identifier of who published it, empty for Publish of the Broker.
	Publisher string
	// Expires is when its Message Expiry Interval ends, zero for never.
	Expires time.Time
	// SubscriptionIDs are those of the filters that matched.
	SubscriptionIDs []uint32
	// Redelivered says that an earlier reader of this named Session got the message, and did not
	// acknowledge it.
	Redelivered bool

	sub  *Subscription
	from string // the key of the publisher's Session
	id   uint16
}

// Ack acknowledges a QoS 1 or 2 message of a Subscription with ManualAck. Repeated calls, and calls
// on others, do nothing.
func (m *Incoming) Ack() {
	if m.sub == nil {
		return
	}
	s := m.sub.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.id == 0 || s.local != m.sub {
		return
	}
	if d := s.out.find(m.id); d != nil {
		s.storeDone(d)
		s.out.finish(d)
		s.out.countLive()
		m.sub.signal()
	}
	m.id = 0
}

// A Subscription reads a Session of the program itself. Its methods may be called concurrently;
// concurrent readers share the messages among them. It starts no goroutine, and none of its
// reader's work is done on a publisher's. Messages that it loses are counted, and logged at Warn,
// at most once a second.
type Subscription struct {
	s            *session
	client       *hooks.Client // for the Observer
	named        bool
	manual       bool
	blockTimeout time.Duration
	news         chan struct{} // capacity 1: something may be there to read
	closed       chan struct{}
	once         sync.Once
	err          error // why it is closed; set before closed is

	// Guarded by s.mu.
	stop     func() bool // of the context
	dropped  uint64
	reported uint64        // how many of them have been logged
	report   timers.Timer  // when the others will be
	stalled  bool          // a publisher has waited in vain
	room     chan struct{} // not nil: publishers wait; closed when there is room

	undecided []doubtful // in the order of the queue
}

var (
	// ErrSubscriptionClosed is what a Subscription returns after Close or Delete, and after its
	// Session was ended by DeleteSession.
	ErrSubscriptionClosed = errors.New("dunlin: subscription closed")
	// ErrSubscriptionTaken is what a Subscription returns after Subscribe was called with the same
	// Name again, from Subscribe itself if that happens while it is under way.
	ErrSubscriptionTaken = errors.New(
		"dunlin: another Subscribe has taken over the named subscription")
)

// Subscribe subscribes the program to filter, which may be a shared one, until ctx ends, the
// Subscription is closed, or the Broker is. What it publishes and subscribes to is not for the
// Authorizer to decide. A reader that falls behind loses messages or delays publishers, as o says.
// What it has not read when the Broker ends, by Shutdown or Close, it does not get any more: Next
// returns ErrBrokerClosed. It is lost, unless the Subscription has a Name and there is a Store:
// then it is there after the restart.
//
// The error is ErrBrokerClosed, the cause of ctx, a *packets.Error with Topic Filter invalid (0x8F)
// or Quota exceeded (0x97), that of a Store which fails, or says which option is out of range. With
// a Name it may also be ErrSubscriptionTaken, if somebody else subscribes with that Name at the
// same time, and ErrSubscriptionClosed, if DeleteSession ends the Session at that time.
func (b *Broker) Subscribe(ctx context.Context, filter string, o *SubscribeOptions) (*Subscription,
	error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if o == nil {
		o = new(SubscribeOptions)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if _, _, err := b.splitFor(filter, o); err != nil {
		return nil, err
	}
	sub := &Subscription{
		named: o.Name != "", manual: o.ManualAck, blockTimeout: o.BlockTimeout,
		news: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	if sub.blockTimeout == 0 {
		sub.blockTimeout = time.Second
	}
	fresh, err := b.attachLocal(ctx, sub, o)
	if err != nil {
		return nil, err
	}
	if err := sub.Add(filter, o); err != nil {
		sub.end(err, endingOf(fresh)) // what a named Session had before stays
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { sub.end(context.Cause(ctx), sessionStays) })
	sub.s.mu.Lock()
	sub.stop = stop
	sub.s.mu.Unlock()
	if sub.Err() != nil {
		stop()
	}
	return sub, nil
}

// splitFor is splitFilter for the program, whose filters no decoder has checked, with the options
// of the filter.
func (b *Broker) splitFor(filter string, o *SubscribeOptions) (group, inner string, err error) {
	group, inner, err = b.splitFilter(filter)
	switch {
	case err != nil:
		return "", "", err
	case !packets.ValidTopicFilter(inner):
		return "", "", packets.Errorf(packets.TopicFilterInvalid, "%q is no Topic Filter",
			cut(filter, maxName))
	case o.QoS > packets.QoS2:
		return "", "", fmt.Errorf("dunlin: Subscribe: QoS is %d, at most 2 is possible", o.QoS)
	case o.RetainHandling > RetainHandlingSkip:
		return "", "", fmt.Errorf(
			"dunlin: Subscribe: RetainHandling is %d, use RetainHandlingSend, "+
				"RetainHandlingSendIfNew or RetainHandlingSkip", o.RetainHandling)
	case o.ID > 268_435_455:
		return "", "", fmt.Errorf("dunlin: Subscribe: ID is %d, at most 268435455 is possible",
			o.ID)
	case group != "" && o.NoLocal:
		// [MQTT-3.8.3-4]
		return "", "", packets.Errorf(packets.ProtocolError, "No Local with a shared subscription")
	}
	return group, inner, nil
}

// attachLocal makes sub the reader of its Session: a new one, or the one that its Name has. With a
// Store it waits until that is durable.
func (b *Broker) attachLocal(ctx context.Context, sub *Subscription,
	o *SubscribeOptions) (fresh bool, err error) {
	buffer := o.Buffer
	if buffer == 0 {
		buffer = 1024
	}
	quota := queueLimits{b.cfg().MaxQueuedBytes, int32(min(buffer, 1<<31-1)), o.Overflow}
	for {
		s, fresh := b.findLocal(o.Name)
		if fresh && o.Name != "" && b.journal != nil {
			if err := b.journal.Refusing(); err != nil {
				return false, err
			}
		}
		s.mu.Lock()
		other := s.local
		// It has expired, so that whenDue is about to end it, or it is being refused.
		over := s.ended || !fresh && (s.expiry == 0 || s.storeUncertain())
		if other != nil || over {
			s.mu.Unlock()
			if other != nil {
				other.end(ErrSubscriptionTaken, sessionStays)
			} else {
				b.work(func(t *turn) { b.endSession(t, s, nil) })
			}
			continue
		}
		sub.s, sub.client = s, &hooks.Client{ID: s.id}
		if err := b.enterLocal(sub); err != nil {
			s.mu.Unlock()
			if err == errTaken {
				continue
			}
			return false, err
		}
		b.due.Cancel(s.due)
		s.local, s.quota, s.endsAt = sub, quota, 0
		if o.Name != "" {
			s.expiry = b.localExpiry(o.Expiry)
		}
		s.out.begin(min(buffer, 65535))
		x, adds := s.saveLocal()
		s.mu.Unlock()
		if x == nil {
			return fresh, nil
		}
		if adds {
			err = b.journal.WaitAdded(ctx, x)
		} else {
			err = b.journal.WaitFollowing(ctx, x)
		}
		if err != nil {
			sub.end(err, endingOf(adds))
		}
		return fresh, err
	}
}

// findLocal returns the Session of a Subscription with a name, or a new one that is not among the
// Sessions yet.
func (b *Broker) findLocal(name string) (s *session, fresh bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name != "" {
		s = b.sessions.get(localPrefix + name)
	} else {
		b.localCount++
		name = "#" + strconv.FormatUint(b.localCount, 10)
	}
	if s != nil {
		return s, false
	}
	return &session{holder: &nobody, b: b, id: localPrefix + name, out: newSender(b.memory)}, true
}

// enterLocal, with session.mu held, makes sub one of the open Subscriptions and, if it has a Name,
// its Session one of the Sessions. It returns errTaken if another one with that Name was quicker.
func (b *Broker) enterLocal(sub *Subscription) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrBrokerClosed
	}
	if s := sub.s; sub.named {
		switch at := b.sessions.get(s.id); {
		case at == s:
		case at != nil:
			return errTaken
		case b.sessions.len() >= b.cfg().MaxSessions:
			return packets.Errorf(packets.QuotaExceeded, "too many sessions")
		default:
			b.sessions.put(s.place(), s)
		}
	}
	b.locals[sub] = struct{}{}
	return nil
}

// saveLocal, with s.mu held, tells the store, if there is one and s has a Name, that s has a
// reader. It returns what to wait for, and whether s is new to it.
func (s *session) saveLocal() (x *journal.Batch, fresh bool) {
	switch {
	case s.b.journal == nil || s.expiry == 0:
		return nil, false
	case s.stored == 0:
		return s.b.journal.register(s), true
	}
	return s.b.journal.Await(s.put()), false
}

// localExpiry is the Session Expiry Interval of a named Subscription.
func (b *Broker) localExpiry(d time.Duration) uint32 {
	most := b.cfg().maxExpiry()
	if d == 0 {
		return most
	}
	return min(wholeSeconds(d), most)
}

// Add makes the Subscription get the messages of one more filter, or changes the options of one
// that it has. Of o, which may be nil, only the options that belong to a filter count. Errors are
// those of Subscribe, and Err.
func (sub *Subscription) Add(filter string, o *SubscribeOptions) error {
	if o == nil {
		o = new(SubscribeOptions)
	}
	s := sub.s
	group, inner, err := s.b.splitFor(filter, o)
	if err != nil {
		return err
	}
	opts := subs.Options{QoS: o.QoS, NoLocal: o.NoLocal, RetainAsPublished: o.RetainAsPublished,
		RetainHandling: byte(o.RetainHandling), ID: o.ID}
	if err := sub.Err(); err != nil {
		return err
	}
	g := &grant{group: group, filter: inner, qos: opts.QoS}
	s.b.work(func(t *turn) {
		if s.stored != 0 {
			t.write.ctx = s.b.ctx
			err = cmp.Or(s.settleFormer(t, g),
				t.takeRoomFor(nil, journal.OpWeight+len(filter)), s.down())
		}
		if err == nil {
			err = s.subscribe(nil, g, opts)
		}
	})
	// the Session has ended, by Delete of who took it over, or DeleteSession
	if errors.Is(err, errLost) {
		return cmp.Or(sub.Err(), ErrSubscriptionClosed)
	}
	if err != nil {
		return err
	}
	if g.batch != nil {
		if err := s.b.journal.WaitAdded(s.b.ctx, g.batch); err != nil {
			s.takeBackSubscription(g)
			return err
		}
	}
	s.mu.Lock()
	if g.batch != nil {
		s.b.journal.unsettled.Settle(s, g)
	}
	if s.readyCursorsLocked([]*grant{g}) {
		sub.signal()
	}
	s.mu.Unlock()
	if f := s.b.obs.Subscribed; f != nil {
		f(hooks.Subscribed{Client: sub.client, Filter: filter, MountedFilter: filter, QoS: o.QoS})
	}
	return nil
}

// Remove ends the subscription to filter and says whether there was one. What it has put into the
// queue stays (3.10.4). If the Subscription has a Name and there is a Store, Remove waits until
// that is durable. The error is ErrBrokerClosed or that of a Store which fails: then the
// subscription has ended, but may be there again after a crash.
func (sub *Subscription) Remove(filter string) (found bool, err error) {
	group, inner, err := packets.SplitShared(filter)
	if err != nil {
		return false, nil
	}
	if found = sub.s.unsubscribe(group, inner); found {
		if f := sub.s.b.obs.Unsubscribed; f != nil {
			f(hooks.Unsubscribed{Client: sub.client, Filter: filter, MountedFilter: filter})
		}
	}
	return found, sub.durable()
}

// durable waits until what was done to the Session is durable, if there is anything to wait for.
func (sub *Subscription) durable() error {
	if sub.s.stored == 0 {
		return nil
	}
	return sub.s.b.journal.Sync(sub.s.b.ctx)
}

// Publish publishes as Publish of the Broker does, in the name of this Subscription: filters with
// NoLocal do not get the message. After the Subscription has ended it returns Err.
func (sub *Subscription) Publish(ctx context.Context, m *Message) error {
	if err := sub.Err(); err != nil {
		return err
	}
	s := sub.s
	s.mu.Lock()
	o := origin{s, s.num}
	s.mu.Unlock()
	_, err := s.b.publishLocal(ctx, m, local{from: s.id, origin: o, client: sub.client})
	return err
}

// signal tells a reader that there may be something. sub.s.mu is held.
func (sub *Subscription) signal() {
	select {
	case sub.news <- struct{}{}:
	default:
	}
}

// Next returns the next message. It waits until there is one, ctx ends (and returns its cause), or
// the Subscription is closed: then the error is ErrSubscriptionClosed, ErrSubscriptionTaken,
// ErrBrokerClosed, or the cause of the context of Subscribe.
func (sub *Subscription) Next(ctx context.Context) (*Incoming, error) {
	for {
		m, more := sub.take(time.Now())
		if m != nil {
			return m, nil
		}
		if more && ctx.Err() == nil && sub.Err() == nil {
			continue
		}
		lock.NoneHeld("a wait")
		select {
		case <-sub.news:
		case <-sub.closed:
			return nil, sub.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Messages yields messages until the Subscription is closed.
func (sub *Subscription) Messages() iter.Seq[*Incoming] {
	return func(yield func(*Incoming) bool) {
		for {
			m, err := sub.Next(context.Background())
			if err != nil || !yield(m) {
				return
			}
		}
	}
}

// Err returns why the Subscription is closed, as Next does, and nil while it is open. It is for
// after Messages.
func (sub *Subscription) Err() error {
	select {
	case <-sub.closed:
		return sub.err
	default:
		return nil
	}
}

// take returns what there is to read, nil if there is nothing. more says that it was not looked
// everywhere.
func (sub *Subscription) take(now time.Time) (m *Incoming, more bool) {
	s := sub.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.local != sub {
		return nil, false
	}
	d, ok := s.next(now)
	if !ok {
		d, ok, more = s.nextRetainedLocked(sub, now)
	}
	sub.makeRoom()
	if !ok {
		return nil, more
	}
	m = &Incoming{Message: d.msg.Message, SubscriptionIDs: d.ids(), Redelivered: d.id != 0,
		sub: sub, from: d.msg.From}
	m.Publisher, _, _ = strings.Cut(m.from, "\x00") // see sessionKey
	m.QoS, m.Retain = d.qos, d.retain
	if d.msg.Expires != 0 {
		m.Expires = time.Unix(0, d.msg.Expires)
	}
	switch {
	case sub.manual && d.id != 0:
		m.id = d.id
	case sub.manual && d.qos > packets.QoS0:
		m.id = s.openLocal(d)
	case d.id != 0:
		s.storeDone(&d)
		s.out.finish(s.out.find(d.id))
		s.out.countLive()
	default:
		s.storeDone(&d)
		d.settleArrived()
	}
	if s.out.queue.Len() > 0 || s.cursors != nil || int(s.out.resend) < len(s.out.flight) {
		sub.signal() // for other readers
	}
	return m, false
}

// openLocal, with s.mu held, puts d in flight until it is acknowledged.
func (s *session) openLocal(d delivery) uint16 {
	defer s.out.countLive()
	if s.stored == 0 {
		return s.out.open(&d)
	}
	if d.seq == 0 { // a retained one
		s.seq++
		d.seq = s.seq
		s.b.journal.Enqueue(d.msg, d.forStore(s.stored))
	}
	id := s.out.open(&d)
	s.b.journal.Sent(nil, journal.Waiting{}, store.Sent{Session: s.stored, Seq: d.seq, ID: id})
	return id
}

// next, with s.mu held, takes the next message of an in-process Session: from those in flight that
// an earlier reader left, then from the queue.
func (s *session) next(now time.Time) (d delivery, ok bool) {
	if again := s.out.again(); again != nil {
		return *again, true
	}
	if int(s.out.resend) < len(s.out.flight) {
		return d, false
	}
	for s.out.room() {
		if s.out.queue.Len() == 0 || s.local.doubts(s.out.queue.Front()) {
			return d, false
		}
		d = s.out.pop()
		if d.msg.Expires == 0 || d.msg.Expires > now.UnixNano() {
			return d, true
		}
		s.discardLocked(&d, hooks.DropExpired)
	}
	return d, false
}

// A doubtful entry is the first one of a queue that came with a batch and must not be read before
// that is durable: it is QoS 2, may yet be refused, and come again.
type doubtful struct{ seq, batch uint64 }

// doubt notes that what has just been put into the queue, with x, is undecided. sub.s.mu is held.
func (sub *Subscription) doubt(x *journal.Batch, seq uint64) {
	if n := len(sub.undecided); n > 0 && sub.undecided[n-1].batch == x.Ticket() {
		return
	}
	sub.decide()
	sub.undecided = append(sub.undecided, doubtful{seq, x.Ticket()})
	sub.s.b.journal.after(x, func(q *sequel) { q.locals = append(q.locals, sub) })
}

// decide forgets what is decided. sub.s.mu is held.
func (sub *Subscription) decide() {
	if len(sub.undecided) == 0 {
		return
	}
	decided := sub.s.b.journal.LastDecided()
	sub.undecided = slices.DeleteFunc(sub.undecided,
		func(u doubtful) bool { return u.batch <= decided })
}

// doubts says whether d, the front of the queue, is undecided. sub.s.mu is held.
func (sub *Subscription) doubts(d *delivery) bool {
	if !d.strict() {
		return false
	}
	sub.decide()
	return len(sub.undecided) > 0 && d.seq >= sub.undecided[0].seq
}

// mayExceed, with sub.s.mu held, says whether a message that finds the queue full is put there all
// the same, because its publisher will wait.
func (sub *Subscription) mayExceed(t *turn, size int) bool {
	if sub == nil || sub.stalled || sub.s.out.bytes+size > sub.s.quota.bytes {
		return false
	}
	t.blocked = append(t.blocked, sub)
	return true
}

// await waits until the queue is within its limit, the Subscription is closed, done is, or
// BlockTimeout is over: then it is stalled.
func (sub *Subscription) await(done <-chan struct{}) {
	s := sub.s
	over := func() bool {
		return s.local == sub && !sub.stalled &&
			s.out.queue.Len() > s.quota.messages
	}
	s.mu.Lock()
	if !over() {
		s.mu.Unlock()
		return
	}
	if sub.room == nil {
		sub.room = make(chan struct{})
	}
	room := sub.room
	s.mu.Unlock()
	t := time.NewTimer(sub.blockTimeout)
	defer t.Stop()
	lock.NoneHeld("a wait")
	select {
	case <-room:
	case <-done:
	case <-sub.closed:
	case <-s.b.ctx.Done():
	case <-t.C:
		s.mu.Lock()
		sub.stalled = over()
		s.mu.Unlock()
	}
}

// makeRoom lets publishers go on if the queue is within its limit. sub.s.mu is held.
func (sub *Subscription) makeRoom() {
	if sub.s.out.queue.Len() > sub.s.quota.messages {
		return
	}
	sub.stalled = false
	if sub.room != nil {
		close(sub.room)
		sub.room = nil
	}
}

// lost counts a message that did not reach the reader, and has it logged soon. sub.s.mu is held.
func (sub *Subscription) lost() {
	if sub.dropped++; sub.dropped == sub.reported+1 {
		soon := time.Now().Add(time.Second)
		sub.s.b.due.SetSlow(&sub.report, programShare, soon, func(time.Time) { sub.logDropped() })
	}
}

// logDropped logs what was lost since it was last called.
func (sub *Subscription) logDropped() {
	s := sub.s
	s.mu.Lock()
	n, total, queued := sub.dropped-sub.reported, sub.dropped, int(s.out.queue.Len())
	sub.reported = sub.dropped
	s.b.due.Cancel(&sub.report)
	s.mu.Unlock()
	if n > 0 {
		s.b.log.Warn("a subscription of the program lost messages", "id", s.id, "lost", n, "in all",
			total, "queued", queued)
	}
}

// Dropped returns how many messages were lost: because the reader fell behind, or because they
// expired before it came.
func (sub *Subscription) Dropped() uint64 {
	sub.s.mu.Lock()
	defer sub.s.mu.Unlock()
	return sub.dropped
}

// Close ends the Subscription. What was not read is dropped, unless it has a Name: then the Session
// waits for its next reader. It returns nil, also when called again.
func (sub *Subscription) Close() error {
	sub.end(ErrSubscriptionClosed, sessionStays)
	return nil
}

// Delete ends the Subscription and, also if it has a Name, its Session. It does nothing after the
// Subscription was closed: then Broker.DeleteSession does it. With a Store it waits until the end
// of a Session with a Name is durable. The error is ErrBrokerClosed or that of a Store which fails:
// then the Session has ended, but may be there again after a crash. Without a Name, and without a
// Store, it is nil.
func (sub *Subscription) Delete() error {
	sub.end(ErrSubscriptionClosed, sessionEnds)
	return sub.durable()
}

// An ending says what becomes of the Session of a Subscription that ends, if it has a Name.
type ending byte

const (
	sessionStays ending = iota // and waits for its next reader
	sessionEnds
)

// endingOf is for a Subscription that fails to begin. fresh says that its Session is a new one.
func endingOf(fresh bool) ending {
	if fresh {
		return sessionEnds
	}
	return sessionStays
}

// end closes the Subscription.
func (sub *Subscription) end(err error, how ending) {
	lock.NoneHeld("a wait")
	sub.once.Do(func() {
		sub.err = err
		close(sub.closed)
		s, b := sub.s, sub.s.b
		s.mu.Lock()
		stop := sub.stop
		s.mu.Unlock()
		if stop != nil {
			stop()
		}
		sub.logDropped()
		b.mu.Lock()
		delete(b.locals, sub)
		b.mu.Unlock()
		s.mu.Lock()
		mine := s.local == sub
		if mine && s.expiry > 0 && how == sessionStays && !s.ended {
			b.leaveLocal(s)
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		if mine {
			b.work(func(t *turn) { b.endSession(t, s, nil) })
		}
	})
}

// leaveLocal leaves a named Session without a reader. s.mu is held.
func (b *Broker) leaveLocal(s *session) {
	s.local = nil
	s.dropCursorsLocked() // the next reader subscribes anew
	s.leave(time.Now())
	s.wait()
	if s.stored != 0 {
		b.journal.Add(s.put())
	}
}

// closeLocal ends all Subscriptions.
func (b *Broker) closeLocal() {
	b.mu.Lock()
	var subs []*Subscription
	for sub := range b.locals {
		subs = append(subs, sub)
	}
	b.mu.Unlock()
	for _, sub := range subs {
		sub.end(ErrBrokerClosed, sessionStays)
	}
}
