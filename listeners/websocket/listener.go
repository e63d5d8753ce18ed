// Package websocket carries MQTT over WebSocket (chapter 6 of both standards). A [Listener] is an
// http.Handler for any path of a web server, and at the same time a net.Listener for a broker's
// Serve:
//
//	l := websocket.New(websocket.Options{})
//	mux.Handle("/mqtt", l)
//	go broker.Serve(l)
//	http.Serve(tcp, mux)
//
// github.com/coder/websocket performs the handshake. This package reads and writes the frames
// itself, because a net.Conn for a broker must survive a read deadline that passes (as Keep Alive
// does), needs no goroutine while it is idle, and should write without waiting. Nothing is
// compressed: a few bytes of a client that is not authenticated must not become many.
//
// WebSocket needs HTTP/1.1. A server that offers HTTP/2 on the same port still offers HTTP/1.1, and
// clients use that for WebSocket.
package websocket

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/dunlin-mqtt/dunlin/listeners/internal/waiting"
)

// Options of a Listener. The zero value is a safe default. For limits and durations, zero means the
// default and a negative value means no bound.
type Options struct {
	// Origins lists the web pages that may connect, besides pages of the same host. Each is a
	// pattern of path.Match for the host, such as "example.com" or "*.example.com", or with the
	// scheme, "https://example.com". A single "*" lets every page connect. The rule does not apply
	// to programs that send no Origin: they may connect. Without the rule, any web page that a user
	// visits could talk to a broker in the user's network. Default: only pages of the same host.
	Origins []string
	// MaxFrame and MaxMessage bound one frame and one message, in bytes. A larger one closes the
	// connection with 1009. Frames are not collected in memory, so these are not bounds of memory.
	// Default 268,435,460, the largest MQTT packet.
	MaxFrame, MaxMessage int64
	// PingInterval is how long a client may be silent before it gets a ping. If it has not answered
	// after the same time again, the connection is closed. Zero or negative: no pings; MQTT has its
	// own Keep Alive.
	PingInterval time.Duration
	// TrustedProxies are the addresses of reverse proxies whose headers are trusted. RemoteAddr is
	// then the last address in X-Forwarded-For that is not a trusted proxy. The first value of
	// X-Forwarded-Host is the host that an Origin is compared with. Default: no proxy is trusted,
	// and both headers are ignored.
	TrustedProxies []netip.Prefix
	// AllowNoSubprotocol accepts clients that offer no WebSocket subprotocol, as some libraries for
	// small devices do. The standard requires "mqtt" [MQTT-6.0.0-3]. Clients that offer only other
	// names are always refused. Default: every client must offer "mqtt".
	AllowNoSubprotocol bool
	// Backlog bounds the connections that are in their handshake or wait for Accept. One address
	// (IPv4, or a /64 of IPv6) may hold as many places as are free. A connection without a place is
	// refused with 503. Default 128. There is always a bound.
	Backlog int
	// MaxPending bounds the HTTP connections of a server with ConnState that have not become
	// WebSocket connections. Default 1,024.
	MaxPending int
	// Admit is called with the client's address before the handshake, and by ConnState with the
	// peer of each new HTTP connection. If it returns an error, the handshake is refused with 503,
	// or ConnState closes the connection. Set it to the Broker's Admits, so that banned addresses
	// and addresses at their limits hold no places here. It must not block. Nil admits every
	// address.
	Admit func(from net.Addr) error
}

// maxPacket is the largest MQTT packet.
const maxPacket = 268435460

// A Listener is an http.Handler that upgrades requests to WebSocket connections, and a net.Listener
// that accepts them. Its methods may be called concurrently. It starts no goroutine.
type Listener struct {
	// Immutable.
	o       Options
	backlog *waiting.Room // handshakes, and connections that wait for Accept
	pending *waiting.Room // HTTP connections that ConnState was told about

	mu      sync.Mutex
	changed sync.Cond                   // waiting or closed
	waiting []*conn                     // guarded by mu
	closed  bool                        // guarded by mu
	places  map[net.Conn]*waiting.Place // in pending; guarded by mu
}

