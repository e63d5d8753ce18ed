package websocket

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/listeners/internal/waiting"
)

// A conn is the server's end of a WebSocket connection as a stream of bytes.
//
// It decodes frames in the buffer of the caller of Read. A payload without its headers is never
// longer than the bytes from the network, so a waiting connection owns no buffer.
type conn struct {
	// Immutable.
	nc     net.Conn
	remote net.Addr
	limits Options
	try    func([]byte) (int, error) // nil: the connection below cannot write without waiting
	await  func() error              // nil: the connection below cannot wait without a buffer
	// in the Listener's backlog until Accept; guarded by the Listener's mu
	place *waiting.Place

	// Owned by the reader.
	early   []byte   // came with the request
	head    [14]byte // the header that is being read
	headLen int
	mask    [4]byte
	maskPos int   // where in mask the next byte is
	left    int64 // of the payload of the frame that is being read
	op      byte  // its opcode
	fin     bool
	open    bool  // a message has begun and not ended
	message int64 // bytes of it so far
	control []byte
	failed  error // what Read returns from now on
	awaited bool  // AwaitRead has waited for the next Read

	// Read holds reading. Close takes it and keeps it. The goroutine that holds reading owns the
	// fields of the reader.
	reading atomic.Bool

	wmu     sync.Mutex // held while something is written
	packet  packetEnd  // of the packet that is being written; guarded by wmu
	rest    []byte     // of the frames that TryWrite could not finish; guarded by wmu
	broken  error      // no frame can be written any more; guarded by wmu
	goodbye bool       // a Close frame has been written; guarded by wmu

	mu sync.Mutex
	// the answer that could not be written yet, at most one; guarded by mu, as are the next
	pong     []byte
	hasPong  bool          //
	deadline time.Time     // for writing
	span     time.Duration // what was left of it when it was set
	moved    bool          // the client has taken something since
	heard    bool          // something has come since the last look of the timer
	asked    bool          // a ping is not answered
	busy     bool          // at the last look no ping could be sent, as somebody was writing
	taken    bool          // the client has taken something since then
	timer    *time.Timer
	closed   bool
	draining sync.WaitGroup
}

const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// Close codes (RFC 6455, 7.4.1).
const (
	closeNormal      = 1000
	closeGoingAway   = 1001
	closeProtocol    = 1002
	closeUnsupported = 1003
	closeNone        = 1005
	closeTooBig      = 1009
)

const (
	// maxPiece is the most bytes that Write and TryWrite give to the connection below at a time.
	maxPiece = 64 << 10
	// controlTimeout bounds how long a Pong or Close waits for the socket.
	controlTimeout = 5 * time.Second
	// lingering is how long Close waits for the client's Close frame. If the connection is closed
	// before this frame has arrived, it may end with a reset, which clients report as an error.
	lingering = time.Second
)

func newConn(nc net.Conn, o Options, early []byte) *conn {
	c := &conn{nc: nc, remote: nc.RemoteAddr(), limits: o, early: early}
	c.try, c.await = tryFunc(nc), awaitFunc(nc)
	return c
}

// Read reads the content of the binary messages as one stream. It answers pings. After the client's
// Close frame it returns io.EOF.
func (c *conn) Read(p []byte) (int, error) {
	if !c.reading.CompareAndSwap(false, true) {
		return 0, net.ErrClosed
	}
	defer c.reading.Store(false)
	once := c.awaited
	c.awaited = false
	return c.read(p, once)
}

// AwaitRead waits until Read has something to do, if it can without a buffer. The deadline of Read
// holds. The Read that follows does not wait: it returns 0 and no error if nothing but a control
// frame, or a part of a frame without payload, has come.
func (c *conn) AwaitRead() error {
	if !c.reading.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	defer c.reading.Store(false)
	if c.failed != nil || len(c.early) > 0 || c.await == nil {
		return nil
	}
	err := c.await()
	c.awaited = err == nil
	return err
}

