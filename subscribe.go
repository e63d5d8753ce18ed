package dunlin

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/retained"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/written"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// onSubscribe handles SUBSCRIBE: each filter is decided by itself, in order (3.8).
func (c *conn) onSubscribe(t *turn, p *packets.Subscribe) error {
	var grants []*grant
	// After the SUBACK, so that the client knows what they are for; also after a panic.
	defer func() { c.sendRetained(grants) }()
	id, err := c.available(p)
	if err != nil {
		return err
	}
	ack := packets.Suback{PacketID: p.PacketID,
		Codes: make([]packets.ReasonCode, len(p.Subscriptions))}
	if err := c.fits(&ack); err != nil {
		return err
	}
	refuse := func(i int, err error) {
		ack.Codes[i] = fitting(packets.CodeOf(err), packets.TypeSuback)
		if len(ack.Properties) == 0 && c.version == packets.V5 {
			if pe, ok := errors.AsType[*packets.Error](err); ok {
				ack.Properties = c.reason(pe, ack.Size(packets.V5))
			}
		}
	}
	subs, refused := c.interceptSubscribe(p)
	if err := c.sess.settleFormer(t, nil); err != nil {
		return err
	}
	down := c.roomFor(t, filtersOf(p, subs))
	defer t.clear()
	settled, seen := 0, written.Seen(nil)
	if c.sess.stored != 0 {
		seen = make(written.Seen)
	}
	for i := range subs {
		if seen.Again(p.Subscriptions[i].Filter, subs[i].Filter) {
			c.settleGrants(t, grants[settled:], refuse)
			settled = len(grants)
		}
		err := cmp.Or(refused[i], down)
		if err == nil {
			var g *grant
			if g, err = c.subscribe(p.Subscriptions[i].Filter, &subs[i], id); err == nil {
				g.at = i
				grants = append(grants, g)
				ack.Codes[i] = packets.ReasonCode(g.qos)
			}
		}
		if err != nil {
			refuse(i, err)
		}
	}
	c.settleGrants(t, grants[settled:], refuse)
	c.endReplaced(grants)
	return c.reply(t, &ack)
}

// settleGrants waits until grants, of one SUBSCRIBE, are durable. It takes back those that are not,
// the last one first, and tells refuse of them.
func (c *conn) settleGrants(t *turn, grants []*grant, refuse func(i int, err error)) {
	if c.sess.stored == 0 {
		return
	}
	t.end() // the others need not wait
	for i := len(grants) - 1; i >= 0; i-- {
		if err := c.b.journal.WaitAdded(c.b.ctx, grants[i].batch); err != nil {
			c.sess.takeBackSubscription(grants[i])
			refuse(grants[i].at, err)
		}
	}
}

// available returns the Subscription Identifier, 0 if there is none. It is a Protocol Error for a
// 5.0 client to use what the CONNACK has said is not available (3.2.2.3.11 to 3.2.2.3.13); older
// clients are refused that one subscription.
func (c *conn) available(p *packets.Subscribe) (id uint32, err error) {
	id, ok := p.Properties.Uint(packets.SubscriptionIdentifier)
	cfg := c.b.cfg()
	if ok && cfg.DisableSubscriptionIDs {
		return 0, packets.Errorf(packets.SubscriptionIdentifiersNotSupported,
			"Subscription Identifiers are not available")
	}
	if c.version < packets.V5 || !cfg.DisableShared && !cfg.DisableWildcards {
		return id, nil
	}
	for i := range p.Subscriptions {
		group, filter, err := packets.SplitShared(p.Subscriptions[i].Filter)
		if err != nil {
			continue // is refused by itself
		}
		if err := c.b.switchedOff(group, filter); err != nil {
			return 0, err
		}
	}
	return id, nil
}

// switchedOff refuses the kinds of subscriptions that Config has switched off.
func (b *Broker) switchedOff(group, filter string) error {
	switch {
	case group != "" && b.cfg().DisableShared:
		return packets.Errorf(packets.SharedSubscriptionsNotSupported,
			"shared subscriptions are not available")
	case b.cfg().DisableWildcards && strings.ContainsAny(filter, "+#"):
		return packets.Errorf(packets.WildcardSubscriptionsNotSupported,
			"wildcards are not available")
	}
	return nil
}

