package dunlin

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the way out: bytes for a client are appended to the buffer of its connection under the Session's lock, and
// flushed once per turn by whoever appended them, without waiting. What the socket does not take is left to a writer goroutine that
// lives as long as there is a backlog.

// out is the output of one connection. Guarded by the Session's mu. Before the connection has a Session its reader writes
// directly.
type out struct {
	buf     *buffer       // appended to; nil: empty
	held    *held         // waits for a commit; nil: nothing does
	writer  *buffer       // what is being written; owned by whoever has set writing
	hint    int32         // how much the last flush took: what the next buffer starts with
	writing bool          // somebody is writing; he will look at buf again
	dead    bool          // the connection is not written to any more
	stalled bool          // the client made no progress while a publisher waited for it: nobody waits again until it does
	opening bool          // the CONNACK waits until the Session is durable: until then nothing is written
	backlog int           // bytes that are in the writer's hands
	counted int32         // how much of size the count of memory knows of
	roused  bool          // the reader knows, or is about to be told, that the connection ends
	congest time.Duration // since when publishers have waited for it, since Broker.started; 0: they do not
	room    chan struct{} // not nil: somebody waits for the output to become less; closed by whoever has written, or finds nothing to write

	parked, admitted bool // see session.admits
}

// size is how much is waiting for the socket.
func (o *out) size() int {
	n := o.backlog
	if o.buf != nil {
		n += len(o.buf.b)
	}
	if o.held != nil {
		n += o.held.size()
	}
	return n
}

// reserve returns the buffer with room for n more bytes.
func (o *out) reserve(n int) *buffer {
	if o.buf == nil {
		o.buf = newBuffer(max(n, int(o.hint)))
		return o.buf
	}
	if b := o.buf; cap(b.b)-len(b.b) < n {
		o.buf = newBuffer(max(len(b.b)+n, 2*len(b.b)))
		o.buf.b = append(o.buf.b, b.b...)
		b.free()
	}
	return o.buf
}

// take hands the buffer to the one who writes.
func (o *out) take() *buffer {
	x := o.buf
	o.buf = nil
	o.hint = int32(min(len(x.b), readSize))
	x.n = 0
	o.backlog = len(x.b)
	return x
}

// tryWriter is implemented by connections without a file descriptor that can take bytes without waiting.
type tryWriter interface {
	TryWrite(b []byte) (n int, err error)
}

// maxRounds is how often in a row one goroutine flushes the same connection for others before a writer takes over.
const maxRounds = 4

// flush writes what is there, as far as the socket takes it at once. It may be called by any goroutine that holds no lock, once
// the connection has its Session. It reports whether much is waiting for the socket.
func (c *conn) flush(now time.Time) (congested bool) {
	mu := &c.sess.mu
	mu.Lock()
	c.touched = nil
	for round := 0; ; round++ {
		if c.out.writing || c.out.dead {
			break
		}
		c.fill(now)
		if c.out.buf == nil || c.out.writing || c.out.dead {
			break
		}
		c.out.writing = true
		if round == maxRounds || (c.raw == nil && c.try == nil) {
			c.b.writers.Go(c.write) // Close waits for it
			break
		}
		x := c.out.take()
		mu.Unlock()
		err := c.tryWrite(x)
		mu.Lock()
		c.out.backlog -= x.n
		c.b.stats.sentBytes.Add(uint64(x.n))
		if err != nil {
			c.fail(x)
			break
		}
		if x.n < len(x.b) {
			c.b.writers.Go(func() { c.writeRest(x) }) // Close waits for it
			break
		}
		x.free()
		c.out.writing, c.out.stalled = false, false
	}
	n := c.out.size()
	if !c.out.writing { // no writer will
		if n <= c.b.cfg.MaxOutboundBytes/4 {
			c.out.congest = 0
		}
		c.wake()
	}
	c.b.memory.Recount(budget.Output, &c.out.counted, n)
	rouse := c.mustRouse()
	mu.Unlock()
	if rouse {
		c.nc.SetReadDeadline(aLongTimeAgo)
	}
	return n > c.b.cfg.MaxOutboundBytes/2
}

// mustRouse says whether the caller has to wake the reader, by a deadline in the past, because the connection
// ends: once. The lock of the Session is held; the caller unlocks it before it sets the deadline.
func (c *conn) mustRouse() bool {
	if c.out.roused || c.stopping == nil && !c.out.dead {
		return false
	}
	c.out.roused = true
	return true
}

// fail ends all writing after an error. The lock of the Session is held; the caller rouses the reader.
func (c *conn) fail(x *buffer) {
	x.free()
	c.out.dead, c.out.writing, c.out.backlog = true, false, 0
	if c.out.buf != nil {
		c.out.buf.free()
		c.out.buf = nil
	}
	c.out.dropHeld()
	c.b.memory.Recount(budget.Output, &c.out.counted, 0)
	c.wake()
	c.unpause()
}

// discard frees what a dead connection has left, unless somebody is writing it.
func (c *conn) discard() {
	if !c.out.dead || c.out.writing {
		return
	}
	if c.out.buf != nil {
		c.out.buf.free()
		c.out.buf = nil
	}
	c.b.memory.Recount(budget.Output, &c.out.counted, 0)
}

// wake lets those go on who wait for the backlog to fall. The lock is held.
func (c *conn) wake() {
	if c.out.room != nil {
		close(c.out.room)
		c.out.room = nil
	}
}

