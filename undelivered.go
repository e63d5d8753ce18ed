package dunlin

import (
	"net"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
)

// This file counts what crypto/tls keeps of what clients send, where the connection below tells,
// see listeners.NewTLS: the beginnings of records and of messages of the handshake. It counts with
// packets that have come in part.

// An undelivered is what a connection has kept below. Owned by the reader.
type undelivered struct {
	source
	begun   bool // something was delivered: the handshake is over
	stays   int  // what the handshake took, which crypto/tls does not give back
	counted int32
}

// below is a connection that has another one below it.
type below interface{ NetConn() net.Conn }

// A source is a connection below a tls.Conn, see there.
type source interface {
	OnPending(f func(n int) error)
	Delivered() (n int)
}

// watchBelow counts what is kept below nc, if that tells.
func (c *conn) watchBelow(nc net.Conn) {
	for x, ok := nc.(below); ok; x, ok = nc.(below) {
		nc = x.NetConn()
		if from, ok := nc.(source); ok {
			u := &undelivered{source: from}
			c.makeExtra().below = u
			from.OnPending(func(n int) error { return c.holdBelow(u, n) })
			return
		}
	}
}

// handshakeMost is the longest message of a handshake that crypto/tls takes: a certificate.
const handshakeMost = 256 << 10

// holdBelow counts that n bytes have come and are not delivered. Few are part of what a connection
// takes at least. Buffers that grow have up to twice the room of what is in them.
func (c *conn) holdBelow(u *undelivered, n int) error {
	all := u.stays
	if n > keepSize {
		all += 2 * n
	}
	memory := c.b.memory
	if all > int(u.counted) && memory.Of(budget.Partial) > memory.Limit()/100*partialPercent {
		return errNoMemoryToRead
	}
	memory.Recount(budget.Partial, &u.counted, all)
	return nil
}

// deliveredBelow notes that nothing is kept below but what stays.
func (c *conn) deliveredBelow() {
	u := c.readExtra().below
	if u == nil {
		return
	}
	n := u.Delivered()
	if !u.begun && n > keepSize {
		u.stays = 2 * min(n, handshakeMost)
	}
	u.begun = true
	c.b.memory.Recount(budget.Partial, &u.counted, u.stays)
}

// leaveBelow is the end of what watchBelow began.
func (c *conn) leaveBelow() {
	if u := c.readExtra().below; u != nil {
		u.OnPending(nil)
		c.b.memory.Recount(budget.Partial, &u.counted, 0)
	}
}