// splitFilter splits the filter of a shared subscription, as packets.SplitShared does, and refuses
// a filter with more bytes or levels than Config allows. It is for clients and the program alike.
func (b *Broker) splitFilter(filter string) (group, inner string, err error) {
	if group, inner, err = packets.SplitShared(filter); err != nil {
		return "", "", err
	}
	most := b.cfg().MaxTopicLevels
	if strings.ContainsAny(inner, "+#") {
		most = b.cfg().MaxWildcardLevels
	}
	switch n := packets.Levels(inner); {
	case len(filter) > b.cfg().MaxTopicLength:
		return "", "", packets.Errorf(packets.TopicFilterInvalid,
			"a filter of %d bytes, at most %d are accepted", len(filter), b.cfg().MaxTopicLength)
	case n > most:
		return "", "", packets.Errorf(packets.TopicFilterInvalid,
			"a filter of %d levels, at most %d are accepted", n, most)
	}
	return group, inner, nil
}

// subscribe makes one subscription, for which the client wrote a filter.
func (c *conn) subscribe(wrote string, sub *packets.Subscription, id uint32) (g *grant, err error) {
	cfg := c.b.cfg()
	group, filter, err := c.b.splitFilter(sub.Filter)
	if err != nil {
		return nil, err
	}
	if err := c.b.switchedOff(group, filter); err != nil {
		return nil, err
	}
	if tooWide(filter, cfg.MinWildcardLevel) {
		return nil, packets.Errorf(packets.NotAuthorized, "the first %d levels must not be wildcards",
			cfg.MinWildcardLevel)
	}
	epoch := c.b.rules.epoch.Load()
	if c.b.authorizer != nil {
		r := hooks.AccessRequest{Client: c.client, Action: hooks.ActionSubscribe, Topic: filter,
			Group: group, QoS: sub.QoS}
		if err := c.b.authorize(c.context(), &r, c.readExtra().mount); err != nil {
			return nil, err
		}
	}
	opts := subs.Options{QoS: min(sub.QoS, c.maxQoS), NoLocal: sub.NoLocal,
		RetainAsPublished: sub.RetainAsPublished, RetainHandling: sub.RetainHandling, ID: id}
	if c.version < packets.V5 {
		bridge := c.client.Bridge
		opts.NoLocal, opts.RetainAsPublished, opts.RetainHandling = bridge && group == "", bridge, 0
	}
	filter = c.readExtra().mount + filter
	g = &grant{group: group, filter: filter, qos: opts.QoS, wrote: wrote}
	if err = c.sess.subscribe(c, g, opts); err != nil {
		return nil, err
	}
	c.number.Store(c.sess.num)
	// the review of the change may have come too early for this one
	if c.b.rules.epoch.Load() != epoch {
		if err := c.decideAgain(listedSub{group: group, filter: filter,
			qos: opts.QoS}); err != nil {
			return nil, err
		}
	}
	if f := c.b.obs.Subscribed; f != nil {
		f(hooks.Subscribed{
			Client: c.client, Filter: wrote, MountedFilter: packets.JoinShared(group, filter),
			QoS: opts.QoS,
		})
	}
	return g, nil
}

// A grant is a subscription that was made.
type grant struct {
	at            int // in the SUBSCRIBE
	group, filter string
	qos           packets.QoS
	batch         *journal.Batch // that makes it durable; nil: it need not be
	old           subs.Options
	existed       bool             // with old
	cursor        *retained.Cursor // sends the retained messages; nil: none are sent
	replaced      *retained.Cursor // did it for old; nil: none were still to be sent
	// The Topic Filter that the client wrote; empty for a program. was is the other filter that it
	// got for that before: with had by a hook, with plain because no hook replaced it
	wrote, was string
	had, plain bool
	// What was noted for this grant: wrote, and that the client also wrote the filter which it got
	noted, notedSelf bool
	takenBack        bool
}

// down returns why nothing can be added to the Session, nil if it can.
func (s *session) down() error {
	if s.stored == 0 {
		return nil
	}
	return s.b.journal.Refusing()
}