// tryWrite writes what the socket takes of x without waiting. Only the one who has set writing calls it.
func (c *conn) tryWrite(x *buffer) (err error) {
	if c.raw == nil {
		x.n, err = c.try.TryWrite(x.b)
		return err
	}
	c.out.writer = x
	err = c.raw.Write(c.wfunc)
	if c.out.writer == nil {
		return errWrite
	}
	c.out.writer = nil
	return err
}

// errDry ends a look at a socket: all is read.
var errDry = errors.New("nothing more is there to read")

var errWrite = errors.New("a write to the client failed or took longer than WriteTimeout")

// writeSome is the function for RawConn.Write: it never asks to wait.
func (c *conn) writeSome(fd uintptr) bool {
	x := c.out.writer
	for x.n < len(x.b) {
		n, err := writeFD(fd, x.b[x.n:])
		if n > 0 {
			x.n += n
		}
		switch {
		case err == syscall.EINTR, err == nil && x.n == len(x.b):
		case err == nil, err == syscall.EAGAIN:
			return true // a short write: the socket is full
		default:
			c.out.writer = nil // says that it failed
			return true
		}
	}
	return true
}

// write is the writer goroutine when nothing has been taken yet.
func (c *conn) write() {
	mu := &c.sess.mu
	mu.Lock()
	x := c.out.buf
	if x == nil {
		c.out.writing = false
		c.wake()
		mu.Unlock()
		return
	}
	c.out.take()
	mu.Unlock()
	c.writeRest(x)
}

// writeRest is the writer goroutine: it writes what is left of x, then whatever has gathered, until nothing is left.
func (c *conn) writeRest(x *buffer) {
	for {
		err := c.writeAll(x.b[x.n:])
		mu := &c.sess.mu
		mu.Lock()
		if err != nil {
			c.fail(x)
			rouse := c.mustRouse()
			mu.Unlock()
			if rouse {
				c.nc.SetReadDeadline(aLongTimeAgo)
			}
			c.b.log.Debug("write failed", "client", c.id(), "err", err)
			return
		}
		x.free()
		c.out.backlog = 0
		c.fill(time.Now())
		c.b.memory.Recount(budget.Output, &c.out.counted, c.out.size())
		if c.out.size() <= c.b.cfg.MaxOutboundBytes/4 {
			c.out.congest = 0
			c.wake()
		}
		if c.out.buf == nil || c.out.dead {
			c.out.writing = false
			c.wake()
			c.discard()
			mu.Unlock()
			return
		}
		x = c.out.take()
		mu.Unlock()
	}
}

// writeAll writes b and waits as long as the client takes something within WriteTimeout.
func (c *conn) writeAll(b []byte) error {
	const piece = 64 << 10 // so that progress is seen
	var again bool         // the deadline was noticed late, as by a process that was stopped: the client has a moment more
	for len(b) > 0 {
		t := c.b.cfg.WriteTimeout
		if again {
			t = lookTime
		}
		deadline := time.Now().Add(t)
		if t > 0 {
			c.nc.SetWriteDeadline(deadline)
		}
		n, err := c.nc.Write(b[:min(len(b), piece)])
		b = b[n:]
		if n > 0 {
			c.b.stats.sentBytes.Add(uint64(n))
			mu := &c.sess.mu
			mu.Lock()
			c.out.backlog -= n
			c.b.memory.Recount(budget.Output, &c.out.counted, c.out.size())
			c.out.stalled = false
			mu.Unlock()
			if again = false; errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !again && time.Now().After(deadline) {
			again = true
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	patience  = 5 * time.Millisecond   // a client that takes nothing for so long while it is waited for counts as stalled
	maxWait   = 100 * time.Millisecond // and one that stays congested for longer than this is not waited for either
	lingering = time.Second            // how long a closed connection is drained for the client to read our last words
)

// ease waits a bounded moment for the client of c, which this turn has published to, if it is congested but reading: a burst
// that its socket would absorb is not lost. One that reads nothing costs its publishers a few milliseconds once.
func (c *conn) ease() {
	for {
		mu := &c.sess.mu
		mu.Lock()
		o := &c.out
		if o.dead || o.stalled || o.size() <= c.b.cfg.MaxOutboundBytes/2 {
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
		room, before := o.room, o.backlog
		mu.Unlock()
		t := time.NewTimer(patience)
		select {
		case <-room:
		case <-t.C:
			mu.Lock()
			o.stalled = o.backlog == before
			mu.Unlock()
		}
		t.Stop()
	}
}

// closeGently ends a connection after our last words without a reset: it flushes within a bound (at a Shutdown, which has a bound of its own,
// within that), shuts down our direction, and reads what the client still sends for a moment, because a close with unread input would
// destroy what is on its way.
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
	if hc, ok := c.nc.(interface{ CloseWrite() error }); ok && hc.CloseWrite() == nil {
		c.drain(deadline)
	}
}

// drain reads what the client still sends, at most 1 MiB, until it closes or the deadline. Nothing depends on it.
func (c *conn) drain(deadline time.Time) {
	for range 2 { // again, if the deadline that rouses the reader has come in between
		c.nc.SetReadDeadline(deadline)
		_, err := io.CopyN(io.Discard, c.nc, 1<<20)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline) {
			return
		}
	}
}

// await waits until no more than most bytes are waiting for the socket, and says whether that came before the deadline (none if zero) and
// the end of the connection or of the Broker. A client that takes nothing ends it by WriteTimeout.
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
		if c.out.dead || c.out.size() <= most {
			ok := !c.out.dead
			mu.Unlock()
			return ok
		}
		if c.out.room == nil {
			c.out.room = make(chan struct{})
		}
		room := c.out.room
		mu.Unlock()
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