// read is Read. With once it does not wait for payload.
func (c *conn) read(p []byte, once bool) (int, error) {
	for {
		if c.failed != nil {
			return 0, c.failed
		}
		if len(p) == 0 {
			return 0, nil
		}
		var n int
		var err error
		if len(c.early) > 0 {
			n = copy(p, c.early)
			if c.early = c.early[n:]; len(c.early) == 0 {
				c.early = nil
			}
		} else {
			n, err = c.nc.Read(p)
		}
		m := 0
		if n > 0 {
			m = c.take(p[:n])
			c.noteHeard()
		}
		if err != nil && c.failed == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			if err == io.EOF && (c.headLen > 0 || c.left > 0 || c.open) {
				err = io.ErrUnexpectedEOF
			}
			c.failed = err
		}
		if m > 0 {
			return m, nil
		}
		if c.failed == nil && (err != nil || once) {
			return 0, err // after a deadline Read goes on where it was
		}
	}
}

// take handles the raw bytes b and moves their payload to the front of b. It returns the length of
// the payload.
func (c *conn) take(b []byte) (w int) {
	for r := 0; r < len(b) && c.failed == nil; {
		if c.left == 0 {
			c.head[c.headLen] = b[r]
			c.headLen++
			r++
			if c.headLen == headerLen(c.head[:c.headLen]) {
				c.failed = c.begin()
				c.headLen = 0
			}
			continue
		}
		part := b[r:]
		if int64(len(part)) > c.left {
			part = part[:c.left]
		}
		c.unmask(part)
		r += len(part)
		c.left -= int64(len(part))
		if c.op >= opClose {
			c.control = append(c.control, part...)
			if c.left == 0 {
				c.failed = c.onControl()
			}
			continue
		}
		w += copy(b[w:], part)
		if c.left == 0 && c.fin {
			c.open = false
		}
	}
	return w
}

