package dunlin

import (
	"errors"
	"time"
	"unicode/utf8"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what a PUBLISH from a client goes through before it is routed, and PUBREL.

// onPublish handles a PUBLISH. raw is the whole packet.
func (c *conn) onPublish(t *turn, p *packets.Publish, raw []byte) error {
	t.countReceived(c, p, len(raw))
	plain := !p.Retain && !p.Dup
	if len(p.Properties) > 0 {
		aliased, err := c.inboundProperties(t, p)
		if err != nil {
			return err
		}
		plain = plain && !aliased
	}
	cfg := c.b.cfg()
	switch {
	case p.QoS > c.maxQoS:
		return packets.Errorf(packets.QoSNotSupported, "QoS %d, at most %d is accepted", p.QoS,
			c.maxQoS)
	case p.Retain && cfg.DisableRetain:
		return packets.Errorf(packets.RetainNotSupported, "retained messages are not accepted")
	}
	topic := p.Topic
	if m := c.readExtra().mount; m != "" {
		t.mounted = append(append(t.mounted[:0], m...), p.Topic...)
		topic = t.mounted
	}
	if (len(p.Topic) > cfg.MaxTopicLength || tooDeep(p.Topic, cfg.MaxTopicLevels)) &&
		!c.shrinks(p, topic) {
		return packets.Errorf(packets.TopicNameInvalid,
			"the topic name has more bytes or levels than are accepted")
	}
	if p.QoS == packets.QoS2 {
		fresh, err := c.received(t, p.PacketID)
		if err == errNoMemory {
			return c.excess(t, p, err)
		}
		if err != nil || !fresh {
			return err
		}
	} else if p.QoS == packets.QoS1 && c.open.Load() >= int32(c.receiveMaximum) &&
		c.version == packets.V5 {
		return c.tooManyOpen()
	}
	if err := c.b.refuseMemory(); err != nil && !c.shrinks(p, topic) {
		return c.excess(t, p, err)
	}
	if x := c.readExtra().pace; x != nil && c.b.cfg().OverRate == OverRateRefusePublish &&
		!x.Take(t.now.UnixNano(), len(raw)) {
		return c.excess(t, p, errTooFast)
	}
	mayStore := p.QoS > packets.QoS0 || p.Retain || cfg.Interceptor != nil || p.Topic[0] == '$'
	if cfg.Store != nil && mayStore {
		defer t.clear()
		t.write.conn = c
		if p.QoS == packets.QoS2 && c.sess.stored != 0 {
			t.write.from, t.write.id = c.sess, p.PacketID
		}
	}
	matched, err := c.route(t, p, raw, plain)
	if p.QoS == packets.QoS0 {
		return nil // what went wrong cannot be told
	}
	return c.answer(t, p, matched, err)
}

// tooDeep says whether topic has more than most levels. A short one need not be counted.
func tooDeep(topic []byte, most int) bool {
	return len(topic) >= most && packets.Levels(topic) > most
}

// shrinks says whether p, with that topic, leaves less retained than there was.
func (c *conn) shrinks(p *packets.Publish, topic []byte) bool {
	return p.Retain && c.b.retained.Shrinks(string(topic), len(p.Payload), len(p.Properties))
}

// excess refuses a PUBLISH beyond what the client may send or the broker can hold.
func (c *conn) excess(t *turn, p *packets.Publish, err error) error {
	c.sess.countRefused(c.readExtra().mount+string(p.Topic), err)
	if p.QoS == packets.QoS0 {
		return nil
	}
	return c.answer(t, p, 0, err)
}

var errTooFast = packets.Errorf(packets.QuotaExceeded,
	"more messages or bytes than are allowed in the time")

// inboundProperties resolves the Topic Alias and leaves only the properties that travel with the
// message (3.3.2.3).
func (c *conn) inboundProperties(t *turn, p *packets.Publish) (aliased bool, err error) {
	if p.Properties.Has(packets.SubscriptionIdentifier) {
		return false, packets.Errorf(packets.ProtocolError,
			"a Subscription Identifier in a PUBLISH from a client")
	}
	a, ok := p.Properties.Uint(packets.TopicAlias)
	if !ok {
		return false, nil
	}
	if a == 0 || a > uint32(c.aliasesIn) {
		return false, packets.Errorf(packets.TopicAliasInvalid, "Topic Alias %d, the maximum is %d",
			a, c.aliasesIn)
	}
	own := c.makeExtra()
	if len(p.Topic) > 0 {
		if err := own.aliases.set(c, int(a), p.Topic); err != nil {
			return false, err
		}
	} else {
		topic, err := own.aliases.topic(int(a))
		if err != nil {
			return false, err
		}
		t.topic = append(t.topic[:0], topic...)
		p.Topic = t.topic
	}
	t.props = p.Properties.Without(t.props[:0], packets.TopicAlias)
	p.Properties = t.props
	return true, nil
}

// received takes note of a QoS 2 message and says whether it is new. One that is not gets its
// PUBREC again [MQTT-4.3.3-10].
func (c *conn) received(t *turn, id uint16) (fresh bool, err error) {
	s := c.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c {
		return false, nil
	}
	if err := s.admitArrivalLocked(id); err != nil {
		return false, err
	}
	fresh, counts := s.in.publish(id)
	s.noteArrivalsLocked()
	if counts {
		if c.open.Add(1) > int32(c.receiveMaximum) && c.version == packets.V5 {
			if fresh { // it was not delivered
				c.forgetReceived(id)
			}
			return false, c.tooManyOpen()
		}
	}
	if fresh {
		s.in.routes(id)
	} else if !s.in.again(id) {
		at := c.out.End()
		c.ack(t, packets.TypePubrec, id, packets.Success)
		c.hold(at, s.undecided(c), link.KeepsPlace, id)
		t.touch(c)
	}
	return fresh, nil
}

// forgetReceived, with c.sess.mu held, forgets the identifier of a QoS 2 message, and says whether
// it was known, and whether it counted as open on this connection.
func (c *conn) forgetReceived(id uint16) (known, open bool) {
	s := c.sess
	known, open = s.in.pubrel(id)
	if s.most > manyArrivals {
		s.trimArrivalsLocked()
	}
	if open {
		c.open.Add(-1)
	}
	return known, open
}

// tooManyOpen is the error of a client that goes beyond our Receive Maximum, QoS 1 and 2 counted
// together [MQTT-3.3.4-7].
func (c *conn) tooManyOpen() error {
	return packets.Errorf(packets.ReceiveMaximumExceeded,
		"more than %d QoS 1 and 2 messages are open", c.receiveMaximum)
}

// route takes the message past the hooks and to its subscribers.
func (c *conn) route(t *turn, p *packets.Publish, raw []byte, plain bool) (matched int, err error) {
	t.found = 0
	b, delay := c.b, time.Duration(0)
	if p.Topic[0] == '$' {
		if delay, err = c.undelay(t, p); err != nil {
			return 0, err
		}
	}
	if p.Topic[0] == '$' && b.reserved(string(p.Topic)) {
		q := hooks.AccessRequest{Client: c.client, Action: hooks.ActionPublish,
			Topic: string(p.Topic)}
		c.handOver()
		b.denied(&q, c.readExtra().mount, errReserved)
		return 0, errReserved
	}
	if b.cfg().CheckPayloadFormat && saysText(p.Properties) && !utf8.Valid(p.Payload) {
		return 0, packets.Errorf(packets.PayloadFormatInvalid, "the payload is not UTF-8")
	}
	topic := p.Topic
	if c.readExtra().mount != "" {
		topic, plain = t.mounted, false
	}
	r := c.cachedRoutes().of(b, topic)
	if b.authorizer != nil {
		if err := c.mayPublish(t, p, topic, r); err != nil {
			return 0, err
		}
	}
	p.Topic = topic
	if delay > 0 {
		return 1, c.delay(t, p, delay) // who subscribes is not known yet
	}
	o := &t.out
	if b.cfg().Interceptor != nil {
		m, err := c.intercept(t, p)
		if err != nil {
			return 0, err
		}
		t.untold = p.QoS == packets.QoS0
		if matched, err = t.publishMessage(m, c.origin()); err == nil {
			b.published(c.client, &m.Message, matched)
		}
		return matched, err
	}
	o.reset(p, c.sess.publisher(p.Retain), t.now, b.cfg().MaxMessageExpiry)
	o.untold, o.receipt = p.QoS == packets.QoS0, b.receiptOf(nil, p.Properties)
	if plain {
		o.raw, o.rawV5 = raw, c.version == packets.V5
	}
	r = t.resolve(r, topic, c.origin())
	if t.reached += len(r.targets); len(r.targets) >= manyTargets || t.reached >= manyReached {
		c.handOver()
	}
	if b.observesMessages() {
		o.lend(r.name(b))
	}
	if matched, err = t.publish(o, r); b.obs.Published != nil && err == nil {
		b.published(c.client, o.observed(), matched)
	}
	return matched, err
}

// origin is where the messages of c come from.
func (c *conn) origin() origin { return origin{c.sess, c.number.Load()} }

// saysText says whether the Payload Format Indicator promises UTF-8 (3.3.2.3.2).
func saysText(p packets.Properties) bool {
	if len(p) == 0 {
		return false
	}
	n, _ := p.Uint(packets.PayloadFormatIndicator)
	return n == 1
}

// intercept asks the Interceptor, checks what it returns, and asks the Authorizer again if the
// topic is another one.
func (c *conn) intercept(t *turn, p *packets.Publish) (*message, error) {
	c.handOver()
	o := &t.out
	o.reset(p, c.sess.signature(), t.now, c.b.cfg().MaxMessageExpiry)
	return c.b.intercept(c.context(), &t.access, c.client, c.readExtra().mount, o.message())
}

// answer sends the acknowledgement that the QoS of p asks for. An error is told in it where the
// version can. Before 5.0 there is no way to tell it: a PUBLISH that the client may not send is
// acknowledged [v3.1.1 MQTT-3.3.5-2], and any other one that is refused closes the connection, so
// that the client sends it again.
func (c *conn) answer(t *turn, p *packets.Publish, matched int, err error) error {
	if errors.Is(err, hooks.ErrDrop) {
		err = nil
	}
	kind, step := answerTo(p.QoS), exchangeEnds
	if kind == packets.TypePubrec {
		step = exchangeGoesOn
	}
	code := packets.Success
	if err != nil {
		code = fitting(packets.CodeOf(err), kind)
	} else if matched == 0 && t.found == 0 {
		code = packets.NoMatchingSubscribers
	}
	s := c.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	undecided := err != nil && c.stopping != nil // which ends the context of the hooks
	if code.Failed() && c.version < packets.V5 && !undecided && final(err) {
		code = packets.Success
	}
	if kind == packets.TypePubrec {
		if s.in.routed(p.PacketID) && s.conn != nil {
			c = s.conn // which has sent it again
		}
		if code.Failed() {
			// the exchange ends here [MQTT-4.3.3-9]
			if _, open := c.forgetReceived(p.PacketID); open {
				step = exchangeEnds
			}
		}
	}
	if undecided || code.Failed() && c.version < packets.V5 {
		why := &packets.Error{Code: packets.CodeOf(err), Reason: "a PUBLISH was refused", Err: err}
		if undecided {
			why = packets.Errorf(packets.UnspecifiedError,
				"nobody has decided a message of the connection before")
		}
		c.stop(why)
		t.touch(c)
		return c.stoppedLocked() // what comes after it must not overtake it
	}
	c.acknowledge(t, p, code, err, step)
	return nil
}

// final says whether err, which a PUBLISH was refused with, is about the message, so that it would
// be refused again. Any other refusal is about the moment: a limit has been reached, the Store does
// not work, or a hook has failed.
func final(err error) bool {
	switch packets.CodeOf(err) {
	case packets.NotAuthorized, packets.TopicNameInvalid, packets.PayloadFormatInvalid:
		return !errors.Is(err, errHookFailed)
	}
	return false
}

// answerTo returns what a PUBLISH of QoS 1 or 2 is answered with.
func answerTo(qos packets.QoS) packets.Type {
	if qos == packets.QoS2 {
		return packets.TypePubrec
	}
	return packets.TypePuback
}

// An exchangeStep says what becomes of an exchange with an acknowledgement of the broker.
type exchangeStep byte

const (
	exchangeGoesOn exchangeStep = iota
	exchangeEnds                // and counts as open until the acknowledgement leaves
)

// acknowledge appends PUBACK or PUBREC for p, which this turn has routed. c.sess.mu is held.
func (c *conn) acknowledge(
	t *turn, p *packets.Publish, code packets.ReasonCode, err error, step exchangeStep,
) {
	if c.out.dead || c.stopping != nil {
		return
	}
	kind, id := answerTo(p.QoS), p.PacketID
	at := c.out.End()
	if pe, ok := errors.AsType[*packets.Error](err); ok && code.Failed() && !c.noReasons &&
		pe.Reason != "" {
		c.append(&packets.Ack{Kind: kind, PacketID: id, Code: code, Properties: c.reason(pe, 5)})
	} else {
		c.ack(t, kind, id, code)
	}
	if ticket := t.write.Hold(c.waiting()); step == exchangeEnds {
		c.holdEnd(at, ticket, link.Acknowledgement, id)
	} else {
		c.hold(at, ticket, link.Acknowledgement, id)
	}
	t.touch(c)
}

// onPubrel releases the identifier of a QoS 2 message [MQTT-4.3.3-11].
func (c *conn) onPubrel(t *turn, a *packets.Ack) error {
	s := c.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c {
		return nil
	}
	code := packets.Success
	known, open := c.forgetReceived(a.PacketID)
	if !known {
		code = packets.PacketIdentifierNotFound
	}
	at := c.out.End()
	c.ack(t, packets.TypePubcomp, a.PacketID, code)
	var ticket uint64
	if known && s.stored != 0 {
		op := store.Forget{Session: s.stored, ID: a.PacketID}
		ticket = c.b.journal.Forget(c.waiting(), op)
	} else {
		ticket = s.undecided(c)
	}
	if open {
		c.holdEnd(at, ticket, link.Durable, a.PacketID)
	} else {
		c.hold(at, ticket, link.Durable, a.PacketID)
	}
	t.touch(c)
	return nil
}

// publishWill publishes a Will whose time has come, authorized anew with the identity that it was
// stored with.
func (b *Broker) publishWill(t *turn, w *will, to share) error {
	if !w.decided {
		w.out = b.decideWill(t, w)
		if b.ctx.Err() != nil && w.out == nil {
			return journal.ErrNotStored // the hooks were told to end: the next start decides
		}
		w.decided = true
	}
	if w.out == nil {
		return nil
	}
	out := &message{Message: w.out.Message, Expires: w.out.Expires, From: w.out.From}
	t.untold = true
	t.route.share, t.route.served = to, w.served
	defer func() {
		w.served = t.route.served
		t.route.share, t.route.served = everybody, nil
	}()
	// No Local goes by the Client Identifier [MQTT-3.8.3-3]
	matched, err := t.publishMessage(out, b.originOf(w.msg.From))
	if err != nil {
		b.log.Debug("will not published", "client", w.msg.From, "topic", w.msg.Topic, "err", err)
		return err
	}
	if !w.told {
		b.published(w.client, &out.Message, matched)
	}
	return nil
}

// decideWill asks the hooks about a Will that is due. It returns what is to be published, nil if
// nothing is.
func (b *Broker) decideWill(t *turn, w *will) *message {
	if b.authorizer != nil {
		topic := w.msg.Topic[len(w.mount):]
		t.access = hooks.AccessRequest{Client: w.client, Action: hooks.ActionPublish, Topic: topic,
			QoS: w.msg.QoS, Retain: w.msg.Retain, Will: w.delayed == nil}
		if err := b.authorizeSafely(b.ctx, &t.access, w.mount); err != nil {
			return nil
		}
	}
	out := &message{Message: w.msg.Message, Expires: w.msg.Expires, From: w.msg.From}
	// it counts from the publication
	if n, ok := out.Properties.Uint(packets.MessageExpiryInterval); ok {
		out.Expires = unixNano(t.now.Add(time.Duration(n) * time.Second))
	}
	if b.cfg().Interceptor != nil {
		var err error
		if out, err = b.interceptSafely(t, w, out); err != nil {
			return nil
		}
	}
	return out
}

// interceptSafely asks the Interceptor about a Will, on a goroutine that must outlive a panic of
// it.
func (b *Broker) interceptSafely(t *turn, w *will, m *message) (out *message, err error) {
	defer b.survive(w.client, &err)
	return b.intercept(b.ctx, &t.access, w.client, w.mount, m)
}
