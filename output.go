package dunlin

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/tap"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the way out: bytes for a client are appended to the buffer of its connection under
// the Session's lock, and flushed once per turn by whoever appended them, without waiting. What the
// socket does not take is left to a writer goroutine that lives as long as there is a backlog.

// out is the output of one connection. Guarded by the Session's mu. Before the connection has a
// Session its reader writes directly.
type out struct {
	link.Output
	writing bool // somebody is writing; he will look at what was appended again
	dead    bool // the connection is not written to any more
	// The client made no progress while a publisher waited for it: nobody waits again until it does
	stalled bool
	opening bool // the CONNACK waits until the Session is durable: until then nothing is written
	roused  bool // the reader knows, or is about to be told, that the connection ends

	parked, admitted, full bool // see session.admits and waitsForStoreLocked

	// Since when publishers have waited for it, since Broker.started; 0: they do not
	congest time.Duration
	// Not nil: somebody waits for the output to become less; closed by whoever has written, or
	// finds nothing to write
	room chan struct{}
}

// maxRounds is how often in a row one goroutine flushes the same connection for others before a
// writer takes over.
const maxRounds = 4

// flush is flushed, with what was sent counted.
func (c *conn) flush(now time.Time) {
	n, _ := c.flushed(now)
	c.class.SentBytes.Add(uint64(n))
}

// flushed writes what is there, as far as the socket takes it at once. It may be called by any
// goroutine that holds no lock, once the connection has its Session. It returns how much the socket
// has taken, and whether much waits for it.
func (c *conn) flushed(now time.Time) (sent int, congested bool) {
	mu := &c.sess.mu
	mu.Lock()
	c.touched = nil
	for round := 0; ; round++ {
		if c.out.writing || c.out.dead {
			break
		}
		c.sess.pump(c, now)
		c.sess.out.countLive()
		if c.out.Empty() || c.out.writing || c.out.dead {
			break
		}
		c.out.writing = true
		if round == maxRounds || c.nc.Waits() {
			c.block(now)
			c.b.writers.Go(c.write) // Close waits for it
			break
		}
		x := c.take()
		mu.Unlock()
		err := c.nc.TryWrite(x, max(c.b.cfg().MaxOutboundBytes/8, 16<<10))
		mu.Lock()
		sent += x.Taken()
		if err != nil {
			c.fail(x)
			break
		}
		if !x.Whole() {
			c.block(now)
			rest := c.out.Share(x, link.ShareSome)
			c.b.writers.Go(func() { c.writeRest(rest) }) // Close waits for it
			break
		}
		c.out.Wrote(x)
		c.out.writing, c.out.stalled = false, false
	}
	c.sess.out.countLive()
	n := c.out.Size()
	if !c.out.writing { // no writer will
		if n <= c.b.cfg().MaxOutboundBytes/4 {
			c.out.congest = 0
		}
		c.wake()
	}
	c.countOutput()
	rouse := c.mustRouse()
	mu.Unlock()
	if rouse {
		c.rouse()
	}
	return sent, n > c.b.cfg().MaxOutboundBytes/2
}

// rouse has the reader look what has come, and whether the connection ends.
func (c *conn) rouse() {
	if c.seat != nil {
		c.seat.Rouse()
	} else {
		c.nc.SetReadDeadline(aLongTimeAgo)
	}
}

// handOver is called by the reader before it waits, or does much: whoever has run the turn for an
// event loop then runs it as a goroutine of its own.
func (c *conn) handOver() {
	if c.seat != nil {
		c.seat.worker.HandOver()
	}
}

// mustRouse, with c.sess.mu held, says whether the caller has to rouse the reader because the
// connection ends: once. The caller unlocks before it does.
func (c *conn) mustRouse() bool {
	if c.out.roused || c.stopping == nil && !c.out.dead {
		return false
	}
	c.out.roused = true
	return true
}

// take is Take of the output. c.sess.mu is held.
func (c *conn) take() *link.Buffer {
	x := c.out.Take()
	if c.b.stats.taps.On() != nil {
		c.show(tap.Out, time.Time{}, x.B)
	}
	return x
}

// fail ends all writing after an error. c.sess.mu is held; the caller rouses the reader.
func (c *conn) fail(x *link.Buffer) {
	c.out.Wrote(x)
	c.out.dead, c.out.writing = true, false
	c.out.Discard()
	c.out.Drop()
	c.b.memory.Recount(budget.Output, &c.out.Counted, 0)
	c.wake()
	c.unpause()
}

// countOutput tells the count of memory what waits for the client. c.sess.mu is held.
func (c *conn) countOutput() {
	n := c.out.Memory()
	if c.out.writing {
		n += c.copied()
	}
	c.b.memory.Recount(budget.Output, &c.out.Counted, n)
}

// discard frees what a dead connection has left, unless somebody is writing it.
func (c *conn) discard() {
	if !c.out.dead || c.out.writing {
		return
	}
	c.out.Discard()
	c.b.memory.Recount(budget.Output, &c.out.Counted, 0)
}

// wake lets those go on who wait for the backlog to fall. c.sess.mu is held.
func (c *conn) wake() {
	if c.out.room != nil {
		close(c.out.room)
		c.out.room = nil
	}
}

