// Package quic carries MQTT over QUIC. Each connection has one bidirectional stream, which the
// client opens. The stream carries MQTT packets, as TCP and TLS do. The ALPN name is "mqtt". A
// [Listener] is a net.Listener for a broker's Serve:
//
//	l, err := quic.Listen("udp", ":14567", tlsConfig, quic.Options{})
//	...
//	err = broker.Serve(l)
//
// github.com/quic-go/quic-go is the transport. There is no standard for MQTT over QUIC yet. This is
// the form with one stream that existing clients use (EMQX, NanoSDK).
package quic

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/dunlin-mqtt/dunlin/listeners/internal/waiting"
)

// ALPN is the name of the protocol in the TLS handshake.
const ALPN = "mqtt"

// Options of a Listener. The zero value is a safe default. For durations and limits, a negative
// value means no bound.
type Options struct {
	// KeepAlivePeriod is how often an idle connection is probed, so that neither a peer nor a NAT
	// in between drops it: MQTT clients may be silent for longer. Default 20 s.
	KeepAlivePeriod time.Duration
	// MaxIdleTimeout ends a connection whose peer does not answer for this time. Default 60 s. A
	// negative value leaves the time to the client.
	MaxIdleTimeout time.Duration
	// StreamTimeout bounds the time between the handshake and the client's stream. Default 10 s.
	StreamTimeout time.Duration
	// Backlog bounds the connections between their handshake and Accept. One address (IPv4, or a
	// /64 of IPv6) may hold as many places as are free: half of them if it is the only address. An
	// address that holds as many as it may loses its oldest connection without a stream to its
	// newest. When no place is free, an address that holds none takes the oldest place of all. A
	// connection that gets no place is refused. Default 128. There is always a bound.
	Backlog int
	// MaxHandshakes bounds the handshakes in progress. One address may hold as many places as are
	// free. A handshake without a place is refused. While more than an eighth of the places are
	// taken, a client must first prove that its address is its own, which takes one more round trip
	// (RFC 9000, 8.1.2). Default 1,024. There is always a bound.
	MaxHandshakes int
	// ReceiveWindow bounds the bytes of a connection that are received and not yet read, as while a
	// hook decides. A connection begins with at most 4 KiB. A hostile client sends frames of one
	// byte; each of them takes about 150 bytes of memory, which MaxMemory of the Broker does not
	// know of: with the default 5 MB for a connection. A connection takes at most one window in a
	// round trip. Default 32 KiB, at least 4 KiB. There is always a bound.
	ReceiveWindow int
	// Admit is called with the client's address before the handshake. If it returns an error, the
	// connection is refused. Set it to the Broker's Admits, so that banned addresses and addresses
	// at their limits cost no handshake and hold no places here. It must not block. Nil admits
	// every address.
	Admit func(from net.Addr) error
}

// setDefaults fills in what is zero.
func (o *Options) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.KeepAlivePeriod, 20*time.Second)
	def(&o.MaxIdleTimeout, time.Minute)
	def(&o.StreamTimeout, 10*time.Second)
	if o.Backlog <= 0 {
		o.Backlog = 128
	}
	if o.MaxHandshakes <= 0 {
		o.MaxHandshakes = 1024
	}
	if o.ReceiveWindow <= 0 {
		o.ReceiveWindow = 32 << 10
	}
	o.ReceiveWindow = max(o.ReceiveWindow, 4<<10)
}

// config is what the transport is told.
func (o *Options) config() *quic.Config {
	idle := o.MaxIdleTimeout
	if idle < 0 {
		idle = 1 << 62 // the client's decides
	}
	window := uint64(o.ReceiveWindow)
	return &quic.Config{
		KeepAlivePeriod: max(o.KeepAlivePeriod, 0), MaxIdleTimeout: idle, MaxIncomingStreams: 1,
		MaxIncomingUniStreams:      -1,
		InitialStreamReceiveWindow: min(window, 4<<10), MaxStreamReceiveWindow: window,
		InitialConnectionReceiveWindow: min(window, 4<<10), MaxConnectionReceiveWindow: window,
	}
}

