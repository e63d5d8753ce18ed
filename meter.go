package dunlin

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/traffic"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file counts what connections and Sessions do. It calls nothing of the other files.

// A meter is what is counted of one connection.
type meter struct {
	// When it was accepted, since Broker.started: no two connections have the same. Immutable then
	at time.Duration
	// What it counts for. The reader sets it again when it knows the version of the protocol
	class *traffic.Class

	// Guarded by sess.mu.
	inbound  Traffic
	outbound Traffic
	heard    uint32 // when the last packet came, in ticks
	// When the socket last took something while it took not all, in ticks, and 1; 0: no writer
	// waits for it
	blocked uint32
}

// opened counts a connection that has come, or whose version is known now, for class.
func (m *meter) opened(class *traffic.Class) {
	if m.class != nil {
		m.class.Open.Add(-1)
	}
	m.class = class
	class.Open.Add(1)
}

// settle, with sess.mu held, counts what the turn has received of it. The last packet came at last,
// since Broker.started.
func (m *meter) settle(t *turn, last time.Duration) {
	m.inbound.Messages += t.received.Messages
	m.inbound.Bytes += t.received.Bytes
	t.received = Traffic{}
	m.heard = uint32(last / tick)
}

// stopped returns why the connection is being stopped, nil if it is not.
func (c *conn) stopped() error {
	c.sess.mu.Lock()
	defer c.sess.mu.Unlock()
	return c.stoppedLocked()
}

// stoppedLocked is stopped with c.sess.mu held.
func (c *conn) stoppedLocked() error {
	switch {
	case c.stopping != nil:
		return c.stopping
	case c.out.dead:
		return link.ErrWrite
	}
	return nil
}

// settled is stopped, behind a turn of the reader, which counts for c.
func (c *conn) settled(t *turn) error {
	c.sess.mu.Lock()
	defer c.sess.mu.Unlock()
	c.settle(t, c.lastPacket)
	c.sess.out.countLive()
	return c.stoppedLocked()
}

// countReceived counts a PUBLISH of so many bytes.
func (t *turn) countReceived(c *conn, p *packets.Publish, size int) {
	counts := t.traffic.Of(c.class)
	counts.Received[p.QoS]++
	counts.ReceivedPayload += uint64(len(p.Payload))
	t.received.Messages++
	t.received.Bytes += uint64(size)
}

// countSent, with c.sess.mu held, counts a PUBLISH of so many bytes. payload is part of it.
func (t *turn) countSent(c *conn, qos packets.QoS, payload, size int) {
	counts := t.traffic.Of(c.class)
	counts.Sent[qos]++
	counts.SentPayload += uint64(payload)
	c.outbound.Messages++
	c.outbound.Bytes += uint64(size)
}

// countSent, with sess.mu held, is that of a turn for who has none.
func (m *meter) countSent(qos packets.QoS, payload, size int) {
	m.class.Sent[qos].Add(1)
	m.class.SentPayload.Add(uint64(payload))
	m.outbound.Messages++
	m.outbound.Bytes += uint64(size)
}

// countDropLocked counts a message that did not reach the client, or was not taken from it. s.mu is
// held.
func (s *session) countDropLocked(why hooks.DropReason) {
	s.b.stats.dropped[why].Add(1)
	s.makeExtraLocked().drops.by[why]++
}

// countRefused counts a PUBLISH that was refused with err.
func (s *session) countRefused(topic string, err error) {
	why := hooks.DropMemory
	if err == errTooFast {
		why = hooks.DropOverRate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countDropLocked(why)
	s.b.stats.drops.Add(s.id, topic, why, time.Now())
}

// newSender returns the sender of one more Session.
func newSender(mem *budget.Budget) sender { return sender{mem: mem, stripe: mem.NextStripe()} }

// countLive counts the deliveries that have come in flight, or have left, since the last call. It
// is called before the Session's lock is let go, or at the end of the turn: to count each for
// itself costs more than all else that is done for it.
func (s *sender) countLive() {
	if n := int(s.live) - int(s.counted); n != 0 {
		s.mem.AddInFlight(s.stripe, n)
		s.counted = uint16(s.live)
	}
}

// addQueued counts n more, or less, deliveries in the queue, of so many bytes.
func (s *sender) addQueued(n int32, bytes int) {
	s.bytes += bytes
	s.mem.AddQueued(s.stripe, int(n), bytes)
}

// tick is the unit of the times that are kept for each connection and each queued message.
const tick = 100 * time.Millisecond

// ticks is how long after start now is.
func ticks(start, now time.Time) uint32 { return uint32(max(now.Sub(start), 0) / tick) }

// tickedAt is the reverse of ticks.
func tickedAt(start time.Time, n uint32) time.Time { return start.Add(time.Duration(n) * tick) }
