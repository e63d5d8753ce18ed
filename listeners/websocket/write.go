package websocket

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// This file writes. Each MQTT packet is a message and a frame of its own, although the standard
// allows more packets in one. Some clients take the first packet out of a frame and then wait for
// the socket. All packets of a Write still leave in one call.
//
// Bytes given to the socket are written completely, or the connection ends. wmu is held from the
// first byte to the last. The rest of a TryWrite is written before anything else.

var errBroken = errors.New("websocket: an earlier write was cut short")

// A packetEnd finds the ends of MQTT packets in a stream.
type packetEnd struct {
	header int // bytes of the fixed header that have passed
	left   int // of the packet, behind its header
	known  bool
}

// next returns how many bytes of p belong to the packet that has begun, or that begins with p. p is
// not empty.
func (e *packetEnd) next(p []byte) (n int) {
	for ; n < len(p) && !e.known; n++ {
		if e.header > 0 { // the Remaining Length, seven bits a byte
			e.left |= int(p[n]&0x7F) << (7 * (e.header - 1))
			e.known = p[n] < 0x80 || e.header == 4
		}
		e.header++
	}
	part := min(e.left, len(p)-n)
	n += part
	if e.left -= part; e.known && e.left == 0 {
		*e = packetEnd{}
	}
	return n
}

// appendFrames appends p, with one frame for each packet or part of a packet. wmu is held.
func (c *conn) appendFrames(b, p []byte) []byte {
	for len(p) > 0 {
		n := c.packet.next(p)
		b = append(appendHeader(b, opBinary, n), p[:n]...)
		p = p[n:]
	}
	return b
}

// frames pools buffers for headers and payloads, so that they leave in one call and, over TLS, in
// one record.
var frames = sync.Pool{New: func() any { return new([]byte) }}

// Write sends p in binary messages of one frame each, one for each MQTT packet, and waits until
// everything is written. If a deadline passes when a part of p is written, all writing ends, unless
// the client has read some of it: then the time starts again.
func (c *conn) Write(p []byte) (n int, err error) {
	c.wmu.Lock()
	defer c.unlock()
	if err := c.finishRest(); err != nil {
		return 0, err
	}
	for {
		piece := p[n:]
		if len(piece) > maxPiece {
			piece = piece[:maxPiece]
		}
		if err := c.writePackets(piece); err != nil {
			return n, err
		}
		if n += len(piece); n == len(p) {
			return n, nil
		}
	}
}

// writePackets writes p. wmu is held.
func (c *conn) writePackets(p []byte) error {
	if err := c.over(); err != nil {
		return err
	}
	b := frames.Get().(*[]byte)
	defer frames.Put(b)
	before := c.packet
	*b = c.appendFrames((*b)[:0], p)
	err := c.push(*b, false)
	if err != nil { // nothing of p was written, or nothing more will be
		c.packet = before
	}
	return err
}

// writeControl writes a control frame. wmu is held.
func (c *conn) writeControl(op byte, p []byte) error {
	if err := c.over(); err != nil {
		return err
	}
	return c.push(append(appendHeader(nil, op, len(p)), p...), false)
}

// over returns why nothing can be written any more, or nil. wmu is held.
func (c *conn) over() error {
	if c.broken == nil && c.goodbye {
		return net.ErrClosed
	}
	return c.broken
}

// push writes b. begun says that a part of the frame is already written. wmu is held.
func (c *conn) push(b []byte, begun bool) error {
	for len(b) > 0 {
		n, err := c.nc.Write(b)
		b = b[n:]
		begun = begun || n > 0
		if n > 0 {
			c.took()
		}
		late := errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case err == nil, late && c.extend():
		case late && !begun:
			return err // nothing was written: the next Write may do better
		case late:
			c.broken = errBroken
			return err
		default:
			c.broken = err
			return err
		}
	}
	return nil
}

// took records that the client has read something.
func (c *conn) took() {
	c.mu.Lock()
	c.moved, c.taken = true, true
	c.mu.Unlock()
}

// extend moves the write deadline if the client has read something since it was set. The new
// deadline is as long after now as it was when it was set.
func (c *conn) extend() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.span <= 0 || !c.moved {
		return false
	}
	c.moved = false
	return c.nc.SetWriteDeadline(time.Now().Add(c.span)) == nil
}