// Codes with which a connection is closed (RFC 9000, 20.2). MQTT has its own Reason Codes before
// that.
const (
	codeDone quic.ApplicationErrorCode = 0
	codeBusy quic.ApplicationErrorCode = 1
	codeLate quic.ApplicationErrorCode = 2
)

// A Listener is a net.Listener of QUIC connections. Its methods may be called concurrently.
type Listener struct {
	o       Options
	socket  net.PacketConn
	tr      *quic.Transport
	ln      *quic.Listener
	ready   chan net.Conn
	ctx     context.Context // ends with the Listener
	cancel  context.CancelFunc
	running sync.WaitGroup // the accept loop and pending connections
	failed  chan struct{}  // closed when nothing comes any more although nobody has called Close
	err     error          // why; set before that

	handshakes *waiting.Room // connections before the end of their handshake
	pending    *waiting.Room // connections between handshake and Accept

	mu sync.Mutex
	// the Listener itself and its connections: the socket is closed with the last; guarded by mu
	users int
}

// Listen opens a UDP socket and listens on it. conf must have a certificate, and may ask for client
// certificates. Listen sets NextProtos and MinVersion in a copy of conf.
func Listen(network, address string, conf *tls.Config, o Options) (*Listener, error) {
	addr, err := net.ResolveUDPAddr(network, address)
	if err != nil {
		return nil, err
	}
	socket, err := net.ListenUDP(network, addr)
	if err != nil {
		return nil, err
	}
	l, err := New(socket, conf, o)
	if err != nil {
		socket.Close()
	}
	return l, err
}

// New listens on a socket that the caller has opened. If New succeeds, the Listener owns the
// socket. New starts a goroutine; Close waits for it.
func New(socket net.PacketConn, conf *tls.Config, o Options) (*Listener, error) {
	if conf == nil || len(conf.Certificates) == 0 && conf.GetCertificate == nil &&
		conf.GetConfigForClient == nil {
		return nil, errors.New(
			"quic: the tls.Config has no certificate, and QUIC cannot do without")
	}
	conf = conf.Clone()
	conf.NextProtos, conf.MinVersion = []string{ALPN}, tls.VersionTLS13
	o.setDefaults()
	l := &Listener{
		o: o, socket: socket, ready: make(chan net.Conn), failed: make(chan struct{}), users: 1,
		handshakes: waiting.NewRoom(o.MaxHandshakes), pending: waiting.NewRoom(o.Backlog),
	}
	l.tr = &quic.Transport{Conn: socket, VerifySourceAddress: l.doubtful, ConnContext: l.admit}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	var err error
	if l.ln, err = l.tr.Listen(conf, o.config()); err != nil {
		l.cancel()
		l.tr.Close()
		return nil, fmt.Errorf("quic: %w", err)
	}
	l.running.Go(l.accept) // Close waits for it
	return l, nil
}

// doubtful says whether a client must first prove that its address is its own.
func (l *Listener) doubtful(net.Addr) bool { return l.handshakes.Len() > l.o.MaxHandshakes/8 }

// errRefused makes the transport refuse a connection.
var errRefused = errors.New("quic: the connection is not admitted")

// handshake is a key of the context of a connection. Its value is the function that gives back the
// place in handshakes.
type handshake struct{}

// admit decides whether a client may begin its handshake. ctx ends with the connection, or when the
// handshake fails.
func (l *Listener) admit(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	if l.o.Admit != nil && l.o.Admit(info.RemoteAddr) != nil {
		return nil, errRefused
	}
	place := l.handshakes.Enter(info.RemoteAddr, nil)
	if place == nil {
		return nil, errRefused
	}
	stop := context.AfterFunc(ctx, func() { place.Leave() })
	return context.WithValue(ctx, handshake{}, func() {
		stop()
		place.Leave()
	}), nil
}

