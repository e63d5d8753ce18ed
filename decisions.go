package dunlin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is how long a decision of the Authorizer holds. That of a publish is kept by connection
// and topic, where the Authorizer is hooks.Stable; that of a subscription until the rules change or
// its Session is resumed; that of a delivery, where the Authorizer makes such, by Session and
// topic. A change of the rules ends them all: it starts a new epoch.
//
// What a subscription that is no longer allowed has brought into the Session is taken out with it:
// the queued messages that it matches and no subscription that is left does. Of those on their way
// to the client the content is forgotten, so that nothing is sent again.
//
// At the end of the file are the SubscribeInterceptor, which may replace the filters of a
// SUBSCRIBE, and the UNSUBSCRIBE of a filter that was replaced.

// rules is what the Broker knows of its Authorizer.
type rules struct {
	// Immutable after New.
	stable     bool                      // the decision of a publish can be kept
	deliveries hooks.DeliveryAuthorizer  // nil: no decision for each delivery
	stop       func()                    // ends the calls of reloaded; nil: there are none
	shows      hooks.DeliveryInterceptor // nil: messages go out as they are

	narrow chan struct{} // capacity 1: one call of shows at a time while memory is scarce

	epoch atomic.Uint64 // how often the rules have changed, and one

	reviewing, again bool // a review is under way; another one is due. Guarded by Broker.mu
}

// learnRules finds out what the Authorizer can do.
func (b *Broker) learnRules() {
	b.rules.epoch.Store(1)
	if x, ok := b.authorizer.(hooks.Stable); ok {
		lock.NoneHeld("a call of a hook")
		b.rules.stable = x.Stable()
	}
	b.rules.deliveries, _ = b.authorizer.(hooks.DeliveryAuthorizer)
	b.rules.shows, b.rules.narrow = b.cfg().DeliveryInterceptor, make(chan struct{}, 1)
}

// followRules has the Authorizer tell of changes until b.rules.stop is called.
func (b *Broker) followRules() {
	if x, ok := b.authorizer.(hooks.Reloader); ok {
		lock.NoneHeld("a call of a hook")
		b.rules.stop = sync.OnceFunc(x.OnReload(b.reloaded)) // Close may be called several times
	}
}

// reloaded is called when the rules have changed. From then on no kept decision counts, and the
// subscriptions are decided again.
func (b *Broker) reloaded() {
	b.rules.epoch.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
	case b.rules.reviewing:
		b.rules.again = true
	default:
		b.rules.reviewing = true
		b.writers.Go(b.review) // Close waits for it
	}
}

// review decides the subscriptions of all Sessions anew.
func (b *Broker) review() {
	for again := true; again; {
		sessions, n := 0, 0
		for s := range b.allSessions() {
			if b.ctx.Err() != nil {
				return
			}
			sessions++
			n += b.reviewSession(s)
		}
		b.log.Info("the rules have changed", "sessions", sessions, "subscriptions revoked", n)
		b.mu.Lock()
		again, b.rules.again = b.rules.again, false
		b.rules.reviewing = again
		b.mu.Unlock()
	}
}

// A listedSub is a subscription of a Session, to be decided.
type listedSub struct {
	group, filter string // as in the tree
	qos           packets.QoS
	by            subs.Maker
	err           error // why it is revoked
}

// who is the client that decisions about s are made for: who has it, or had it last. s.mu is held.
func (s *session) who() *hooks.Client {
	if s.client == nil { // nobody since the Session was loaded
		s.client = &hooks.Client{ID: s.id, HasUsername: s.named, MountPoint: s.mount,
			Identity: s.identity()}
	}
	return s.client
}

// observed, with s.mu held, is the client of s that the Observer is told of.
func (s *session) observed() *hooks.Client {
	switch {
	case s.local != nil:
		return s.local.client
	case s.inProcess():
		return &hooks.Client{ID: s.id}
	}
	return s.who()
}

// subscriptionList lists the subscriptions of s, whose lock is not held: see subscriptions.
func (s *session) subscriptionList() (all []listedSub) {
	for x := range s.subscriptions() {
		all = append(all, listedSub{group: x.Group, filter: x.Filter, qos: x.QoS, by: x.By})
	}
	return all
}

// subscriptionPage returns up to most subscriptions of s, those behind after. See subs.Tree.Page.
func (s *session) subscriptionPage(after *subs.Subscription, most int) []subs.Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.num == 0 || s.ended { // then another Session may have its number
		return nil
	}
	return s.b.tree.Page(s.num, after, most)
}

// subscriptionPage is how many subscriptions of a Session are copied at a time.
const subscriptionPage = 64

