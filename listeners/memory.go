// Package listeners holds net.Listeners that a program can give to a broker, or to any other
// server. This package and listeners/mux need only the standard library. Packages
// listeners/websocket and listeners/quic need other modules, so each of them is a module of its
// own.
package listeners

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// DefaultBuffer is the number of bytes that one direction of a connection of a [Memory] holds.
const DefaultBuffer = 64 << 10

// backlog is how many connections may wait for Accept.
const backlog = 128

// A Memory is a net.Listener without sockets: bytes written at one end of a connection are read at
// the other end, in memory. Use it to talk to a broker in the same process, and in tests.
//
// Its connections behave like TCP connections:
//
//   - Both directions are buffered, independently of each other.
//   - Deadlines work, also deadlines in the past.
//   - After Close, the peer reads the bytes that were sent before and then io.EOF, and its writes
//     fail with io.ErrClosedPipe. Calls at the closed end fail with net.ErrClosed.
//   - Bytes of one Write are never mixed with those of another.
//
// Besides the methods of net.Conn they have
//
//	CloseWrite() error                        // the peer reads io.EOF, while this end can still read
//	TryWrite(b []byte) (n int, err error)     // takes what fits now and never blocks; n < len(b) is no error
//
// All waiting is durable in the sense of testing/synctest: the clock of a bubble advances while a
// Memory in the bubble waits. All methods may be called concurrently.
type Memory struct {
	// Buffer is the number of bytes that each direction of a connection holds. Zero and negative:
	// DefaultBuffer. It may be set before the first Dial.
	Buffer int

	mu      sync.Mutex
	changed sync.Cond // waiting, closed or a Dial's context
	waiting []*conn   // guarded by mu
	closed  bool      // guarded by mu
	dialed  int       // connections so far, for their addresses; guarded by mu
}

// NewMemory returns a listener that is ready for Dial and Accept.
func NewMemory() *Memory {
	m := new(Memory)
	m.changed.L = &m.mu
	return m
}

// Dial makes a connection and returns the client's end. It does not wait for Accept, unless 128
// connections already wait for Accept. After Close it fails with net.ErrClosed.
func (m *Memory) Dial() (net.Conn, error) {
	return m.DialContext(context.Background(), "", "")
}

// DialContext is Dial, but gives up when ctx ends. Network and address are ignored: they are there
// so that DialContext can be used as a dialer function. When ctx ends after DialContext has
// returned, the connection stays open.
func (m *Memory) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := m.dial(ctx)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: memoryNet, Addr: m.Addr(), Err: err}
	}
	return c, nil
}

func (m *Memory) dial(ctx context.Context) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.changed.Broadcast()
	})
	defer stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case m.closed:
			return nil, net.ErrClosed
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case len(m.waiting) < backlog:
			m.dialed++
			client, server := newConns(m.Buffer, addr(fmt.Sprintf("client-%d", m.dialed)), m.Addr())
			m.waiting = append(m.waiting, server)
			m.changed.Broadcast()
			return client, nil
		}
		m.changed.Wait()
	}
}

// Accept waits for a connection and returns the server's end. After Close it fails with
// net.ErrClosed.
func (m *Memory) Accept() (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.waiting) == 0 && !m.closed {
		m.changed.Wait()
	}
	if m.closed {
		return nil, &net.OpError{Op: "accept", Net: memoryNet, Addr: m.Addr(), Err: net.ErrClosed}
	}
	c := m.waiting[0]
	m.waiting = append(m.waiting[:0], m.waiting[1:]...)
	m.changed.Broadcast()
	return c, nil
}

// Close ends the waiting Accept and Dial calls, and closes the connections that nobody has
// accepted. Accepted connections stay open. A second Close fails with net.ErrClosed.
func (m *Memory) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return &net.OpError{Op: "close", Net: memoryNet, Addr: m.Addr(), Err: net.ErrClosed}
	}
	m.closed = true
	rest := m.waiting
	m.waiting = nil
	m.changed.Broadcast()
	m.mu.Unlock()
	for _, c := range rest {
		c.Close()
	}
	return nil
}

// Addr returns an address of the network "memory".
func (m *Memory) Addr() net.Addr { return addr("memory") }

const memoryNet = "memory"

type addr string

func (a addr) Network() string { return memoryNet }
func (a addr) String() string  { return string(a) }

// A conn is one end of a connection: it reads from one pipe and writes to the other.
type conn struct {
	in, out       *pipe
	local, remote net.Addr
}

func newConns(size int, client, server net.Addr) (c, s *conn) {
	if size <= 0 {
		size = DefaultBuffer
	}
	up, down := newPipe(size), newPipe(size)
	return &conn{in: down, out: up, local: client, remote: server},
		&conn{in: up, out: down, local: server, remote: client}
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	return n, c.wrap("read", err)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b, true)
	return n, c.wrap("write", err)
}

func (c *conn) TryWrite(b []byte) (int, error) {
	n, err := c.out.write(b, false)
	return n, c.wrap("write", err)
}

