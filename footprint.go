package dunlin

import (
	"crypto/sha256"
	"math"
	"net"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file counts what Sessions and connections take besides the messages that they hold: for
// Config.MaxMemory all of it counts, however little each one takes.

// What each one takes at least.
const (
	sessionCost = 1536     // its places in the tables of the Broker and the beginning of its queue
	socketCost  = 6 << 10  // a connection whose reader waits without a buffer
	streamCost  = 20 << 10 // any other one, with its buffers and those of TLS
	// and what such a one has copied of its output that the client does not take, unless it says so
	// itself: a record of TLS
	copyCost = 20 << 10
)

// earlyShare is the part of MaxMemory that connections may have which are not accepted: one in so
// many.
const earlyShare = 8

// A footprint is what is known of what a Session takes besides the messages that it holds. Guarded
// by the mu of the Session.
type footprint struct {
	counted int32 // in the count of memory
	kept    int32 // as counted for the owner, with the connection that has the Session
}

// bytesLocked is what s takes with the given client and Will, without its messages and what is in
// flight. The lock of s is held.
func (s *session) bytesLocked(c *hooks.Client, w *will) int {
	if s.ended || s.inProcess() {
		return 0
	}
	n := sessionCost + len(s.id) + len(s.key) + len(s.principal) + len(s.mount)
	if c != nil {
		n += budget.ClientBytes(c)
	} else {
		n += budget.ClientCost + len(s.principal) // as who makes one
	}
	if w != nil {
		n += int(heldSize(w.msg)) + extraCost
	}
	n += s.writtenLocked().Bytes()
	if x := int(s.most); x > fewArrivals {
		n += x * arrivalCost
	}
	return n
}

// atLeast makes f what s takes, unless it is more already.
func (f *footprint) atLeast(s *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.counted, f.kept = max(f.counted, s.footprint.counted), max(f.kept, s.footprint.kept)
}

// admitLocked says whether there is memory for s with c and the Will of a, which may always take as
// much as what they replace. The only Session of a principal is not refused for what that has. The
// connection counts for the owner from then on: countLocked must follow, also if c does not get s.
// The lock of s is held, unless nobody else knows of s. s has its owner.
func (s *session) admitLocked(c *conn, a *attachment) error {
	n, had := s.bytesLocked(c.client, a.will), a.had
	others, owner := s.out.owner.Used(owners.Sessions), s.out.owner
	if s.footprint.counted > 0 {
		others--
	}
	grown := int64(n + c.cost() - int(had.kept))
	fits := s.b.memory.Fits
	if a.expiry == 0 {
		fits = s.b.memory.FitsBriefly
	}
	switch {
	case !fits(budget.Sessions, int64(n-int(had.counted))):
		return errNoMemory
	case others > 0 && !owner.Room(owners.Kept, grown) && !owner.Room(owners.Footprints, grown):
		return recent.As(hooks.EndPrincipalLimit,
			packets.Errorf(packets.QuotaExceeded, "the principal is at its limit of memory"))
	case !s.out.linked && !owner.Take(owners.Connections, 1):
		return recent.As(hooks.EndPrincipalLimit,
			packets.Errorf(packets.QuotaExceeded, "too many connections of one principal"))
	}
	s.out.linked = true
	return nil
}

// countLocked counts what s takes now. The lock of s is held.
func (s *session) countLocked() {
	n := s.bytesLocked(s.client, s.will)
	s.b.memory.Recount(budget.Sessions, &s.footprint.counted, n)
	linked, more := s.conn != nil && !s.ended, int64(-1)
	if linked {
		n, more = n+s.conn.cost(), 1
	}
	if linked != s.out.linked {
		s.out.owner.Add(owners.Connections, more)
		s.out.linked = linked
	}
	n = min(n, math.MaxInt32)
	if grown := int64(n) - int64(s.footprint.kept); grown != 0 {
		s.out.owner.Add(owners.Kept, grown)
		s.out.owner.Add(owners.Footprints, grown)
		s.footprint.kept = int32(n)
	}
}

// fitsOf says whether n bytes more that stay with a Session of a leave enough for others: for other
// owners, and for messages on their way.
func (b *Broker) fitsOf(a *owners.Account, n int64) bool {
	return b.memory.Fits(budget.Sessions, n) && a.Room(owners.Kept, n)
}

// What a received identifier of a QoS 2 message takes, how many are part of sessionCost, and for
// how many the memory is not kept on a connection that has none.
const (
	arrivalCost  = 24
	fewArrivals  = 16
	manyArrivals = 1024
)

// admitArrivalLocked says whether there is memory for an identifier. The lock of s is held.
func (s *session) admitArrivalLocked(id uint16) error {
	if n := len(s.in.ids); n < fewArrivals || n < int(s.most) {
		return nil
	}
	_, known := s.in.ids[uint32(id)]
	if known || s.b.fitsOf(s.out.owner, arrivalCost) {
		return nil
	}
	return errNoMemory
}

// noteArrivalsLocked counts the identifiers that s has received. Their map keeps what it took when
// it was largest. The lock of s is held.
func (s *session) noteArrivalsLocked() {
	if n := uint16(len(s.in.ids)); n > s.most {
		if s.most = n; n > fewArrivals {
			s.countLocked()
		}
	}
}

// trimArrivalsLocked gives back the memory for identifiers if there are none. The lock of s is
// held.
func (s *session) trimArrivalsLocked() {
	if len(s.in.ids) == 0 && s.most > fewArrivals {
		s.in.ids, s.most = nil, 0
		s.countLocked()
	}
}

// fewPlaces is how many deliveries may be in flight whatever the memory.
const fewPlaces = 64

// mayGrow says whether one more delivery may be in flight.
func (s *sender) mayGrow() bool {
	if len(s.flight) < cap(s.flight) || s.live < fewPlaces {
		return true
	}
	n := int64(cap(s.flight)) * deliveryCost
	return s.mem.Fits(budget.Sessions, n) && s.owner.Room(owners.Kept, n)
}

// placesCost is what the places for n deliveries in flight take besides sessionCost.
func placesCost(n int) int64 {
	if n <= fewPlaces {
		return 0
	}
	return int64(n) * deliveryCost
}

// setFlight replaces flight and counts its places.
func (s *sender) setFlight(f []delivery) {
	if cap(f) != cap(s.flight) {
		grown := placesCost(cap(f)) - placesCost(cap(s.flight))
		s.mem.Add(budget.Sessions, grown)
		s.owner.Add(owners.Kept, grown)
	}
	s.flight = f
}

// trim gives back places that the next connection need not have.
func (s *sender) trim() {
	if n := len(s.flight); cap(s.flight) > fewPlaces && cap(s.flight) > 4*n {
		s.setFlight(append(make([]delivery, 0, n), s.flight...))
	}
}

// cost is what c takes at least.
func (c *conn) cost() int {
	if c.nc.Raw != nil {
		return socketCost
	}
	return streamCost
}

// copied is what c has copied of its output that the client does not take.
func (c *conn) copied() int {
	if c.nc.Raw != nil {
		return 0
	}
	switch x := c.nc.NetConn().(type) {
	case *net.TCPConn, *net.UnixConn: // where there is no Raw
		return 0
	case interface{ CopyBytes() int }:
		return x.CopyBytes()
	}
	return copyCost
}

// count counts c, with so many bytes more. Its reader calls it, or who has made c.
func (c *conn) count(more int) {
	c.b.memory.Recount(budget.Connections, &c.footprint, c.cost()+more)
}

// enterEarlyLocked notes that c has not sent its CONNECT, or says why it cannot come to be
// accepted. An address may hold as many of these places as are free, so that it does not take them
// all from others. A loopback address may hold all. b.mu is held.
func (b *Broker) enterEarlyLocked(c *conn) error {
	n := len(b.early)
	most := min(b.cfg().MaxConnecting, max(1, int(b.memory.Limit()/earlyShare/int64(c.cost()))))
	switch x := c.from; {
	case n >= most:
		return packets.Errorf(packets.ServerBusy, "more than %d connections without CONNECT", most)
	case x != nil && !x.IP.IsLoopback() && x.Early > 0 && x.Early >= most-n:
		return packets.Errorf(packets.ServerBusy, "%d connections without CONNECT from the address",
			x.Early)
	}
	b.early[c] = false
	if c.from != nil {
		c.from.Early++
	}
	return nil
}

// leaveEarlyLocked is the end of what enterEarlyLocked began. It may be called again. b.mu is held.
func (b *Broker) leaveEarlyLocked(c *conn) {
	if _, ok := b.early[c]; !ok {
		return
	}
	delete(b.early, c)
	if c.from != nil {
		c.from.Early--
	}
}

// shortKey stands for a name in a table that outlives what the name belongs to, so that long names
// take no more room.
func shortKey(name string) string {
	if len(name) <= 64 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "\x00" + string(sum[:])
}
