package dunlin

import (
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// onSubscribe handles SUBSCRIBE: each filter is decided by itself, in order (3.8).
func (c *conn) onSubscribe(t *turn, p *packets.Subscribe) error {
	id, err := c.available(p)
	if err != nil {
		return err
	}
	ack := packets.Suback{PacketID: p.PacketID, Codes: make([]packets.ReasonCode, len(p.Subscriptions))}
	var cursors []cursor
	for i := range p.Subscriptions {
		sub := &p.Subscriptions[i]
		code, err := c.subscribe(sub, id, &cursors)
		if err != nil {
			code = packets.CodeOf(err)
			if code == packets.UnspecifiedError {
				code = packets.NotAuthorized
			}
			code = fitting(code, packets.TypeSuback)
			if len(ack.Properties) == 0 && c.version == packets.V5 {
				if pe, ok := err.(*packets.Error); ok {
					ack.Properties = c.reason(pe, ack.Size(packets.V5))
				}
			}
		}
		ack.Codes[i] = code
	}
	c.reply(t, func(b []byte) []byte {
		b, _ = ack.Append(b, c.version)
		return b
	})
	if len(cursors) > 0 { // after the SUBACK, so that the client knows what they are for
		s := c.sess
		s.mu.Lock()
		if s.conn == c && !s.ended {
			for _, cur := range cursors {
				if _, has := c.b.tree.get(s.num, "", cur.filter); has { // not revoked meanwhile
					s.cursors = append(s.cursors, cur)
				}
			}
		}
		s.mu.Unlock()
	}
	return nil
}

// available returns the Subscription Identifier, 0 if there is none. It is a Protocol Error for a 5.0 client to use what the CONNACK has said is not
// available (3.2.2.3.11 to 3.2.2.3.13); older clients are refused that one subscription.
func (c *conn) available(p *packets.Subscribe) (id uint32, err error) {
	id, ok := p.Properties.Uint(packets.SubscriptionIdentifier)
	cfg := &c.b.cfg
	if ok && cfg.DisableSubscriptionIDs {
		return 0, packets.Errorf(packets.SubscriptionIdentifiersNotSupported, "Subscription Identifiers are not available")
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
	case group != "" && b.cfg.DisableShared:
		return packets.Errorf(packets.SharedSubscriptionsNotSupported, "shared subscriptions are not available")
	case b.cfg.DisableWildcards && strings.ContainsAny(filter, "+#"):
		return packets.Errorf(packets.WildcardSubscriptionsNotSupported, "wildcards are not available")
	}
	return nil
}

// subscribe makes one subscription and returns the QoS that is granted.
func (c *conn) subscribe(sub *packets.Subscription, id uint32, cursors *[]cursor) (packets.ReasonCode, error) {
	cfg := &c.b.cfg
	group, filter, err := packets.SplitShared(sub.Filter)
	if err != nil {
		return 0, err
	}
	shared := group != ""
	switch {
	case !packets.ValidTopicFilter(filter):
		return 0, packets.Errorf(packets.TopicFilterInvalid, "%q is no Topic Filter", sub.Filter)
	case len(sub.Filter) > cfg.MaxTopicLength || packets.Levels(filter) > cfg.MaxTopicLevels:
		return 0, packets.Errorf(packets.TopicFilterInvalid, "a Topic Filter has more bytes or levels than are accepted")
	}
	if err := c.b.switchedOff(group, filter); err != nil {
		return 0, err
	}
	if tooWide(filter, cfg.MinWildcardLevel) {
		return 0, packets.Errorf(packets.NotAuthorized, "the first %d levels must not be wildcards", cfg.MinWildcardLevel)
	}
	epoch := c.b.rules.epoch.Load()
	if c.b.authorizer != nil {
		r := hooks.AccessRequest{Client: c.client, Action: hooks.Subscribe, Topic: filter, Group: group, QoS: sub.QoS}
		if err := c.b.authorize(c.context(), &r); err != nil {
			return 0, err
		}
	}
	opts := subOptions{qos: min(sub.QoS, cfg.maxQoS()), noLocal: sub.NoLocal, retainAsPublished: sub.RetainAsPublished, retainHandling: sub.RetainHandling, id: id}
	if c.version < packets.V5 {
		opts.noLocal, opts.retainAsPublished, opts.retainHandling = false, false, 0
	}
	filter = c.few().mount + filter
	existed, err := c.sess.subscribe(c, group, filter, opts)
	if err != nil {
		return 0, err
	}
	c.number = c.sess.num
	if c.b.rules.epoch.Load() != epoch { // the review of the change may have come too early for this one
		if err := c.decideAgain(heldSub{group: group, filter: filter, qos: opts.qos}); err != nil {
			return 0, err
		}
	}
	if !shared && !cfg.DisableRetain && (opts.retainHandling == 0 || opts.retainHandling == 1 && !existed) {
		*cursors = append(*cursors, cursor{filter: filter, qos: opts.qos, noLocal: opts.noLocal, id: id})
	}
	if f := c.b.obs.Subscribed; f != nil {
		f(c.client, sub.Filter, opts.qos)
	}
	return packets.ReasonCode(opts.qos), nil
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

// subscribe puts a subscription into the tree. c is the connection that asked, nil for a program.
func (s *session) subscribe(c *conn, group, filter string, o subOptions) (existed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.conn != c {
		return false, packets.Errorf(packets.UnspecifiedError, "the connection has been taken over")
	}
	if s.num == 0 {
		s.num = s.b.number(s)
	}
	if s.subs >= s.b.cfg.MaxSubscriptions {
		if _, has := s.b.tree.get(s.num, group, filter); !has {
			return false, packets.Errorf(packets.QuotaExceeded, "more than %d subscriptions", s.b.cfg.MaxSubscriptions)
		}
	}
	if _, existed = s.b.tree.add(s.num, group, filter, o); !existed {
		s.subs++
	}
	return existed, nil
}

// unsubscribe removes a subscription and says whether there was one. What it has put into the queue stays (3.10.4).
func (s *session) unsubscribe(group, filter string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop(group, filter)
}

// drop is unsubscribe with the lock held.
func (s *session) drop(group, filter string) bool {
	if s.ended || s.num == 0 || !s.b.tree.remove(s.num, group, filter) {
		return false
	}
	s.subs--
	s.cursors = dropCursors(s.cursors, filter)
	return true
}

func dropCursors(cs []cursor, filter string) []cursor {
	keep := cs[:0]
	for _, c := range cs {
		if c.filter != filter {
			keep = append(keep, c)
		}
	}
	return keep
}

// onUnsubscribe handles UNSUBSCRIBE (3.10).
func (c *conn) onUnsubscribe(t *turn, p *packets.Unsubscribe) error {
	ack := packets.Unsuback{PacketID: p.PacketID, Codes: make([]packets.ReasonCode, len(p.Filters))}
	for i, f := range p.Filters {
		group, filter, err := packets.SplitShared(f)
		switch {
		case err != nil || !packets.ValidTopicFilter(filter):
			ack.Codes[i] = packets.TopicFilterInvalid
		case !c.sess.unsubscribe(group, c.few().mount+filter):
			ack.Codes[i] = packets.NoSubscriptionExisted
		default:
			if fn := c.b.obs.Unsubscribed; fn != nil {
				fn(c.client, f)
			}
		}
	}
	c.reply(t, func(b []byte) []byte {
		b, _ = ack.Append(b, c.version)
		return b
	})
	return nil
}
