package dunlin

import (
	"net"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/tap"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the only way from a packet to the bytes of a connection: writeEarly before the
// connection is accepted, and then room. Both know the Maximum Packet Size of the client, so that
// nothing else has to think of it [MQTT-3.1.2-24].

// fits returns Packet too large (0x95) if the client accepts no packet as large as p.
func (c *conn) fits(p packets.Packet) error {
	if n := p.Size(c.version); n > int(c.maxPacket) {
		return packets.Errorf(packets.PacketTooLarge, "a %v of %d bytes, the client accepts %d",
			p.Type(), n, c.maxPacket)
	}
	return nil
}

// writeEarly writes a packet before the connection has its session. It may wait until the deadline
// of the CONNECT. A connection that was dismissed is told nothing.
func (c *conn) writeEarly(p packets.Packet) error {
	c.handOver()
	if err := c.fits(p); err != nil {
		return err
	}
	if c.b.dismissed(c) {
		return net.ErrClosed
	}
	b, err := p.Append(nil, c.version)
	if err == nil {
		var deadline time.Time
		if d := c.b.cfg().ConnectTimeout; d > 0 {
			// a refusal may come when the time is over
			deadline = later(c.arrived().Add(d), time.Now().Add(lingering))
		}
		c.show(tap.Out, time.Now(), b)
		err = c.nc.WriteBy(b, deadline)
		c.class.Answers.Add(1)
		c.class.SentBytes.Add(uint64(len(b)))
	}
	return err
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// room, with c.sess.mu held, returns the output with room for a packet of n bytes, which the caller
// appends, or nil if the client accepts none that large.
func (c *conn) room(n int) *link.Buffer {
	if n > int(c.maxPacket) {
		return nil
	}
	x := c.out.Reserve(n)
	if x.Grown { // not only when it is flushed
		x.Grown = false
		c.countOutput()
	}
	return x
}

// append, with c.sess.mu held, appends p to the output, if the client accepts a packet of that
// size, and says whether it does.
func (c *conn) append(p packets.Packet) bool {
	x := c.room(p.Size(c.version))
	if x == nil {
		return false
	}
	var err error
	if x.B, err = p.Append(x.B, c.version); err != nil {
		panic("BUG: a packet of the broker that cannot be written: " + err.Error())
	}
	c.class.Answers.Add(1)
	return true
}

// reply answers a request of the client with p. Whoever changes something for a request asks fits
// before: the error of an answer that is too large ends the connection.
func (c *conn) reply(t *turn, p packets.Packet) error {
	c.sess.mu.Lock()
	defer c.sess.mu.Unlock()
	if c.out.dead || c.stopping != nil { // nothing follows the DISCONNECT [MQTT-3.14.4-1]
		return nil
	}
	if !c.append(p) {
		return c.fits(p)
	}
	t.touch(c)
	return nil
}

// ack, with c.sess.mu held, appends PUBACK, PUBREC, PUBREL or PUBCOMP, of at most five bytes: a
// client that accepts less gets no CONNACK. The caller touches c.
func (c *conn) ack(t *turn, kind packets.Type, id uint16, code packets.ReasonCode) {
	if c.stopping != nil {
		return // nothing follows the DISCONNECT [MQTT-3.14.4-1]
	}
	if t != nil {
		t.traffic.Of(c.class).Answers++
	} else {
		c.class.Answers.Add(1)
	}
	x := c.room(5)
	first := byte(kind) << 4
	if kind == packets.TypePubrel {
		first |= 2
	}
	if c.version == packets.V5 && code != packets.Success {
		x.B = append(x.B, first, 3, byte(id>>8), byte(id), byte(code))
	} else {
		x.B = append(x.B, first, 2, byte(id>>8), byte(id))
	}
}