func (c *conn) CloseWrite() error { return c.wrap("close", c.out.closeWrite(false)) }

func (c *conn) Close() error {
	err := c.out.closeWrite(true)
	c.in.closeRead()
	return c.wrap("close", err)
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.wrap("set", c.in.setReadDeadline(t))
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.wrap("set", c.out.setWriteDeadline(t))
}

func (c *conn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: memoryNet, Source: c.local, Addr: c.remote, Err: err}
}

// A pipe is one direction of a connection. Goroutines wait only on its two conditions, so no
// goroutine holds mu while it waits.
type pipe struct {
	mu       sync.Mutex
	readable sync.Cond // something changed for a reader
	writable sync.Cond // something changed for a writer

	// Guarded by mu.
	ring    []byte // grows up to size
	head    int    // where the first byte is
	n       int    // how many there are
	size    int    // immutable
	writing bool   // a Write is under way, perhaps waiting
	shut    bool   // nothing more will be written
	wclosed bool   // the writer's end was closed altogether
	rclosed bool   // the reader's end was closed

	readDeadline, writeDeadline deadline
}

func newPipe(size int) *pipe {
	p := &pipe{size: size}
	p.readable.L, p.writable.L = &p.mu, &p.mu
	return p
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.rclosed:
			return 0, net.ErrClosed
		case p.readDeadline.passed:
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case p.n > 0:
			n := p.take(b)
			p.writable.Broadcast()
			return n, nil
		case p.shut:
			return 0, io.EOF
		}
		p.readable.Wait()
	}
}

// write puts b into the pipe. With wait set it waits until all of b is in the pipe. Otherwise it
// puts in as much as there is room for.
func (p *pipe) write(b []byte, wait bool) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.writing {
		if err := p.writeError(); err != nil || !wait {
			return 0, err
		}
		p.writable.Wait()
	}
	p.writing = true
	defer func() {
		p.writing = false
		p.writable.Broadcast()
	}()
	for {
		if err := p.writeError(); err != nil {
			return n, err
		}
		if k := p.put(b[n:]); k > 0 {
			n += k
			p.readable.Broadcast()
		}
		if n == len(b) || !wait {
			return n, nil
		}
		p.writable.Wait()
	}
}

func (p *pipe) writeError() error {
	switch {
	case p.wclosed:
		return net.ErrClosed
	case p.shut, p.rclosed:
		return io.ErrClosedPipe
	case p.writeDeadline.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// put appends as much of b as there is room for.
func (p *pipe) put(b []byte) int {
	b = b[:min(len(b), p.size-p.n)]
	if len(b) == 0 {
		return 0
	}
	if need := p.n + len(b); need > len(p.ring) {
		ring := make([]byte, min(p.size, max(need, 2*len(p.ring), 512)))
		k := copy(ring, p.ring[p.head:min(p.head+p.n, len(p.ring))])
		copy(ring[k:], p.ring[:p.n-k])
		p.ring, p.head = ring, 0
	}
	tail := (p.head + p.n) % len(p.ring)
	k := copy(p.ring[tail:], b)
	copy(p.ring, b[k:])
	p.n += len(b)
	return len(b)
}

// take removes the first bytes from the pipe and copies them to b, as many as b holds.
func (p *pipe) take(b []byte) int {
	b = b[:min(len(b), p.n)]
	k := copy(b, p.ring[p.head:])
	copy(b[k:], p.ring)
	p.n -= len(b)
	p.head = (p.head + len(b)) % len(p.ring)
	if p.n == 0 {
		p.head = 0
	}
	return len(b)
}

// closeWrite ends writing. all says that the whole end of the writer is closed.
func (p *pipe) closeWrite(all bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wclosed {
		return net.ErrClosed
	}
	p.shut, p.wclosed = true, all
	if all {
		p.writeDeadline.stop()
	}
	p.readable.Broadcast()
	p.writable.Broadcast()
	return nil
}

func (p *pipe) closeRead() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rclosed = true
	p.ring, p.head, p.n = nil, 0, 0
	p.readDeadline.stop()
	p.readable.Broadcast()
	p.writable.Broadcast()
}

func (p *pipe) setReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rclosed {
		return net.ErrClosed
	}
	p.readDeadline.set(t, &p.readable)
	return nil
}

func (p *pipe) setWriteDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wclosed {
		return net.ErrClosed
	}
	p.writeDeadline.set(t, &p.writable)
	return nil
}

// A deadline is guarded by its pipe's mu.
type deadline struct {
	timer  *time.Timer
	passed bool
}

// set replaces the deadline. When it passes, all goroutines that wait on c wake up. The zero time
// means no deadline.
func (d *deadline) set(t time.Time, c *sync.Cond) {
	d.stop()
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.passed = true
		c.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		c.L.Lock()
		defer c.L.Unlock()
		if d.timer == timer { // else it was replaced while this one fired
			d.passed = true
			c.Broadcast()
		}
	})
	d.timer = timer
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.passed = nil, false
}