// roomFor takes room for operations on the subscriptions of c to filters, and waits for it. It
// returns why nothing can be added to the Session, nil if it can.
func (c *conn) roomFor(t *turn, filters []string) error {
	if c.sess.stored == 0 {
		return nil
	}
	n := 0
	for _, f := range filters {
		n += journal.OpWeight + len(c.readExtra().mount) + len(f)
	}
	if err := t.takeRoomFor(c, n); err != nil {
		return err
	}
	return c.sess.down()
}

// settleFormer waits until what earlier connections, or other goroutines of the program, have made
// of the Session is decided, and settles it. So what the store refuses of it is taken back before
// somebody else changes the same subscription. If like is not nil only grants with its filter are
// settled. The error is that the Broker ends.
func (s *session) settleFormer(t *turn, like *grant) error {
	if s.stored == 0 {
		return nil
	}
	j := s.b.journal
	grants := j.unsettled.Of(s, func(g *grant) bool {
		return like == nil || like.group == g.group && like.filter == g.filter
	})
	if len(grants) == 0 {
		return nil
	}
	t.end() // the others need not wait
	for _, g := range slices.Backward(grants) {
		if err := j.WaitAdded(s.b.ctx, g.batch); s.b.ctx.Err() != nil {
			return err
		} else if err != nil {
			s.takeBackSubscription(g)
		}
	}
	s.endReplaced(nil, grants)
	return nil
}

// takeBackSubscription undoes what could not be stored, unless somebody else has settled that.
func (s *session) takeBackSubscription(g *grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.batch != nil && !s.b.journal.unsettled.Settle(s, g) {
		return
	}
	g.takenBack = true
	if s.ended {
		return
	}
	if g.cursor != nil && s.cursors.Of(g.filter) == g.cursor {
		s.dropCursorLocked(g.filter)
	}
	s.takeBackWrittenLocked(g)
	s.countLocked()
	switch {
	case g.existed:
		if _, has := s.b.tree.Get(s.num, g.group, g.filter); !has {
			return // revoked meanwhile
		}
		s.b.tree.Restore(s.num, g.group, g.filter, g.old)
		if g.replaced != nil {
			s.putCursorLocked(g.replaced)
		}
	case s.b.tree.Remove(s.num, g.group, g.filter):
		s.weighLocked(g.group, g.filter, -1)
	}
}

// tooWide says whether one of the first n levels of filter is a wildcard.
func tooWide(filter string, n int) bool {
	for level := range strings.SplitSeq(filter, "/") {
		if n--; n < 0 {
			break
		}
		if level == "+" || level == "#" {
			return true
		}
	}
	return false
}

var errLost = packets.Errorf(packets.UnspecifiedError, "the connection has been taken over")

// onlyIfNew is the Retain Handling that sends retained messages for a new subscription only
// (3.8.3.1).
const onlyIfNew = 1

// subscribe puts the subscription of g into the tree, and fills in the rest of g. c is the
// connection that asked, nil for a program.
func (s *session) subscribe(c *conn, g *grant, o subs.Options) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.conn != c {
		return errLost
	}
	if err := s.admitWrittenLocked(g); err != nil {
		return err
	}
	group, filter := g.group, g.filter
	if s.num == 0 {
		s.num = s.b.number(s)
	}
	full, has := int(s.subs) >= s.b.cfg().MaxSubscriptions, false
	crowded := s.crowded(group, filter)
	if full || crowded || o.RetainHandling == onlyIfNew {
		_, has = s.b.tree.Get(s.num, group, filter)
	}
	if full && !has {
		return packets.Errorf(packets.QuotaExceeded, "more than %d subscriptions",
			s.b.cfg().MaxSubscriptions)
	}
	if crowded && !has {
		return packets.Errorf(packets.QuotaExceeded, "too many subscriptions of one principal")
	}
	sends := group == "" && (o.RetainHandling == 0 || o.RetainHandling == onlyIfNew && !has)
	if c != nil && s.b.cfg().DisableRetain {
		sends = false
	}
	if sends {
		if err := s.admitCursorLocked(filter); err != nil {
			return err
		}
	}
	if g.old, g.existed, err = s.b.tree.Add(s.num, group, filter, o); err != nil {
		return packets.Errorf(packets.QuotaExceeded, "%v", err)
	}
	if !g.existed {
		s.weighLocked(group, filter, 1)
	}
	if sends { // the subscription being there, nothing that becomes retained is missed
		g.cursor, g.replaced = s.addCursorLocked(filter, &o)
	} else if cur := s.cursors.Of(filter); cur != nil && group == "" {
		cur.QoS, cur.NoLocal, cur.ID = o.QoS, o.NoLocal, o.ID
	}
	var notes []store.Op
	if g.wrote != "" {
		if notes = s.noteWrittenLocked(g); len(notes) > 0 {
			s.countLocked()
		}
	}
	if s.stored != 0 {
		g.batch = s.b.journal.AwaitWhole(append(notes, &store.PutSubscription{
			Session: s.stored, ID: o.ID, Subscription: asWritten(group, filter, &o),
		})...)
		s.b.journal.unsettled.Add(s, g)
	}
	return nil
}

