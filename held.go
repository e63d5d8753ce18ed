package dunlin

import (
	"errors"

	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is output that a connection holds until a commit. Once something is held, all that the
// client gets goes behind it but QoS 0 and what it has asked for in another way (SUBACK, PINGRESP),
// so that acknowledgements and messages keep their order.

// hold, with c.sess.mu held, takes the packet that begins at the given place of the output, its
// last, and holds it until the ticket is decided, which c waits for. With 0 it goes behind what is
// held already, if anything is. It returns whether it holds the packet.
func (c *conn) hold(at int, ticket uint64, kind link.HoldKind, id uint16) (isHeld bool) {
	o := &c.out
	if o.Empty() || ticket == 0 && (!o.Held() || kind != link.Durable && !o.Ordered()) {
		return false
	}
	if c.stopping != nil || o.dead { // nothing goes behind a DISCONNECT
		o.Cut(at)
		return false
	}
	o.Hold(at, link.Mark{ID: id, Kind: kind, Ticket: ticket})
	return true
}

// holdEnd, with c.sess.mu held, is hold for a packet that ends an exchange of QoS 1 or 2 which
// counts against our Receive Maximum. The exchange stays open until the packet leaves (4.9).
func (c *conn) holdEnd(at int, ticket uint64, kind link.HoldKind, id uint16) {
	if c.hold(at, ticket, kind, id) {
		c.out.LastEnds()
		c.open.Add(1)
	}
}

// leaves, with c.sess.mu held, is called before the packet of m can reach the client, which may
// then begin another exchange.
func (c *conn) leaves(m *link.Mark) {
	if m.Ends {
		m.Ends = false
		c.open.Add(-1)
	}
}

// batchDecided moves what waited for x to the output, or tells the client that it failed.
func (c *conn) batchDecided(t *turn, x *journal.Batch) {
	s := c.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !c.out.Held():
	case x.Err() != nil || x.Stuck() != nil:
		c.out.Sort(func(m *link.Mark, first byte) link.Fate { return c.fate(x, m, first) })
		if c.stopping != nil {
			c.out.Drop()
		}
		t.touch(c)
	case c.out.Release(x.Ticket(), c.leaves):
		t.made += c.out.End()
		t.touch(c)
	}
}

// fate, with c.sess.mu held, says what becomes of a packet that is held after x has failed, in
// whole or in part. first is its first byte, 0 if it was withdrawn.
func (c *conn) fate(x *journal.Batch, m *link.Mark, first byte) link.Fate {
	kept := m.Ticket > x.Ticket() || m.MustBeDurable() && x.Stuck() != nil && !x.Dead()
	if first != 0 && c.stopping == nil && kept {
		return link.Stays
	}
	c.leaves(m)
	switch {
	case c.stopping != nil || first == 0:
		return link.Falls
	case m.MustBeDurable() && x.Dead(): // it never leaves
		return link.Falls
	case m.Kind == link.Acknowledgement && m.Ticket == x.Ticket() && x.Err() != nil:
		c.refuseAnswer(first, m.ID, journal.Refusal(x.Err()))
		return link.Falls
	}
	return link.Leaves
}

// refuseAnswer, with c.sess.mu held, tells the publisher that its message is not stored. A 3.1.1
// client can only be disconnected.
func (c *conn) refuseAnswer(first byte, id uint16, err error) {
	var pe *packets.Error
	if !errors.As(err, &pe) {
		panic("BUG: a refusal that is no *packets.Error")
	}
	kind := packets.Type(first >> 4)
	if kind == packets.TypePubrec {
		c.forgetReceived(id) // the client sends it again as another one
	}
	if c.version < packets.V5 {
		c.stop(pe)
		return
	}
	c.append(&packets.Ack{Kind: kind, PacketID: id, Code: pe.Code, Properties: c.reason(pe, 5)})
}