// New returns a Listener that can be mounted and served. Like http.ServeMux it panics if one of
// Origins is not a valid pattern.
func New(o Options) *Listener {
	for n, p := range map[*int64]int64{&o.MaxFrame: o.MaxFrame, &o.MaxMessage: o.MaxMessage} {
		switch {
		case p == 0:
			*n = maxPacket
		case p < 0:
			*n = 1<<63 - 1
		}
	}
	if o.Backlog <= 0 {
		o.Backlog = 128
	}
	if o.MaxPending == 0 {
		o.MaxPending = 1024
	}
	checkPatterns(o.Origins)
	l := &Listener{
		o: o, backlog: waiting.NewRoom(o.Backlog), pending: waiting.NewRoom(o.MaxPending),
		places: make(map[net.Conn]*waiting.Place),
	}
	l.changed.L = &l.mu
	return l
}

// checkPatterns panics if a pattern is not valid.
func checkPatterns(origins []string) {
	for _, p := range origins {
		if _, err := path.Match(p, ""); err != nil {
			panic(fmt.Sprintf("websocket: Options.Origins: %q is no pattern of path.Match", p))
		}
	}
}

// subprotocols are the names under which MQTT is offered, the usual one first [MQTT-6.0.0-3].
var subprotocols = []string{"mqtt", "mqttv3.1"}

// ServeHTTP upgrades a WebSocket request and returns. The connection then waits for Accept. The
// path does not matter. ServeHTTP refuses these requests with an HTTP status:
//
//   - Requests that are not a WebSocket handshake (426, 400).
//   - Requests without the subprotocol mqtt (400).
//   - Requests whose Origin is not allowed (403).
//   - Requests whose connection cannot be taken over, because of HTTP/2 or a middleware (501).
//   - Requests when the Listener is closed, or when too many connections wait (503).
func (l *Listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" && !l.offersMQTT(r.Header) {
		http.Error(w, `offer the WebSocket subprotocol "mqtt"`, http.StatusBadRequest)
		return
	}
	if !canHijack(w) {
		http.Error(w, "WebSocket needs HTTP/1.1, and no middleware that hides http.Hijacker",
			http.StatusNotImplemented)
		return
	}
	place := l.enter(w, l.remoteAddr(r, requestAddr(r)))
	if place == nil {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the MQTT broker takes no more connections now",
			http.StatusServiceUnavailable)
		return
	}
	c := l.shakeHands(w, r)
	if c == nil {
		place.Leave()
		return
	}
	c.remote, c.place = l.remoteAddr(r, c.remote), place
	l.deliver(c)
}

// handshakeTimeout bounds how long a client takes to read the answers to earlier requests. The
// answer to its handshake needs their room.
const handshakeTimeout = 10 * time.Second

// enter takes a place in the backlog for a handshake, if the client may have one. Other clients may
// take the place of a handshake that does not finish.
func (l *Listener) enter(w http.ResponseWriter, from net.Addr) *waiting.Place {
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed || l.o.Admit != nil && l.o.Admit(from) != nil {
		return nil
	}
	rc := http.NewResponseController(w)
	rc.SetWriteDeadline(time.Now().Add(handshakeTimeout)) // until Hijack, which removes it
	return l.backlog.Enter(from, func() { rc.SetWriteDeadline(time.Unix(1, 0)) })
}

// shakeHands answers a request and takes over its connection. It returns nil if that fails. Then it
// has told the client.
func (l *Listener) shakeHands(w http.ResponseWriter, r *http.Request) *conn {
	begun := time.Now()
	hw := hijacked{ResponseWriter: w}
	o := websocket.AcceptOptions{Subprotocols: subprotocols, OriginPatterns: l.o.Origins,
		CompressionMode: websocket.CompressionDisabled}
	if len(l.o.Origins) == 1 && l.o.Origins[0] == "*" {
		o.InsecureSkipVerify = true
	}
	_, err := websocket.Accept(&hw, l.normalized(r), &o)
	// package http does not say that it could not write the answer
	if err != nil || time.Since(begun) >= handshakeTimeout {
		if hw.nc != nil {
			hw.nc.Close()
		}
		return nil
	}
	return newConn(hw.nc, l.o, hw.early)
}