// errBusy is the reason for closing a connection without a stream that makes room for another one.
var errBusy = errors.New("quic: too many connections are waiting")

// accept accepts connections after their handshake. For each one it starts a goroutine that waits
// for the stream.
func (l *Listener) accept() {
	for {
		qc, err := l.ln.Accept(l.ctx)
		if err != nil {
			if l.ctx.Err() == nil { // else it is closed
				l.err = err
				close(l.failed)
			}
			return
		}
		qc.Context().Value(handshake{}).(func())()
		ctx, cancel := context.WithCancelCause(l.ctx)
		place := l.pending.Enter(qc.RemoteAddr(), func() { cancel(errBusy) })
		if place == nil {
			cancel(nil)
			qc.CloseWithError(codeBusy, "too many connections are waiting")
			continue
		}
		l.mu.Lock()
		l.users++
		l.mu.Unlock()
		l.running.Go(func() { // Close waits for it
			defer cancel(nil)
			defer place.Leave()
			l.open(ctx, qc, place)
		})
	}
}

// open waits for the stream of a connection, then for Accept. It ends with ctx.
func (l *Listener) open(ctx context.Context, qc *quic.Conn, place *waiting.Place) {
	limited := ctx
	if l.o.StreamTimeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, l.o.StreamTimeout)
		defer cancel()
	}
	s, err := qc.AcceptStream(limited)
	if err != nil || !place.OnEvict(nil) {
		if context.Cause(ctx) == errBusy {
			qc.CloseWithError(codeBusy, "too many connections are waiting")
		} else {
			qc.CloseWithError(codeLate, "no stream was opened")
		}
		l.release()
		return
	}
	c := &conn{Stream: s, l: l, qc: qc}
	select {
	case l.ready <- c:
	case <-l.ctx.Done():
		c.Close()
	case <-qc.Context().Done(): // the client has left
		c.Close()
	}
}

// release closes the socket with its last user.
func (l *Listener) release() {
	l.mu.Lock()
	l.users--
	last := l.users == 0
	l.mu.Unlock()
	if last {
		l.tr.Close()
		l.socket.Close()
	}
}

// Accept waits for a connection whose client has opened its stream. After Close it fails with
// net.ErrClosed, and with another error when the socket has failed.
//
// A connection has the methods CloseWrite, which ends its stream in one direction, and
// ConnectionState for TLS. If it is closed without CloseWrite, pending bytes are lost.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.ctx.Done():
	case <-l.failed:
	}
	err := net.ErrClosed
	if l.ctx.Err() == nil {
		err = l.err
	}
	return nil, &net.OpError{Op: "accept", Net: "quic", Addr: l.Addr(), Err: err}
}

// Close accepts no more connections, and closes those that nobody has accepted. Accepted
// connections stay open. The socket is closed with the last of them. A second Close fails with
// net.ErrClosed.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.ctx.Err() != nil {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: "quic", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.cancel()
	l.mu.Unlock()
	err := l.ln.Close()
	l.running.Wait()
	l.release()
	return err
}

// Addr returns the address of the socket.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// A conn is a QUIC connection with its one stream, as a net.Conn. Read, Write and the deadlines are
// those of the stream.
type conn struct {
	*quic.Stream
	l    *Listener
	qc   *quic.Conn
	once sync.Once
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	var app *quic.ApplicationError
	if errors.As(err, &app) && app.Remote && app.ErrorCode == codeDone {
		err = io.EOF // the client has closed the connection rather than the stream
	}
	return n, err
}

// CloseWrite ends writing. Bytes written before still arrive.
func (c *conn) CloseWrite() error { return c.Stream.Close() }

// Close ends the connection at once.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.qc.CloseWithError(codeDone, "")
		c.l.release()
	})
	return err
}

func (c *conn) LocalAddr() net.Addr  { return c.qc.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr { return c.qc.RemoteAddr() }

// ConnectionState is that of TLS.
func (c *conn) ConnectionState() tls.ConnectionState { return c.qc.ConnectionState().TLS }