// write is the writer goroutine when nothing has been taken yet.
func (c *conn) write() {
	mu := &c.sess.mu
	mu.Lock()
	if c.out.Empty() {
		c.out.writing, c.blocked = false, 0
		c.countOutput()
		c.wake()
		mu.Unlock()
		return
	}
	x := c.out.Share(c.take(), link.ShareMuch)
	mu.Unlock()
	c.writeRest(x)
}

// writeRest is the writer goroutine: it writes what is left of x, then whatever has gathered, until
// nothing is left.
func (c *conn) writeRest(x *link.Buffer) {
	for {
		err := c.nc.WriteAll(x, c.b.cfg().WriteTimeout, c.wrote)
		mu := &c.sess.mu
		mu.Lock()
		if err != nil {
			c.fail(x)
			rouse := c.mustRouse()
			mu.Unlock()
			if rouse {
				c.rouse()
			}
			c.b.log.Debug("write failed", "client", c.id(), "err", err)
			return
		}
		if y := c.out.Follow(x); y != nil {
			mu.Unlock()
			x = y
			continue
		}
		c.out.Wrote(x)
		c.sess.pump(c, time.Now())
		c.sess.out.countLive()
		c.countOutput()
		if c.out.Size() <= c.b.cfg().MaxOutboundBytes/4 {
			c.out.congest = 0
			c.wake()
		}
		if c.out.Empty() || c.out.dead {
			c.out.writing, c.blocked = false, 0
			c.countOutput()
			c.wake()
			c.discard()
			mu.Unlock()
			return
		}
		x = c.out.Share(c.take(), link.ShareMuch)
		mu.Unlock()
	}
}

// wrote notes that the socket has taken n bytes, and more is there.
func (c *conn) wrote(n int) {
	c.class.SentBytes.Add(uint64(n))
	mu := &c.sess.mu
	mu.Lock()
	defer mu.Unlock()
	c.countOutput()
	c.out.stalled = false
	c.block(time.Now())
}

// block notes that the socket takes something now, and has not taken all. c.sess.mu is held.
func (c *conn) block(now time.Time) { c.blocked = ticks(c.b.started, now) + 1 }

const (
	// a client that takes nothing for so long while it is waited for counts as stalled
	patience = 5 * time.Millisecond
	// and one that stays congested for longer than this is not waited for either
	maxWait = 100 * time.Millisecond
	// how long a closed connection is drained for the client to read our last words
	lingering = time.Second
)

// ease waits a bounded moment for the client of c, which this turn has published to, if it is
// congested but reading: a burst that its socket would absorb is not lost. One that reads nothing
// costs its publishers a few milliseconds once.
func (c *conn) ease() {
	for {
		mu := &c.sess.mu
		mu.Lock()
		o := &c.out
		if o.dead || o.stalled || o.Size() <= c.b.cfg().MaxOutboundBytes/2 {
			mu.Unlock()
			return
		}
		now := time.Since(c.b.started)
		if o.congest == 0 {
			o.congest = now
		}
		if now-o.congest > maxWait {
			mu.Unlock()
			return
		}
		if o.room == nil {
			o.room = make(chan struct{})
		}
		room, before := o.room, o.Backlog()
		mu.Unlock()
		t := time.NewTimer(patience)
		lock.NoneHeld("a wait")
		select {
		case <-room:
		case <-t.C:
			mu.Lock()
			o.stalled = o.Backlog() == before
			mu.Unlock()
		}
		t.Stop()
	}
}

// closeGently ends a connection after our last words without a reset: it flushes within a bound (at
// a Shutdown, which has a bound of its own, within that), shuts down our direction, and reads what
// the client still sends for a moment, because a close with unread input would destroy what is on
// its way.
func (c *conn) closeGently() {
	deadline := time.Now().Add(lingering)
	if c.sess != nil {
		c.flush(time.Now())
		within := deadline
		if packets.CodeOf(c.stopped()) == packets.ServerShuttingDown {
			within = time.Time{}
		}
		if !c.await(0, within) {
			return
		}
		if within.IsZero() {
			deadline = time.Now().Add(lingering)
		}
	}
	if c.nc.EndWriting() {
		c.nc.Drain(deadline)
	}
}

// await waits until no more than most bytes are waiting for the socket, and says whether that came
// before the deadline (none if zero) and the end of the connection or of the Broker. A client that
// takes nothing ends it by WriteTimeout.
func (c *conn) await(most int, deadline time.Time) bool {
	var expired <-chan time.Time
	if !deadline.IsZero() {
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		expired = t.C
	}
	for {
		mu := &c.sess.mu
		mu.Lock()
		if c.out.dead || c.out.Size() <= most {
			ok := !c.out.dead
			mu.Unlock()
			return ok
		}
		if c.out.room == nil {
			c.out.room = make(chan struct{})
		}
		room := c.out.room
		mu.Unlock()
		lock.NoneHeld("a wait")
		select {
		case <-room:
		case <-expired:
			return false
		case <-c.b.ctx.Done():
			return false
		}
	}
}

var aLongTimeAgo = time.Unix(1, 0)

// easeOff waits a moment for those that this turn has congested, and does not read on while the
// client leaves our answers unread.
func (c *conn) easeOff(t *turn) {
	if len(t.congested) > 0 {
		c.fit(t)
		c.handOver()
	}
	for i, d := range t.congested {
		if d != c {
			t.trim()
			d.ease()
		} else {
			c.await(c.b.cfg().MaxOutboundBytes+64<<10, time.Time{})
		}
		t.congested[i] = nil
	}
	t.congested = t.congested[:0]
}