// headerLen returns the length of the header at the beginning of b, as far as b shows it. It is at
// least 2.
func headerLen(b []byte) int {
	if len(b) < 2 {
		return 2
	}
	n := 2
	switch b[1] & 0x7F {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if b[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// begin handles a whole header. If it returns an error, the connection fails with it.
func (c *conn) begin() error {
	h := c.head[:c.headLen]
	c.fin, c.op = h[0]&0x80 != 0, h[0]&0xF
	masked := h[1]&0x80 != 0
	n := int64(h[1] & 0x7F)
	minimal := true
	switch n {
	case 126:
		n = int64(binary.BigEndian.Uint16(h[2:]))
		minimal = n >= 126
	case 127:
		n = int64(binary.BigEndian.Uint64(h[2:]))
		minimal = n > 0xFFFF // negative: above 2^63
	}
	switch {
	case h[0]&0x70 != 0:
		return c.fail(closeProtocol, errProtocol, "reserved bits are set")
	case !masked:
		return c.fail(closeProtocol, errProtocol, "a frame of a client is not masked")
	case !minimal:
		return c.fail(closeProtocol, errProtocol, "a length is not in its shortest form")
	case c.op >= opClose && (!c.fin || n > 125):
		return c.fail(closeProtocol, errProtocol,
			"a control frame is fragmented or longer than 125 bytes")
	case c.op == opContinuation && !c.open, c.op == opBinary && c.open,
		c.op > opBinary && c.op < opClose, c.op > opPong:
		return c.fail(closeProtocol, errProtocol,
			fmt.Sprintf("opcode %d is not allowed here", c.op))
	case c.op == opText:
		return c.fail(closeUnsupported, errText, "MQTT needs binary frames")
	}
	copy(c.mask[:], h[len(h)-4:])
	c.maskPos, c.left = 0, n
	if c.op >= opClose {
		c.control = c.control[:0]
		if n == 0 {
			return c.onControl()
		}
		return nil
	}
	if c.op == opBinary {
		c.message = 0
	}
	if c.message += n; n > c.limits.MaxFrame || c.message > c.limits.MaxMessage {
		return c.fail(closeTooBig, errTooBig, "the frame or message is above the limit")
	}
	c.open = !c.fin || n > 0
	return nil
}

// unmask removes the mask of the next bytes of a payload (RFC 6455, 5.3).
func (c *conn) unmask(b []byte) {
	var key [8]byte
	for i := range key {
		key[i] = c.mask[(c.maskPos+i)&3]
	}
	c.maskPos = (c.maskPos + len(b)) & 3
	k := binary.LittleEndian.Uint64(key[:])
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^k)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= key[i&7]
	}
}

// onControl handles a whole control frame.
func (c *conn) onControl() error {
	switch c.op {
	case opPing:
		c.answer(c.control)
		return nil
	case opPong:
		return nil // that something came is all that counts
	}
	code := closeNone
	if len(c.control) >= 2 {
		code = int(binary.BigEndian.Uint16(c.control))
	}
	if len(c.control) == 1 || !validCode(code) && code != closeNone || code == closeNone &&
		len(c.control) > 0 {
		return c.fail(closeProtocol, errProtocol, "the Close frame is not valid")
	}
	if code == closeNone {
		code = closeNormal
	}
	c.sendClose(code, "")
	return io.EOF
}

// validCode says whether a peer may send a close code.
func validCode(code int) bool {
	return code >= 1000 && code <= 1014 && (code < 1004 || code > 1006) || code >= 3000 &&
		code <= 4999
}

// fail sends the client a Close frame with the reason, and returns the error for Read.
func (c *conn) fail(code int, err error, why string) error {
	c.sendClose(code, why)
	if err == errProtocol {
		return fmt.Errorf("%w: %s", err, why)
	}
	return err
}

// NetConn returns the connection below.
func (c *conn) NetConn() net.Conn { return c.nc }

// CopyBytes returns how many bytes of what was written may wait here for a client that takes
// nothing: a piece in frames, the header of each as long as the shortest packet, and a record of
// TLS.
func (c *conn) CopyBytes() int { return 2*maxPiece + 16<<10 }

// LocalAddr returns the local address of the connection below.
func (c *conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// RemoteAddr returns the client's address: see Options.TrustedProxies.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets the deadline of Read.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed // Close has one of its own
	}
	return c.nc.SetReadDeadline(t)
}

// noteHeard records that the client has sent something, for tick.
func (c *conn) noteHeard() {
	if c.limits.PingInterval > 0 {
		c.mu.Lock()
		c.heard, c.asked = true, false
		c.mu.Unlock()
	}
}

// startPings starts the timer for pings, if Options.PingInterval is set.
func (c *conn) startPings() {
	if d := c.limits.PingInterval; d > 0 {
		c.mu.Lock()
		if !c.closed {
			c.timer = time.AfterFunc(d, c.tick)
		}
		c.mu.Unlock()
	}
}

// tick sends a ping if the client has sent nothing. It closes the connection if the client has not
// answered the last ping.
func (c *conn) tick() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	heard, asked, stuck := c.heard, c.asked, c.busy && !c.taken
	c.heard, c.asked, c.busy, c.taken = false, false, false, false
	c.timer.Reset(c.limits.PingInterval)
	c.mu.Unlock()
	if heard {
		return
	}
	sent := !asked && c.sendControl(opPing, nil)
	if asked || !sent && stuck {
		c.sendClose(closeGoingAway, errPing.Error())
		c.nc.Close()
		return
	}
	c.mu.Lock()
	c.asked, c.busy = sent, !sent
	c.mu.Unlock()
}

// tlsConn is a connection over TLS.
type tlsConn struct {
	*conn
	state tls.ConnectionState
}

// ConnectionState returns the state of the TLS connection below.
func (c *tlsConn) ConnectionState() tls.ConnectionState { return c.state }
