// Package mux serves several protocols on one port. It tells TLS, MQTT and HTTP (and so WebSocket)
// apart by the first byte that a client sends, and has a net.Listener for each.
//
//	m := mux.New(tcp, mux.Options{})
//	go broker.Serve(m.MQTT())
//	go http.Serve(m.HTTP(), handler) // with a listeners/websocket on /mqtt
//	inner := mux.New(listeners.NewTLS(m.TLS(), config), mux.Options{}) // what is inside of TLS may be either, too
//	go broker.Serve(inner.MQTT())
//	go http.Serve(inner.HTTP(), handler)
//	go inner.Serve()
//	err := m.Serve()
//
// Over TCP the Mux peeks at the byte and leaves it in the socket. So Accept returns the connections
// of the original listener, with nothing in between.
package mux

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/listeners/internal/waiting"
)

// Options of a Mux. The zero value is a safe default. A negative duration or limit means no bound.
type Options struct {
	// FirstByte bounds the time until a client has sent its first byte, including a TLS handshake
	// below the Mux. The connection may then wait as long again for Accept. Default 10 s.
	FirstByte time.Duration
	// MaxPending bounds the connections that have not sent a byte yet or wait for Accept. One
	// address (IPv4, or a /64 of IPv6) may hold as many places as are free: half of them if it is
	// the only address. An address that holds as many as it may loses its oldest pending connection
	// to its newest. When no place is free, an address that holds none takes the oldest place of
	// all. So silent clients do not close the port to others. A connection takes about 10 KiB; over
	// TLS a hostile one takes up to 110 KiB. Default 1,024.
	MaxPending int
	// Admit is called with the RemoteAddr of each connection before the connection waits. If it
	// returns an error, the connection is closed. Set it to the Broker's Admits, so that banned
	// addresses and addresses at their limits hold no places here. Serve calls it; it must not
	// block. Nil admits every address.
	Admit func(from net.Addr) error
}

// A Mux accepts connections from one listener and passes them to several listeners, by protocol.
// Its methods may be called concurrently.
type Mux struct {
	l    net.Listener
	o    Options
	done chan struct{} // closed by Close

	pending  *waiting.Room // connections that wait for a first byte or for Accept
	mu       sync.Mutex
	branches [protocols]*branch // by protocol, nil: not asked for; guarded by mu, as is the next
	closed   bool
	running  sync.WaitGroup // one for each pending connection
}

type protocol int

const (
	plainMQTT protocol = iota
	overTLS
	overHTTP
	protocols
	unknown = protocols
)

// New returns a Mux for the connections of l. It accepts no connection before Serve.
func New(l net.Listener, o Options) *Mux {
	if o.FirstByte == 0 {
		o.FirstByte = 10 * time.Second
	}
	if o.MaxPending == 0 {
		o.MaxPending = 1024
	}
	return &Mux{l: l, o: o, done: make(chan struct{}), pending: waiting.NewRoom(o.MaxPending)}
}

// MQTT returns the listener for connections that begin with an MQTT CONNECT packet. Each call
// returns the same listener; this is true of TLS and HTTP too. The Mux closes connections of a
// protocol whose listener is closed, or was never returned.
func (m *Mux) MQTT() net.Listener { return m.branch(plainMQTT) }

// TLS returns the listener for connections that begin with a TLS handshake. The Mux does not
// perform the handshake.
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

// Serve accepts connections until the original listener fails or Close is called. Then it closes
// everything and returns the error; after Close the error is net.ErrClosed. Temporary errors, such
// as running out of descriptors, do not end Serve.
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

// adopt lets an admitted connection wait for its first byte, if there is room.
func (m *Mux) adopt(nc net.Conn) {
	if m.o.Admit != nil && m.o.Admit(nc.RemoteAddr()) != nil {
		nc.Close()
		return
	}
	if m.o.FirstByte > 0 { // before Enter: expire may replace the deadline from then on
		nc.SetDeadline(time.Now().Add(m.o.FirstByte))
	}
	p := m.pending.Enter(nc.RemoteAddr(), func() { expire(nc) })
	m.mu.Lock()
	ok := p != nil && !m.closed
	if ok {
		m.running.Go(func() { m.route(nc, p) }) // Close waits for it
	}
	m.mu.Unlock()
	if !ok {
		nc.Close()
	}
}

// expire ends the wait for a first byte. It leaves closing the connection to route, because Close
// may take time over TLS.
func expire(nc net.Conn) { nc.SetDeadline(time.Unix(1, 0)) }

// route waits for the first byte of a connection and passes the connection to the listener of its
// protocol.
func (m *Mux) route(nc net.Conn, p *waiting.Place) {
	defer p.Leave()
	first, whole, err := peek(nc)
	b := m.listenerFor(first)
	evicted := make(chan struct{})
	// From here on only this goroutine sets a deadline. After b.give the connection belongs to the
	// caller of Accept.
	if err != nil || b == nil || !p.OnEvict(func() { close(evicted) }) ||
		nc.SetDeadline(time.Time{}) != nil || !b.give(whole, evicted) {
		nc.Close()
	}
}

// listenerFor returns the listener of the protocol that begins with a byte, or nil if there is
// none.
func (m *Mux) listenerFor(first byte) *branch {
	p := tell(first)
	if p == unknown {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.branches[p]
}

// tell returns the protocol that begins with a byte: MQTT begins with a CONNECT packet, TLS with a
// handshake record, HTTP with the capital letter of a method.
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

// Close closes the original listener, ends Serve and every Accept, and closes the connections that
// nobody has accepted. Accepted connections stay open. When Close returns, no goroutine of the Mux
// runs, except those of its callers. A second Close fails with net.ErrClosed.
func (m *Mux) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return net.ErrClosed
	}
	m.closed = true
	close(m.done)
	m.mu.Unlock()
	m.pending.Close()
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

// give waits until a caller of Accept takes the connection, and says whether one did. It gives up
// when the connection is evicted, or has waited for FirstByte.
func (b *branch) give(nc net.Conn, evicted <-chan struct{}) bool {
	var late <-chan time.Time
	if d := b.m.o.FirstByte; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	select {
	case b.ready <- nc:
		return true
	case <-late:
	case <-evicted:
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
	return nil, &net.OpError{Op: "accept", Net: b.Addr().Network(), Addr: b.Addr(),
		Err: net.ErrClosed}
}

// Close ends this listener. The Mux and its other listeners stay open.
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

// readFirst reads the first byte of a connection that does not allow peeking. It returns a
// connection that yields the byte again.
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

// NetConn returns the connection below.
func (c *begun) NetConn() net.Conn { return c.Conn }

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
