// Package mux serves several protocols on one port: it tells TLS, MQTT and HTTP (and with it WebSocket) apart by the first byte that a
// client sends, and has a net.Listener for each.
//
//	m := mux.New(tcp, mux.Options{})
//	go broker.Serve(m.MQTT())
//	go http.Serve(m.HTTP(), handler) // with a listeners/websocket on /mqtt
//	inner := mux.New(tls.NewListener(m.TLS(), config), mux.Options{}) // what is inside of TLS may be either, too
//	go broker.Serve(inner.MQTT())
//	go http.Serve(inner.HTTP(), handler)
//	go inner.Serve()
//	err := m.Serve()
//
// Over TCP the byte is looked at and not taken: the connections that Accept returns are the ones of the listener below, with nothing in
// between.
package mux

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// Options of a Mux. The zero value is a safe default. A negative duration or limit means none.
type Options struct {
	// FirstByte is how long a client may take to send its first byte, a TLS handshake below the Mux included. Default 10 s.
	FirstByte time.Duration
	// MaxPending bounds the connections that have not sent a byte yet or wait for Accept. Another one is closed. Default 1,024.
	MaxPending int
}

// A Mux takes connections from one listener and hands them to several, by protocol. Its methods may be called concurrently.
type Mux struct {
	l    net.Listener
	o    Options
	done chan struct{} // closed by Close

	mu       sync.Mutex
	branches [protocols]*branch // by protocol, nil: not asked for; guarded by mu, as are the next
	pending  map[net.Conn]bool  // whether the first byte has not come: Close closes those alone
	closed   bool
	running  sync.WaitGroup // those who wait for a first byte or for Accept
}

type protocol int

const (
	plainMQTT protocol = iota
	overTLS
	overHTTP
	protocols
	unknown = protocols
)

// New returns a Mux for what l accepts. Nothing is accepted before Serve.
func New(l net.Listener, o Options) *Mux {
	if o.FirstByte == 0 {
		o.FirstByte = 10 * time.Second
	}
	if o.MaxPending == 0 {
		o.MaxPending = 1024
	}
	return &Mux{l: l, o: o, done: make(chan struct{}), pending: make(map[net.Conn]bool)}
}

// MQTT returns the listener for connections that begin with an MQTT CONNECT packet. It is the same at each call, as are those of TLS and
// HTTP. Connections of a protocol whose listener nobody has asked for, or whose listener was closed, are closed.
func (m *Mux) MQTT() net.Listener { return m.branch(plainMQTT) }

// TLS returns the listener for connections that begin with a TLS handshake, which is still to be made.
func (m *Mux) TLS() net.Listener { return m.branch(overTLS) }

// HTTP returns the listener for connections that begin with an HTTP request.
func (m *Mux) HTTP() net.Listener { return m.branch(overHTTP) }

func (m *Mux) branch(p protocol) *branch {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.branches[p] == nil {
		m.branches[p] = &branch{m: m, ready: make(chan net.Conn), done: make(chan struct{})}
	}
	return m.branches[p]
}

// Serve accepts connections until the listener below fails or Close is called, closes everything, and returns why; after Close that is
// net.ErrClosed. Errors that are temporary, such as running out of descriptors, do not end it.
func (m *Mux) Serve() error {
	var pause time.Duration
	for {
		nc, err := m.l.Accept()
		if err == nil {
			pause = 0
			m.adopt(nc)
			continue
		}
		var temporary interface{ Temporary() bool }
		if m.isClosed() || !errors.As(err, &temporary) || !temporary.Temporary() {
			if m.isClosed() {
				err = net.ErrClosed
			}
			m.Close()
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-m.done:
			t.Stop()
		}
	}
}

func (m *Mux) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// adopt lets a connection wait for its first byte, if there is room.
func (m *Mux) adopt(nc net.Conn) {
	m.mu.Lock()
	ok := !m.closed && (m.o.MaxPending < 0 || len(m.pending) < m.o.MaxPending)
	if ok {
		m.pending[nc] = true
		m.running.Go(func() { m.route(nc) }) // Close waits for it
	}
	m.mu.Unlock()
	if !ok {
		nc.Close()
	}
}