func appendHeader(b []byte, op byte, n int) []byte {
	b = append(b, 0x80|op)
	switch {
	case n < 126:
		return append(b, byte(n))
	case n <= 0xFFFF:
		return binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
}

// finishRest writes the rest of a TryWrite. wmu is held.
func (c *conn) finishRest() error {
	if c.broken == nil && len(c.rest) > 0 {
		if err := c.push(c.rest, true); err != nil {
			return err
		}
	}
	c.rest = nil
	return c.broken
}

// unlock releases wmu. First it writes the Pong that another goroutine could not write while wmu
// was held.
func (c *conn) unlock() {
	for {
		c.mu.Lock()
		pong, has := c.pong, c.hasPong
		c.pong, c.hasPong = nil, false
		c.mu.Unlock()
		if has {
			c.controlFrame(opPong, pong)
		}
		c.wmu.Unlock()
		c.mu.Lock()
		again := c.hasPong && c.wmu.TryLock() // one that came in between
		c.mu.Unlock()
		if !again {
			return
		}
	}
}

// controlFrame writes a control frame within controlTimeout. wmu is held.
func (c *conn) controlFrame(op byte, p []byte) {
	c.mu.Lock()
	own := time.Now().Add(controlTimeout)
	if d := c.deadline; !d.IsZero() && d.Before(own) {
		own = d
	}
	c.nc.SetWriteDeadline(own)
	c.mu.Unlock()
	if c.finishRest() == nil {
		c.writeControl(op, p) // its error is that of the next write as well
	}
	c.mu.Lock()
	c.nc.SetWriteDeadline(c.deadline)
	c.mu.Unlock()
}

// sendControl writes a control frame, unless another goroutine is writing.
func (c *conn) sendControl(op byte, p []byte) (sent bool) {
	if !c.wmu.TryLock() {
		return false
	}
	c.controlFrame(op, p)
	c.unlock()
	return true
}

// answer sends a Pong, or leaves it to the goroutine that is writing. Only the answer to the last
// ping is kept (RFC 6455, 5.5.3).
func (c *conn) answer(ping []byte) {
	p := append([]byte(nil), ping...)
	c.mu.Lock()
	if !c.wmu.TryLock() {
		c.pong, c.hasPong = p, true
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	c.controlFrame(opPong, p)
	c.unlock()
}

// sendClose writes one Close frame, if it need not wait for another goroutine's write.
func (c *conn) sendClose(code int, why string) {
	if !c.wmu.TryLock() {
		return
	}
	if !c.goodbye {
		c.controlFrame(opClose, append(binary.BigEndian.AppendUint16(nil, uint16(code)), why...))
		c.goodbye = true
	}
	c.unlock()
}

// CloseWrite sends a Close frame. Nothing is written after it. The client answers with its own
// Close frame, for which Read returns io.EOF.
func (c *conn) CloseWrite() error {
	c.wmu.Lock()
	defer c.unlock()
	if c.broken != nil {
		return c.broken
	}
	if !c.goodbye {
		c.controlFrame(opClose, binary.BigEndian.AppendUint16(nil, closeNormal))
		c.goodbye = true
	}
	return c.broken
}

// Close sends a Close frame if the socket takes one. It waits at most a second for the client's
// Close frame, and closes the connection. If a Read is in progress, the Read ends at once and Close
// does not wait.
func (c *conn) Close() error { return c.end(true) }

// end is Close, which waits for the client if linger is set.
func (c *conn) end(linger bool) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.deadline = time.Now().Add(100 * time.Millisecond)
	c.nc.SetWriteDeadline(c.deadline)
	c.mu.Unlock()
	c.sendClose(closeNormal, "")
	if c.reading.CompareAndSwap(false, true) && linger { // there is no more Read
		var rest [512]byte
		c.nc.SetReadDeadline(time.Now().Add(lingering))
		for err := error(nil); err == nil; {
			_, err = c.read(rest[:], false)
		}
	}
	err := c.nc.Close()
	c.draining.Wait()
	return err
}

// SetWriteDeadline sets the deadline of Write.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.deadline, c.span, c.moved = t, time.Until(t), false
	return c.nc.SetWriteDeadline(t)
}

// tryConn is a connection that can write without waiting.
type tryConn struct{ *conn }

// TryWrite sends p, or its first 64 KiB, in frames as Write does. If the socket takes nothing now,
// TryWrite returns 0 and no error. If the socket takes only a part, a goroutine writes the rest.
// Until it has done so, TryWrite takes nothing.
func (c *tryConn) TryWrite(p []byte) (int, error) {
	if len(p) == 0 || !c.wmu.TryLock() {
		return 0, nil
	}
	taken, left := false, false
	defer func() { c.release(taken, left) }()
	if err := c.over(); err != nil {
		return 0, err
	}
	if len(c.rest) > 0 {
		return 0, nil
	}
	if len(p) > maxPiece {
		p = p[:maxPiece]
	}
	frame := frames.Get().(*[]byte)
	defer frames.Put(frame)
	before := c.packet
	*frame = c.appendFrames((*frame)[:0], p)
	n, err := c.try(*frame)
	if err != nil {
		c.broken = err
		return 0, err
	}
	if n == 0 {
		c.packet = before
		return 0, nil
	}
	if n < len(*frame) {
		c.rest = append([]byte(nil), (*frame)[n:]...)
		left = true
	}
	taken = true
	return len(p), nil
}

// release releases wmu without waiting. It leaves the rest of a frame, and a Pong that another
// goroutine could not write, to a new goroutine.
func (c *conn) release(taken, left bool) {
	c.wmu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = c.taken || taken
	if (left || c.hasPong) && !c.closed {
		c.draining.Go(c.drain) // Close waits for it
	}
}

// drain finishes the frame that TryWrite has begun, and writes a Pong that was left to it.
func (c *conn) drain() {
	c.wmu.Lock()
	defer c.unlock()
	c.finishRest() // its error is that of the next write
}