// asWritten returns a subscription of the tree as a client writes it.
func asWritten(group, filter string, o *subs.Options) packets.Subscription {
	return packets.Subscription{
		Filter: packets.JoinShared(group, filter), QoS: o.QoS, NoLocal: o.NoLocal,
		RetainAsPublished: o.RetainAsPublished, RetainHandling: o.RetainHandling,
	}
}

// unsubscribe removes a subscription and says whether there was one. What it has put into the queue
// stays (3.10.4).
func (s *session) unsubscribe(group, filter string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop(group, filter)
}

// drop is unsubscribe with s.mu held. more is what the store is told with it.
func (s *session) drop(group, filter string, more ...store.Op) bool {
	if s.ended || s.num == 0 || !s.b.tree.Remove(s.num, group, filter) {
		return false
	}
	s.weighLocked(group, filter, -1)
	ops := append(make([]store.Op, 0, 8), &store.DeleteSubscription{Session: s.stored,
		Filter: packets.JoinShared(group, filter)})
	if w := s.writtenLocked(); w.Len() > 0 {
		by := packets.JoinShared(group, filter[len(s.mount):])
		for wrote := range w.Of(by) {
			w.Remove(wrote)
			ops = append(ops, s.forgotten(wrote, by))
		}
		s.countLocked()
	}
	if _, given := s.b.tree.GetBy(subs.ByServer, s.num, group, filter); group == "" && !given {
		s.dropCursorLocked(filter)
	}
	if s.stored != 0 {
		// the subscription first: without its notes the client could not end it
		s.b.journal.Add(append(ops, more...)...)
	}
	return true
}

// onUnsubscribe handles UNSUBSCRIBE (3.10).
func (c *conn) onUnsubscribe(t *turn, p *packets.Unsubscribe) error {
	ack := packets.Unsuback{PacketID: p.PacketID, Codes: make([]packets.ReasonCode, len(p.Filters))}
	if err := c.fits(&ack); err != nil {
		return err
	}
	if err := c.sess.settleFormer(t, nil); err != nil {
		return err
	}
	defer t.clear()
	// a store that fails says so below
	if err := c.roomFor(t, p.Filters); errors.Is(err, journal.ErrNoRoom) {
		if c.version < packets.V5 {
			return err
		}
		for i := range ack.Codes {
			ack.Codes[i] = fitting(packets.CodeOf(err), packets.TypeUnsuback)
		}
		return c.reply(t, &ack)
	}
	stored := c.sess.stored != 0
	for i, f := range p.Filters {
		_, _, err := packets.SplitShared(f)
		if err != nil {
			ack.Codes[i] = packets.TopicFilterInvalid
			continue
		}
		switch removed, found := c.sess.unsubscribeWritten(f); {
		case !found:
			ack.Codes[i] = c.b.given.Unsubscribe(c.sess, f)
			// a subscription that the server made is stored even if the Session is not
			stored = stored || c.b.journal != nil && ack.Codes[i] != packets.NoSubscriptionExisted
		case removed != "":
			if fn := c.b.obs.Unsubscribed; fn != nil {
				fn(hooks.Unsubscribed{Client: c.client, Filter: f, MountedFilter: removed})
			}
		}
	}
	if stored {
		t.end() // the others need not wait
		if err := c.b.journal.Sync(c.b.ctx); err != nil {
			if c.version < packets.V5 {
				return err
			}
			for i := range ack.Codes {
				ack.Codes[i] = fitting(packets.ImplementationSpecificError, packets.TypeUnsuback)
			}
		}
	}
	return c.reply(t, &ack)
}