// ConnState is for http.Server.ConnState of a server whose port mainly serves the broker:
//
//	srv := &http.Server{Handler: mux, ConnState: l.ConnState,
//		ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
//
// Without MaxHeaderBytes each client that has not sent all of its request can make the server hold
// 1 MiB, which no limit of the Broker counts.
//
// It closes new connections that Options.Admit refuses. It bounds the connections that have not
// become WebSocket connections, including silent and idle ones, by Options.MaxPending. One address
// (IPv4, or a /64 of IPv6) may hold as many places as are free. An address that holds as many as it
// may loses its oldest connection to its newest. When no place is free, an address that holds none
// takes the oldest place of all.
func (l *Listener) ConnState(nc net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		var place *waiting.Place
		if l.o.Admit == nil || l.o.Admit(nc.RemoteAddr()) == nil {
			place = l.pending.Enter(nc.RemoteAddr(), func() { cut(nc) })
		}
		if place == nil {
			cut(nc)
			return
		}
		l.mu.Lock()
		l.places[nc] = place
		l.mu.Unlock()
	case http.StateHijacked, http.StateClosed:
		l.mu.Lock()
		place := l.places[nc]
		delete(l.places, nc)
		l.mu.Unlock()
		if place != nil {
			place.Leave()
		}
	}
}

// cut closes a connection of the HTTP server at once. Over TLS a proper Close may block for
// seconds.
func cut(nc net.Conn) {
	if x, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = x.NetConn()
	}
	nc.Close()
}

// canHijack checks, before the handshake is answered, that Hijack will work.
func canHijack(w http.ResponseWriter) bool {
	for {
		switch x := w.(type) {
		case http.Hijacker:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = x.Unwrap()
		default:
			return false
		}
	}
}

// offersMQTT looks for our names among the subprotocols.
func (l *Listener) offersMQTT(h http.Header) bool {
	offers := 0
	for _, v := range h.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(v, ",") {
			if offers++; ourName(name) != "" {
				return true
			}
		}
	}
	return offers == 0 && l.o.AllowNoSubprotocol
}

// ourName returns a subprotocol as we write it, or "" if it is not one of MQTT.
func ourName(offered string) string {
	for _, ours := range subprotocols {
		if strings.EqualFold(strings.TrimSpace(offered), ours) {
			return ours
		}
	}
	return ""
}

// normalized returns a copy of the request for the handshake of the library. "MQTT" is answered
// with "mqtt" [MQTT-6.0.0-4]. The host of the Origin counts as the same host with and without the
// default port, and under the name that a trusted proxy was called by.
func (l *Listener) normalized(r *http.Request) *http.Request {
	n := new(http.Request)
	*n = *r
	n.Header = r.Header.Clone()
	var offers []string
	for _, v := range r.Header.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(v, ",") {
			if ours := ourName(name); ours != "" {
				offers = append(offers, ours)
			}
		}
	}
	n.Header["Sec-Websocket-Protocol"] = offers
	n.Host = l.hostOf(r)
	origin, err := url.Parse(r.Header.Get("Origin"))
	if err == nil && origin.Host != "" && sameHost(origin.Scheme, origin.Host, n.Host) {
		n.Host = origin.Host
	}
	return n
}

// hostOf returns the host that the client has asked for, with the port if it is not the default.
func (l *Listener) hostOf(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if forwarded := r.Header.Get("X-Forwarded-Host"); forwarded != "" && err == nil &&
		l.trusts(peer.Addr()) {
		first, _, _ := strings.Cut(forwarded, ",")
		return strings.TrimSpace(first)
	}
	return r.Host
}

// sameHost compares two hosts, each with or without the default port of the scheme.
func sameHost(scheme, a, b string) bool {
	port := map[string]string{"http": ":80", "https": ":443"}[scheme]
	return strings.EqualFold(strings.TrimSuffix(a, port), strings.TrimSuffix(b, port))
}