// subscriptions yields those of s, oldest first. It takes the lock of s for a page at a time, so
// that publishers to s do not wait until all are listed. The caller does not hold it.
func (s *session) subscriptions() iter.Seq[*subs.Subscription] {
	return func(yield func(*subs.Subscription) bool) {
		var last *subs.Subscription
		for {
			page := s.subscriptionPage(last, subscriptionPage)
			for i := range page {
				if last = &page[i]; !yield(last) {
					return
				}
			}
			if len(page) < subscriptionPage {
				return
			}
		}
	}
}

// reviewSession decides the subscriptions of s anew, for who made them, and returns how many were
// revoked.
func (b *Broker) reviewSession(s *session) int {
	if s.inProcess() {
		return 0
	}
	s.mu.Lock()
	client, ctx, gen := s.who(), b.ctx, s.gen
	if s.conn != nil && s.conn.readExtra().ctx != nil {
		ctx = s.conn.extra.ctx
	}
	s.mu.Unlock()
	// what is left undecided is decided when the client comes back
	refused, _ := b.refused(ctx, client, s.mount, s.subscriptionList())
	return b.revoke(s, gen, refused)
}

// refused asks the Authorizer about subscriptions and returns those that it refuses. The error says
// that ctx has ended before all were decided: a hook that gives up for that has refused nothing.
func (b *Broker) refused(ctx context.Context, client *hooks.Client, mount string,
	list []listedSub) ([]listedSub, error) {
	out := list[:0]
	for _, sub := range list {
		if sub.by == subs.ByServer {
			continue // nobody asks about these
		}
		r := hooks.AccessRequest{Client: client, Action: hooks.ActionSubscribe,
			Topic: sub.filter[len(mount):], Group: sub.group, QoS: sub.qos}
		sub.err = b.authorizeSafely(ctx, &r, mount)
		switch {
		case errors.Is(sub.err, errHookFailed) && ctx.Err() != nil:
			return out, sub.err
		case sub.err != nil:
			out = append(out, sub)
		}
	}
	return out, nil
}

// decideAgain decides a subscription that c has just made, and takes it away if it is no longer
// allowed.
func (c *conn) decideAgain(sub listedSub) error {
	s := c.sess
	s.mu.Lock()
	gen, lost := s.gen, s.conn != c
	s.mu.Unlock()
	if lost {
		return nil // who has it now has decided it
	}
	subs, err := c.b.refused(c.context(), c.client, s.mount, []listedSub{sub})
	if len(subs) == 0 {
		return err
	}
	err = subs[0].err
	c.b.revoke(s, gen, subs)
	return err
}

// A decidedFor says for which state of a Session its subscriptions have been decided.
type decidedFor struct {
	gen   uint32
	epoch uint64
}

// stillDecided says whether v still holds for s, whose lock is held.
func (b *Broker) stillDecided(s *session, v decidedFor) bool {
	if b.authorizer == nil {
		return true
	}
	decided := s.num == 0 || v == decidedFor{s.gen, b.rules.epoch.Load()}
	return decided && s.revokingLocked() == nil
}

// decideSubscriptions decides the subscriptions of s, which waits for its client, for c, which
// wants to resume it: whoever that is now. The error says that this has taken too long, or that c
// has been ended.
func (b *Broker) decideSubscriptions(s *session, c *conn) (decidedFor, error) {
	epoch := b.rules.epoch.Load()
	s.mu.Lock()
	v, revoking := decidedFor{s.gen, epoch}, s.revokingLocked()
	s.mu.Unlock()
	if revoking != nil {
		lock.NoneHeld("a wait")
		<-revoking
	}
	ctx, cancel := c.decisionContext()
	defer cancel()
	refused, err := b.refused(ctx, c.client, s.mount, s.subscriptionList())
	b.revoke(s, v.gen, refused)
	return v, err
}