// route waits for the first byte of a connection and hands it to the listener that it is for.
func (m *Mux) route(nc net.Conn) {
	if m.o.FirstByte > 0 {
		nc.SetDeadline(time.Now().Add(m.o.FirstByte))
	}
	first, whole, err := peek(nc)
	m.mu.Lock()
	var b *branch
	if p := tell(first); err == nil && p != unknown {
		b = m.branches[p]
		m.pending[nc] = false // who is given it may have it before this goroutine goes on
	}
	m.mu.Unlock()
	ok := b != nil && nc.SetDeadline(time.Time{}) == nil && b.give(whole)
	m.mu.Lock()
	delete(m.pending, nc)
	m.mu.Unlock()
	if !ok {
		nc.Close()
	}
}

// tell says which protocol begins with a byte: MQTT with a CONNECT packet, TLS with a handshake record, HTTP with the capital letter of a
// method.
func tell(first byte) protocol {
	switch {
	case first == 0x10:
		return plainMQTT
	case first == 0x16:
		return overTLS
	case 'A' <= first && first <= 'Z':
		return overHTTP
	}
	return unknown
}

// Close closes the listener below, ends Serve and every Accept, and closes the connections that nobody has accepted; the others go on.
// When it returns no goroutine of the Mux is left but those of the callers. A second Close fails with net.ErrClosed.
func (m *Mux) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return net.ErrClosed
	}
	m.closed = true
	close(m.done)
	for nc, silent := range m.pending {
		if silent {
			nc.Close()
		}
	}
	m.mu.Unlock()
	err := m.l.Close()
	m.running.Wait()
	return err
}

// A branch is the listener for one protocol.
type branch struct {
	m     *Mux
	ready chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// give waits until somebody accepts the connection, and says whether that happened.
func (b *branch) give(nc net.Conn) bool {
	select {
	case b.ready <- nc:
		return true
	case <-b.done:
	case <-b.m.done:
	}
	return false
}

func (b *branch) Accept() (net.Conn, error) {
	select {
	case nc := <-b.ready:
		return nc, nil
	case <-b.done:
	case <-b.m.done:
	}
	return nil, &net.OpError{Op: "accept", Net: b.Addr().Network(), Addr: b.Addr(), Err: net.ErrClosed}
}

// Close ends this listener; the Mux and the others go on.
func (b *branch) Close() error {
	err := net.ErrClosed
	b.once.Do(func() {
		close(b.done)
		err = nil
	})
	return err
}

func (b *branch) Addr() net.Addr { return b.m.l.Addr() }

// A begun is a connection whose first byte has been read.
type begun struct {
	net.Conn
	first [1]byte
	left  bool // the byte has not been returned; owned by the reader
}

// readFirst reads a byte of a connection that cannot be peeked at, and returns one that yields it again.
func readFirst(nc net.Conn) (first byte, whole net.Conn, err error) {
	c := &begun{Conn: nc, left: true}
	for n := 0; n == 0 && err == nil; {
		n, err = nc.Read(c.first[:])
		if n == 1 {
			err = nil
		}
	}
	if err != nil {
		return 0, nil, err
	}
	switch x := nc.(type) {
	case interface{ ConnectionState() tls.ConnectionState }:
		return c.first[0], &begunTLS{c, x}, nil
	case interface{ TryWrite([]byte) (int, error) }:
		return c.first[0], &begunTry{c, x}, nil
	}
	return c.first[0], c, nil
}

func (c *begun) Read(b []byte) (int, error) {
	if c.left && len(b) > 0 {
		b[0] = c.first[0]
		c.left = false
		return 1, nil
	}
	return c.Conn.Read(b)
}

// CloseWrite closes one direction, if the connection below can.
func (c *begun) CloseWrite() error {
	if x, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return x.CloseWrite()
	}
	return errors.ErrUnsupported
}

// begunTLS and begunTry have the methods that brokers look for.
type (
	begunTLS struct {
		*begun
		tls interface{ ConnectionState() tls.ConnectionState }
	}
	begunTry struct {
		*begun
		try interface{ TryWrite([]byte) (int, error) }
	}
)

func (c *begunTLS) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }
func (c *begunTry) TryWrite(b []byte) (n int, err error) { return c.try.TryWrite(b) }