// deliver lets a connection wait for Accept. It closes the connection if its place is gone.
func (l *Listener) deliver(c *conn) {
	l.mu.Lock()
	ok := !l.closed && c.place.OnEvict(nil) // evicted: its handshake took too long
	if ok {
		l.waiting = append(l.waiting, c)
		l.changed.Signal()
	}
	l.mu.Unlock()
	if !ok {
		c.place.Leave()
		c.end(false)
	}
}

// Accept waits for a connection. After Close it fails with net.ErrClosed.
//
// A connection behaves as net.Conn says. A deadline that passes leaves it usable. It has the method
// CloseWrite, which sends a Close frame. Over TLS it has ConnectionState. Without TLS it has
// TryWrite, which sends as much as it can without waiting.
func (l *Listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) == 0 && !l.closed {
		l.changed.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "websocket", Addr: l.Addr(), Err: net.ErrClosed}
	}
	c := l.waiting[0]
	l.waiting = append(l.waiting[:0], l.waiting[1:]...)
	c.place.Leave()
	c.place = nil
	c.startPings()
	if t, ok := c.nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		return &tlsConn{c, t.ConnectionState()}, nil
	}
	if c.try != nil {
		return &tryConn{c}, nil
	}
	return c, nil
}

// Close ends waiting Accept calls, and closes the connections that nobody has accepted. Accepted
// connections stay open. Later requests are refused. The HTTP server stays open. A second Close
// fails with net.ErrClosed.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: "websocket", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	rest := l.waiting
	l.waiting = nil
	l.changed.Broadcast()
	l.mu.Unlock()
	for _, c := range rest {
		c.end(false)
	}
	return nil
}

// Addr returns an address of the network "websocket". The HTTP server decides through which socket
// and path requests come.
func (l *Listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "websocket" }
func (addr) String() string  { return "websocket" }

// hijacked keeps the connection of a ResponseWriter for the Listener. The library wants to own the
// connection, so it gets a stand-in that it may close.
type hijacked struct {
	http.ResponseWriter
	nc    net.Conn
	early []byte // what came together with the request
}

// Hijack implements http.Hijacker.
func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if err := rw.Flush(); err != nil {
		nc.Close()
		return nil, nil, err
	}
	h.nc = nc
	if n := rw.Reader.Buffered(); n > 0 {
		h.early, _ = rw.Peek(n)
		h.early = append([]byte(nil), h.early...)
	}
	mine, _ := net.Pipe()
	mine.Close()
	return mine, bufio.NewReadWriter(bufio.NewReaderSize(mine, 16), bufio.NewWriterSize(mine, 16)),
		nil
}

// requestAddr is the address of the peer of a request whose connection has not been taken over.
func requestAddr(r *http.Request) net.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return &net.UnixAddr{Net: "unix", Name: r.RemoteAddr}
	}
	return net.TCPAddrFromAddrPort(at)
}

// remoteAddr is the peer, or whom a trusted proxy names.
func (l *Listener) remoteAddr(r *http.Request, peer net.Addr) net.Addr {
	at, err := netip.ParseAddrPort(peer.String())
	if err != nil || !l.trusts(at.Addr()) {
		return peer
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		ip, err := parseHop(strings.TrimSpace(hops[i]))
		if err != nil {
			break // nobody we trust wrote this, or what it wrote is of no use
		}
		peer = net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))
		if !l.trusts(ip) {
			break
		}
	}
	return peer
}

// parseHop reads an address of X-Forwarded-For, where some proxies add the port.
func parseHop(s string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return ip.Unmap(), nil
	}
	ap, err := netip.ParseAddrPort(s)
	return ap.Addr().Unmap(), err
}

func (l *Listener) trusts(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	for _, p := range l.o.TrustedProxies {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// What Read returns after the connection was failed. The client has been told in a Close frame.
var (
	errText = errors.New(
		"websocket: the client sent a text frame; MQTT travels in binary frames")
	errTooBig   = errors.New("websocket: a frame or message is above the limit")
	errPing     = errors.New("websocket: a ping was not answered")
	errProtocol = errors.New("websocket: protocol error")
)