// mayPublish asks the Authorizer about a PUBLISH, or remembers what it said, in r, the place of
// topic in the cache. topic has the mount point of the client.
func (c *conn) mayPublish(t *turn, p *packets.Publish, topic []byte, r *route) error {
	b := c.b
	epoch := b.rules.epoch.Load()
	if !b.rules.stable {
		r = nil
	}
	as := decidedAs(p)
	if r != nil && r.decided == epoch && r.as == as && string(r.topic) == string(topic) {
		if r.refused != nil && b.obs.Denied != nil {
			q := hooks.AccessRequest{Client: c.client, Action: hooks.ActionPublish,
				Topic: string(p.Topic)}
			c.handOver()
			b.denied(&q, c.readExtra().mount, r.refused)
		}
		return r.refused
	}
	t.access = hooks.AccessRequest{Client: c.client, Action: hooks.ActionPublish,
		Topic: string(p.Topic), QoS: p.QoS, Retain: p.Retain}
	c.handOver()
	lock.NoneHeld("a decision of a hook")
	began := time.Now()
	said := b.authorizer.Authorize(c.context(), &t.access)
	b.stats.hooks.Since(began)
	err := b.judge(&t.access, c.readExtra().mount, said)
	// any other error but ErrAbstain is a failure, and may be over the next time
	var pe *packets.Error
	if r != nil && (said == nil || errors.As(said, &pe) || errors.Is(said, hooks.ErrAbstain)) {
		r.decide(topic, epoch, as, err)
		r.filled(b)
	}
	return err
}

// decidedAs is what a decision about p depends on besides its topic.
func decidedAs(p *packets.Publish) byte { return packets.FirstByte(p.QoS, p.Retain) }

// decide keeps a decision with the route of its topic.
func (r *route) decide(topic []byte, epoch uint64, as byte, err error) {
	if string(r.topic) != string(topic) {
		r.topic, r.valid = append(r.topic[:0], topic...), false
	}
	r.decided, r.as, r.refused = epoch, as, err
}

// authorizeSafely asks the Authorizer on a goroutine that must outlive a panic of it, which
// refuses.
func (b *Broker) authorizeSafely(ctx context.Context, r *hooks.AccessRequest,
	mount string) (err error) {
	defer b.survive(r.Client, &err)
	return b.authorize(ctx, r, mount)
}

// survive, deferred, makes an error of a panic.
func (b *Broker) survive(c *hooks.Client, err *error) {
	if v := recover(); v != nil {
		b.panicked("in a hook", c, v)
		*err = &packets.Error{Code: packets.NotAuthorized,
			Err: fmt.Errorf("panic in a hook: %v", v)}
	}
}

// readings are the decisions about deliveries to one Session. Guarded by its mu.
type readings struct {
	epoch  uint64
	gen    uint32
	may    map[string]bool
	asking bool  // askAndFlush asks about what comes next
	size   int32 // bytes that may takes, as they are counted
}

// maxReadings is how many topics a Session keeps decisions for, maxReadingBytes how many bytes
// these may take, readingCost what one takes besides its topic.
const (
	maxReadings     = 1024
	maxReadingBytes = 64 << 10
	readingCost     = 48
)

// keepLocked keeps a decision.
func (r *readings) keepLocked(b *Broker, topic string, may bool) {
	n := len(topic) + readingCost
	full := len(r.may) >= maxReadings || int(r.size)+n > maxReadingBytes
	if full || b.routesOver(100) || b.memory.Over(leaveQoS0) {
		r.may = make(map[string]bool) // what a map took when it was large stays with it
		b.memory.Recount(budget.Routes, &r.size, 0)
	}
	r.may[topic] = may
	b.memory.Recount(budget.Routes, &r.size, int(r.size)+n)
}

// forgetReadingsLocked ends all decisions about deliveries to s.
func (s *session) forgetReadingsLocked() {
	if s.extra != nil && s.extra.reads != nil {
		s.b.memory.Recount(budget.Routes, &s.extra.reads.size, 0)
		s.extra.reads = nil
	}
}

// reading returns what is known about delivering a topic to s. s.mu is held.
func (s *session) reading(topic string) (may, known bool) {
	if s.inProcess() {
		return true, true
	}
	epoch := s.b.rules.epoch.Load()
	extra := s.makeExtraLocked()
	if r := extra.reads; r == nil || r.epoch != epoch || r.gen != s.gen {
		s.forgetReadingsLocked()
		extra.reads = &readings{epoch: epoch, gen: s.gen, may: make(map[string]bool)}
	}
	may, known = extra.reads.may[topic]
	return may, known
}

// permitNext, with s.mu held, sees to it that what comes next is allowed: what is not is dropped.
// It returns false if that has to be asked first, which askAndFlush does: whoever flushes the
// output of a client waits for no decision about the client.
func (s *session) permitNext() bool {
	for {
		var d *delivery
		again := s.out.next()
		if again != nil {
			if d = again; d.state == pubrelDue {
				return true
			}
		} else if d = s.out.queue.Front(); d == nil {
			return true
		}
		may, known := s.reading(d.msg.Topic)
		switch {
		case !known:
			if r, topic := s.extra.reads, d.msg.Topic; !r.asking {
				r.asking = true
				over := func() { r.asking = false }
				s.b.writers.Go(func() { s.b.askAndFlush(s, over, topic) }) // Close waits for it
			}
			return false
		case may:
			return true
		}
		if again != nil {
			s.dropped(&d.msg.Message, hooks.DropNotAuthorized)
			s.dropMessage(d, hooks.DropNotAuthorized)
		} else {
			old := s.out.pop()
			s.discardLocked(&old, hooks.DropNotAuthorized)
		}
	}
}

