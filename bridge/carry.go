package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what a pipe does with each packet.

// outward carries what the broker here says.
func (p *pipe) outward(context.Context) error {
	if err := p.subscribe(); err != nil {
		return err
	}
	if p.sweepRemote {
		if err := p.sweep(p.remote, atRemote); err != nil {
			return err
		}
	}
	subs := p.l.cfg.filters(false, packets.QoS2)
	return p.pump(p.local, func(x packets.Packet) error {
		switch x := x.(type) {
		case *packets.Publish:
			return p.publishThere(x)
		case *packets.Ack:
			return p.ackThere(x)
		case *packets.Suback:
			return p.granted(p.local, x, subs)
		}
		return other(p.local, x)
	})
}

// inward carries what the remote broker says.
func (p *pipe) inward(context.Context) error {
	if p.sweepLocal {
		if err := p.sweep(p.local, atLocal); err != nil {
			return err
		}
	}
	subs := p.l.cfg.filters(true, packets.QoS2)
	return p.pump(p.remote, func(x packets.Packet) error {
		switch x := x.(type) {
		case *packets.Publish:
			return p.publishHere(x)
		case *packets.Ack:
			return p.ackHere(x)
		case *packets.Suback:
			p.l.asked = true
			return p.granted(p.remote, x, subs)
		}
		return other(p.remote, x)
	})
}

// other handles what is neither a message nor an acknowledgement.
func other(from *side, x packets.Packet) error {
	switch x := x.(type) {
	case *packets.Pingresp, *packets.Unsuback:
		return nil
	case *packets.Disconnect:
		reason, _ := x.Properties.Text(packets.ReasonString)
		return fmt.Errorf("%s has ended the connection: %w", from.name,
			&packets.Error{Code: x.Code, Reason: reason})
	}
	return fmt.Errorf("%s sent %v, which a client must not get", from.name, x.Type())
}

// publishThere carries a message out.
func (p *pipe) publishThere(m *packets.Publish) error {
	c := &p.l.counters
	topic, ok := p.l.cfg.there(string(m.Topic))
	switch mark := readMark(m.Properties); {
	case !ok:
		c.unmapped.Add(1)
		return p.settle(p.local, m)
	case p.l.cfg.Remote != "" && mark.passed(p.l.cfg.Remote),
		mark.passed(unmarked) && !p.l.cfg.Transit:
		c.held.Add(1)
		return p.settle(p.local, m)
	}
	m.Topic = []byte(topic)
	m.Retain = m.Retain && p.retainThere
	c.sent.Add(1)
	c.sentBytes.Add(uint64(len(m.Payload)))
	if m.QoS > packets.QoS0 {
		p.begin(m.PacketID, exchange{qos: m.QoS, at: time.Now()})
	}
	return p.remote.send(m)
}

// publishHere carries a message in.
func (p *pipe) publishHere(m *packets.Publish) error {
	c := &p.l.counters
	topic, ok := p.l.cfg.here(string(m.Topic))
	if !ok {
		c.unmapped.Add(1)
		return p.settle(p.remote, m)
	}
	if m.Properties.Has(packets.TopicAlias) {
		return fmt.Errorf("the remote broker used a Topic Alias, which the link does not allow")
	}
	m.Topic = []byte(topic)
	m.Retain = m.Retain && p.retainHere
	m.Properties = m.Properties.Without(nil, packets.SubscriptionIdentifier)
	c.received.Add(1)
	c.receivedBytes.Add(uint64(len(m.Payload)))
	return p.local.send(m)
}

// settle answers a message that is not carried on. The PUBREL that follows a PUBREC is carried on,
// and answered by the broker at the other side.
func (p *pipe) settle(from *side, m *packets.Publish) error {
	switch m.QoS {
	case packets.QoS1:
		return from.send(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID})
	case packets.QoS2:
		return from.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: m.PacketID})
	}
	return nil
}

// begin notes that the remote broker has something to acknowledge.
func (p *pipe) begin(id uint16, x exchange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out[id] = x
	p.l.counters.inflight.Store(int64(len(p.out)))
}

// ackThere carries an acknowledgement out.
func (p *pipe) ackThere(a *packets.Ack) error {
	switch a.Kind {
	case packets.TypePubrel:
		p.begin(a.PacketID, exchange{qos: packets.QoS2, rel: true, at: time.Now()})
	case packets.TypePubcomp:
		if !p.unswept(a.PacketID, atLocal) {
			return nil
		}
	default:
		if err := p.refused(p.local, a); err != nil {
			return err
		}
	}
	return p.remote.send(plain(a))
}

// ackHere carries an acknowledgement in, if there is something that it can be for.
func (p *pipe) ackHere(a *packets.Ack) error {
	if a.Kind == packets.TypePubrel {
		return p.local.send(plain(a))
	}
	if a.Kind == packets.TypePubcomp && !p.unswept(a.PacketID, atRemote) {
		return nil
	}
	p.mu.Lock()
	x, known := p.out[a.PacketID]
	fits := known && (a.Kind == packets.TypePuback) == (x.qos == packets.QoS1) &&
		(a.Kind == packets.TypePubcomp) == x.rel
	if fits {
		// A PUBREC ends an exchange too: the PUBREL of the broker here begins it anew.
		delete(p.out, a.PacketID)
	}
	p.l.counters.inflight.Store(int64(len(p.out)))
	p.mu.Unlock()
	switch {
	case !known || known && a.Kind == packets.TypePubrec && x.rel:
		return nil // a repetition
	case !fits:
		return fmt.Errorf("the remote broker sent %v for message %d, which is of QoS %d", a.Kind,
			a.PacketID, x.qos)
	}
	if a.Kind != packets.TypePubcomp {
		if err := p.refused(p.remote, a); err != nil {
			return err
		}
		p.l.counters.acknowledged.Add(1)
	}
	return p.local.send(plain(a))
}

// refused counts a message that a broker refuses for good. One that it cannot take at the moment
// ends the connection: it is sent again on the next.
func (p *pipe) refused(by *side, a *packets.Ack) error {
	if !a.Code.Failed() {
		return nil
	}
	reason, _ := a.Properties.Text(packets.ReasonString)
	err := &packets.Error{Code: a.Code, Reason: reason}
	switch a.Code {
	case packets.QuotaExceeded, packets.UnspecifiedError, packets.ImplementationSpecificError:
		return fmt.Errorf("%s cannot take a message now: %w", by.name, err)
	}
	p.l.counters.refused.Add(1)
	p.l.n.cfg.Logger.Debug("a broker refuses a message of a bridge link", "link", p.l.cfg.Name,
		"broker", by.name, "err", err)
	return nil
}

// plain returns what of an acknowledgement is for the other side.
func plain(a *packets.Ack) *packets.Ack {
	out := &packets.Ack{Kind: a.Kind, PacketID: a.PacketID}
	if a.Kind == packets.TypePuback || a.Kind == packets.TypePubrec {
		out.Code = a.Code
	}
	return out
}
