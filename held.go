package dunlin

import (
	"errors"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is output that a connection holds until a commit: bytes in their order, and for each packet what it waits for. Once
// something is held, all that the client gets goes behind it but QoS 0 and what it has asked for in another way (SUBACK, PINGRESP), so that
// acknowledgements and messages keep their order.

// held is guarded by the lock of the Session, as is all output.
type held struct {
	buf   *buffer
	marks []mark
}

// A mark is one packet that is held.
type mark struct {
	batch uint64
	n     int32 // bytes
	id    uint16
	kind  holdKind
}

type holdKind byte

const (
	after    holdKind = iota // it only keeps its place
	answer                   // PUBACK or PUBREC: Success if what the batch adds is durable, and otherwise a failure
	firmly                   // it goes out only once it is durable
	aPublish                 // a PUBLISH, of which the same is true
)

// size is how many bytes are held.
func (h *held) size() int {
	if h == nil || h.buf == nil {
		return 0
	}
	return len(h.buf.b)
}

// end is where the next packet begins.
func (o *out) end() int {
	if o.buf == nil {
		return 0
	}
	return len(o.buf.b)
}

// hold takes the packet that begins at the given place of the output, its last, and holds it until x is decided. With x nil it
// goes behind what is held already, if anything is. c has been enlisted with x. The lock is held.
func (c *conn) hold(at int, x *batch, kind holdKind, id uint16) {
	o := &c.out
	if earlyAck || o.buf == nil || x == nil && (o.held == nil || kind != firmly && !o.held.ordered()) {
		return
	}
	if c.stopping != nil || o.dead { // nothing goes behind a DISCONNECT
		o.cut(at)
		return
	}
	if o.held == nil {
		o.held = new(held)
	}
	h := o.held
	n := len(o.buf.b) - at
	if h.buf == nil && at == 0 {
		h.buf, o.buf = o.buf, nil
	} else {
		h.append(o.buf.b[at:])
		o.cut(at)
	}
	m := mark{n: int32(n), id: id, kind: kind}
	if x != nil {
		m.batch = x.n
	} else {
		m.batch, m.kind = h.marks[len(h.marks)-1].batch, after
	}
	h.marks = append(h.marks, m)
}

// ordered says whether anything is held that later messages and acknowledgements must not overtake. PUBREL and PUBCOMP have an order
// of their own (4.6).
func (h *held) ordered() bool {
	for i := range h.marks {
		if h.marks[i].kind != firmly {
			return true
		}
	}
	return false
}

func (h *held) append(b []byte) {
	if h.buf == nil {
		h.buf = newBuffer(len(b))
	} else if x := h.buf; cap(x.b)-len(x.b) < len(b) {
		h.buf = newBuffer(max(len(x.b)+len(b), 2*len(x.b)))
		h.buf.b = append(h.buf.b, x.b...)
		x.free()
	}
	h.buf.b = append(h.buf.b, b...)
}

// cut takes back what was appended behind at.
func (o *out) cut(at int) {
	if at > 0 {
		o.buf.b = o.buf.b[:at]
	} else {
		o.buf.free()
		o.buf = nil
	}
}

// dropHeld forgets all that is held.
func (o *out) dropHeld() {
	if h := o.held; h != nil {
		if h.buf != nil {
			h.buf.free()
		}
		o.held = nil
	}
}

// letGo moves what waited for x to the output, or tells the client that it failed.
func (c *conn) letGo(t *turn, x *batch) {
	s := c.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	h := c.out.held
	switch {
	case h == nil:
		return
	case x.err != nil || x.stuck != nil:
		c.sort(t, x)
		return
	}
	k, n := 0, 0
	for k < len(h.marks) && h.marks[k].batch <= x.n {
		n += int(h.marks[k].n)
		k++
	}
	if n > 0 {
		c.move(n)
		t.touch(c)
	}
	if k == len(h.marks) {
		c.out.held = nil
	} else {
		h.marks = append(h.marks[:0], h.marks[k:]...)
	}
}

// move takes the first n bytes that are held to the output.
func (c *conn) move(n int) {
	h, o := c.out.held, &c.out
	if n == len(h.buf.b) && o.buf == nil {
		o.buf, h.buf = h.buf, nil
		return
	}
	y := o.reserve(n)
	y.b = append(y.b, h.buf.b[:n]...)
	if h.buf.b = h.buf.b[:copy(h.buf.b, h.buf.b[n:])]; len(h.buf.b) == 0 {
		h.buf.free()
		h.buf = nil
	}
}

// sort goes through all that is held after x has failed, in whole or in part.
func (c *conn) sort(t *turn, x *batch) {
	h := c.out.held
	c.out.held = nil
	rest := &held{}
	var b []byte
	if h.buf != nil {
		b = h.buf.b
		defer h.buf.free()
	}
	at := 0
	for _, m := range h.marks {
		p := b[at : at+int(m.n)]
		at += int(m.n)
		switch {
		case c.stopping != nil || m.n == 0:
		case m.batch > x.n, m.kind >= firmly && x.stuck != nil && !x.dead:
			rest.append(p)
			rest.marks = append(rest.marks, m)
		case m.kind >= firmly && x.dead: // it never leaves
		case m.kind == answer && m.batch == x.n && x.err != nil:
			c.refuseAnswer(p[0], m.id, c.b.journal.refusal(x.err))
		default:
			y := c.out.reserve(len(p))
			y.b = append(y.b, p...)
		}
	}
	if len(rest.marks) > 0 && c.stopping == nil {
		c.out.held = rest
	}
	t.touch(c)
}

// refuseAnswer tells the publisher that its message is not stored. A 3.1.1 client can only be disconnected. The lock is held.
func (c *conn) refuseAnswer(first byte, id uint16, err error) {
	var pe *packets.Error
	if !errors.As(err, &pe) {
		panic("BUG: a refusal that is no *packets.Error")
	}
	kind := packets.Type(first >> 4)
	if kind == packets.TypePubrec {
		c.released(id) // the client sends it again as another one
	}
	if c.version < packets.V5 {
		c.stop(pe)
		return
	}
	c.append(&packets.Ack{Kind: kind, PacketID: id, Code: pe.Code, Properties: c.reason(pe, 5)})
}

// withdraw takes what is held under an identifier out again, and says whether it was there: a PUBLISH, or, with PUBREC as its first byte, an
// acknowledgement. The lock is held.
func (o *out) withdraw(id uint16, match func(m *mark, first byte) bool) (found bool) {
	h := o.held
	if h == nil {
		return false
	}
	at := 0
	for i := range h.marks {
		m := &h.marks[i]
		if m.n > 0 && m.id == id && match(m, h.buf.b[at]) {
			h.buf.b = append(h.buf.b[:at], h.buf.b[at+int(m.n):]...)
			m.n, m.kind = 0, after
			return true
		}
		at += int(m.n)
	}
	return false
}