// askAndFlush asks whether s may get messages of these topics, calls over with s.mu held, and then
// sends on what waits for that.
func (b *Broker) askAndFlush(s *session, over func(), topics ...string) {
	for _, topic := range topics {
		b.permits(s, topic)
	}
	s.mu.Lock()
	over()
	c := s.conn
	s.mu.Unlock()
	if c != nil {
		c.flush(time.Now())
	}
}

// permits says whether the topic may be delivered to s, and asks if that is not known. No lock is
// held.
func (b *Broker) permits(s *session, topic string) bool {
	s.mu.Lock()
	may, known := s.reading(topic)
	if known {
		s.mu.Unlock()
		return may
	}
	reads, client, ctx := s.extra.reads, s.who(), b.ctx
	if s.conn != nil && s.conn.readExtra().ctx != nil {
		ctx = s.conn.extra.ctx
	}
	s.mu.Unlock()
	may = false
	if len(topic) >= len(s.mount) {
		r := hooks.AccessRequest{Client: client, Action: hooks.ActionDeliver,
			Topic: topic[len(s.mount):]}
		may = b.authorizeDelivery(ctx, &r, s.mount) == nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := reads.may[topic]; !known && s.extra.reads == reads && !s.ended {
		reads.keepLocked(b, topic, may)
	}
	return may
}

// authorizeDelivery asks about a delivery to a client with that mount point.
func (b *Broker) authorizeDelivery(ctx context.Context, r *hooks.AccessRequest,
	mount string) (err error) {
	defer b.survive(r.Client, &err)
	lock.NoneHeld("a decision of a hook")
	defer b.stats.hooks.Since(time.Now())
	if err = b.rules.deliveries.AuthorizeDelivery(ctx, r); err != nil {
		err = b.refusal(err, "client", r.Client.ID, "action", r.Action, "topic", r.Topic)
		b.denied(r, mount, err)
	}
	return err
}

// interceptSubscribe asks the SubscribeInterceptor about each subscription of p. It returns the
// subscriptions to make, and the errors of those that are refused.
func (c *conn) interceptSubscribe(p *packets.Subscribe) ([]packets.Subscription, []error) {
	refused := make([]error, len(p.Subscriptions))
	if c.b.cfg().SubscribeInterceptor == nil {
		return p.Subscriptions, refused
	}
	subs := make([]packets.Subscription, len(p.Subscriptions))
	for i := range p.Subscriptions {
		wrote := p.Subscriptions[i]
		if _, _, refused[i] = c.b.splitFilter(wrote.Filter); refused[i] == nil {
			subs[i], refused[i] = c.b.interceptSubscribe(c.context(), c.client, c.readExtra().mount,
				&wrote)
		}
	}
	return subs, refused
}

// interceptSubscribe asks the SubscribeInterceptor, if there is one, about a subscription of a
// client with that mount point, and checks what it returns.
func (b *Broker) interceptSubscribe(ctx context.Context, client *hooks.Client, mount string,
	wrote *packets.Subscription) (got packets.Subscription, err error) {
	x := b.cfg().SubscribeInterceptor
	if x == nil {
		return *wrote, nil
	}
	asked, r := *wrote, hooks.AccessRequest{Client: client, Action: hooks.ActionSubscribe,
		QoS: wrote.QoS}
	r.Group, r.Topic, _ = packets.SplitShared(wrote.Filter)
	lock.NoneHeld("a decision of a hook")
	began := time.Now()
	said, err := x.InterceptSubscribe(ctx, client, wrote)
	b.stats.hooks.Since(began)
	switch {
	case err != nil:
		return got, b.judge(&r, mount, err)
	case said == nil:
		err = errors.New("the SubscribeInterceptor returned neither a subscription nor an error")
	default:
		got = *said
		err = b.soundSubscription(&got, asked.QoS)
	}
	return got, b.judge(&r, mount, err)
}

// interceptSubscribeSafely is interceptSubscribe on a goroutine that must outlive a panic, which
// refuses.
func (b *Broker) interceptSubscribeSafely(ctx context.Context, client *hooks.Client, mount string,
	wrote *packets.Subscription) (got packets.Subscription, err error) {
	defer b.survive(client, &err)
	return b.interceptSubscribe(ctx, client, mount, wrote)
}

// soundSubscription says what is wrong with a subscription that a hook returned. asked is the QoS
// that the client has asked for.
func (b *Broker) soundSubscription(s *packets.Subscription, asked packets.QoS) error {
	group, filter, err := b.splitFilter(s.Filter)
	switch {
	case err != nil || !packets.ValidTopicFilter(filter) || !packets.ValidUTF8(group):
		return fmt.Errorf("the SubscribeInterceptor returned %q, which is not a Topic Filter within "+
			"the limits: %v", cut(s.Filter, maxName), err)
	case s.QoS > asked:
		return fmt.Errorf("the SubscribeInterceptor returned QoS %d, the client has asked for %d",
			s.QoS, asked)
	case s.RetainHandling > 2, s.NoLocal && group != "":
		return fmt.Errorf("the SubscribeInterceptor returned options that no client may have: %+v",
			*s)
	}
	return nil
}

// admitWrittenLocked says whether s may have another filter that a hook has replaced.
func (s *session) admitWrittenLocked(g *grant) error {
	if g.wrote == "" || g.wrote == g.asked(s) {
		return nil
	}
	w := s.writtenLocked()
	if _, had := w.Get(g.wrote); had {
		return nil
	}
	if w.Len() >= s.b.cfg().MaxSubscriptions {
		return packets.Errorf(packets.QuotaExceeded, "more than %d subscriptions",
			s.b.cfg().MaxSubscriptions)
	}
	if !s.b.fitsOf(s.out.owner, int64(len(g.wrote)+len(g.filter)+writtenCost)) {
		return errNoMemory
	}
	return nil
}

// writtenCost is more than a replaced filter takes in memory besides its text, also if a second
// entry is needed for the filter that replaces it.
const writtenCost = 1024

// endReplaced ends the earlier subscriptions of c to the filters that it wrote for grants, of which
// the store has all that have not been taken back. They are settled with that.
func (c *conn) endReplaced(grants []*grant) {
	s := c.sess
	if s.endReplaced(c, grants) && s.stored != 0 {
		// if that fails the subscriptions are there again after a crash; no packet has said
		// otherwise
		_ = s.b.journal.Sync(s.b.ctx)
	}
}

// endReplaced ends the earlier subscriptions to the filters that the client of c wrote for grants,
// and says whether there was one. It leaves those that a later one of grants is for. If somebody
// else has settled a grant, or has the Session now, nothing happens to that.
func (s *session) endReplaced(c *conn, grants []*grant) (any bool) {
	var asked map[string]bool // by later grants; nil: nobody needs it
	if slices.ContainsFunc(grants, (*grant).replaces) {
		asked = make(map[string]bool, len(grants))
	}
	for _, g := range slices.Backward(grants) {
		if s.endOneReplaced(c, g, asked[g.was]) {
			any = true
		}
		if asked != nil && !g.takenBack {
			asked[g.asked(s)] = true
		}
	}
	return any
}

// replaces says whether another subscription has to end for g.
func (g *grant) replaces() bool { return g.had || g.plain }

// endOneReplaced is endReplaced for one grant. keep says that the earlier subscription stays.
func (s *session) endOneReplaced(c *conn, g *grant, keep bool) bool {
	if g.batch == nil && !g.replaces() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := s.conn == c
	if g.batch != nil {
		mine = s.b.journal.unsettled.Settle(s, g)
	}
	if !mine || !g.replaces() || keep || s.writtenLocked().Any(g.was) {
		return false
	}
	group, filter, err := packets.SplitShared(g.was)
	return err == nil && s.drop(group, s.mount+filter)
}

// unsubscribeWritten forgets a filter that the client wrote, and removes the subscription that it
// got for that. It returns the filter of the subscription with the mount point, empty if another
// filter of the client was replaced by it as well, and whether there was a subscription.
func (s *session) unsubscribeWritten(wrote string) (removed string, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, by := s.writtenLocked(), wrote
	var ops []store.Op
	if got, ok := w.Get(wrote); ok {
		by = got
		w.Remove(wrote)
		s.countLocked()
		ops = append(ops, s.forgotten(wrote, by))
	}
	group, filter, err := packets.SplitShared(by)
	switch {
	case ops != nil && w.Any(by): // another filter that the client wrote needs it
		found = true
	case err == nil && s.drop(group, s.mount+filter, ops...):
		return packets.JoinShared(group, s.mount+filter), true
	}
	if s.stored != 0 && ops != nil {
		s.b.journal.Add(ops...)
	}
	return "", found
}
