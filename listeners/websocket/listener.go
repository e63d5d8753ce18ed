// Package websocket carries MQTT over WebSocket (chapter 6 of both standards). A [Listener] is an http.Handler to mount on
// any path of any mux, and at the same time a net.Listener to hand to a broker's Serve:
//
//	l := websocket.New(websocket.Options{})
//	mux.Handle("/mqtt", l)
//	go broker.Serve(l)
//	http.Serve(tcp, mux)
//
// The handshake is that of github.com/coder/websocket. Frames are read and written here, because a net.Conn for a broker has to survive a
// read deadline that passes (Keep Alive is one), must need no goroutine while it is idle, and should be able to write without waiting.
// Nothing is compressed: a few bytes of a client that is not yet authenticated must not become many.
//
// It needs HTTP/1.1: a server that offers HTTP/2 on the same port keeps offering HTTP/1.1 as well, and that is what clients use for
// WebSocket.
package websocket

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/dunlin-mqtt/dunlin/listeners/internal/waiting"
)

// Options of a Listener. The zero value is a safe default. For limits and durations zero means the default and a negative value means none.
type Options struct {
	// Origins lists the web pages that may connect besides those of the same host, as host patterns such as "example.com" and
	// "*.example.com", or with their scheme, "https://example.com"; path.Match says how. A single "*" lets every page connect. Programs
	// that send no Origin are not concerned: any can connect. Default: the same host only. Without this rule any web page that a user
	// visits could talk to a broker on his network.
	Origins []string
	// MaxFrame and MaxMessage bound one frame and one message in bytes; a larger one closes with 1009. What a client sends is not gathered,
	// so this is no bound of memory. Default 268,435,460, the largest MQTT packet.
	MaxFrame, MaxMessage int64
	// PingInterval is how often a connection on which nothing comes is pinged; one that has not answered by the next time is closed. Zero
	// or negative: never; MQTT has its own Keep Alive.
	PingInterval time.Duration
	// TrustedProxies are the addresses of reverse proxies whose X-Forwarded-For is believed: RemoteAddr is then the last address in it that
	// is no trusted proxy. Default: none, and the header is ignored.
	TrustedProxies []netip.Prefix
	// Backlog is how many connections may be in their handshake or wait for Accept. One address (IPv4, or a /64 of IPv6) may hold as many
	// as are free. Another one is refused with 503. Default 128; none cannot be had.
	Backlog int
	// MaxPending bounds the HTTP connections that have not become WebSocket connections, of a server with ConnState. Default 1,024.
	MaxPending int
	// Admit is asked about the client's address before the handshake, and by ConnState about the peer of each new HTTP connection. An error
	// refuses the handshake with 503, and closes the connection in ConnState. Give it the Broker's Admits, so that banned addresses and
	// addresses at their limits do not hold places here. It must not block. Nil: every address is admitted.
	Admit func(from net.Addr) error
}

// maxPacket is the largest MQTT packet.
const maxPacket = 268435460

// A Listener is an http.Handler that upgrades requests to WebSocket connections, and a net.Listener that accepts them. Its methods
// may be called concurrently. It starts no goroutine.
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

// New returns a Listener that is ready to be mounted and served. It panics if one of Origins is no pattern, as http.ServeMux does.
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
		o: o, backlog: waiting.NewRoom(o.Backlog), pending: waiting.NewRoom(o.MaxPending), places: make(map[net.Conn]*waiting.Place),
	}
	l.changed.L = &l.mu
	return l
}

// checkPatterns panics if one is none.
func checkPatterns(origins []string) {
	for _, p := range origins {
		if _, err := path.Match(p, ""); err != nil {
			panic(fmt.Sprintf("websocket: Options.Origins: %q is no pattern of path.Match", p))
		}
	}
}

// subprotocols are the names under which MQTT is offered, the usual one first [MQTT-6.0.0-3].
var subprotocols = []string{"mqtt", "mqttv3.1"}

// ServeHTTP makes a connection of a WebSocket request and returns; the connection then waits for Accept. The path has no meaning to it.
// It refuses, with an HTTP status: requests that are no WebSocket handshake (426, 400), that do not offer the subprotocol mqtt (400),
// whose Origin is not allowed (403), that cannot be taken over (501: HTTP/2, or a middleware in between), and those that find the
// Listener closed or too many others waiting (503).
func (l *Listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" && !offersMQTT(r.Header) {
		http.Error(w, `offer the WebSocket subprotocol "mqtt"`, http.StatusBadRequest)
		return
	}
	if !canHijack(w) {
		http.Error(w, "WebSocket needs HTTP/1.1, and no middleware that hides http.Hijacker", http.StatusNotImplemented)
		return
	}
	place := l.enter(w, l.remoteAddr(r, requestAddr(r)))
	if place == nil {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the MQTT broker takes no more connections now", http.StatusServiceUnavailable)
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

// handshakeTimeout is how long a client may take to read the answers to earlier requests, so that there is room for that to its handshake.
const handshakeTimeout = 10 * time.Second

// enter takes a place in the backlog for a handshake, if the client may have one. The place of a handshake that does not come to its end
// goes to others when they need it.
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

// shakeHands answers a request and takes its connection over. It returns nil if that fails; the client has been told.
func (l *Listener) shakeHands(w http.ResponseWriter, r *http.Request) *conn {
	begun := time.Now()
	hw := hijacked{ResponseWriter: w}
	o := websocket.AcceptOptions{Subprotocols: subprotocols, OriginPatterns: l.o.Origins, CompressionMode: websocket.CompressionDisabled}
	if len(l.o.Origins) == 1 && l.o.Origins[0] == "*" {
		o.InsecureSkipVerify = true
	}
	_, err := websocket.Accept(&hw, r, &o)
	if err != nil || time.Since(begun) >= handshakeTimeout { // package http does not say that it could not write the answer
		if hw.nc != nil {
			hw.nc.Close()
		}
		return nil
	}
	return newConn(hw.nc, l.o, hw.early)
}

// ConnState is for http.Server.ConnState, of a server whose port is there for the broker:
//
//	srv := &http.Server{Handler: mux, ConnState: l.ConnState, ReadHeaderTimeout: 10 * time.Second}
//
// It closes new connections that Options.Admit refuses. It keeps the connections that have not become WebSocket connections, silent and
// idle ones included, within Options.MaxPending. One address (IPv4, or a /64 of IPv6) may hold as many of them as are free. When an address
// holds as many as it may, its oldest is closed for its newest; when all are held, the oldest of all is closed for an address that holds none.
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

// cut closes a connection of the HTTP server at once. Over TLS a proper Close may block for seconds.
func cut(nc net.Conn) {
	if x, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = x.NetConn()
	}
	nc.Close()
}

// canHijack looks for what Hijack needs before the handshake is answered.
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
func offersMQTT(h http.Header) bool {
	for _, v := range h.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(v, ",") {
			for _, ours := range subprotocols {
				if strings.EqualFold(strings.TrimSpace(name), ours) {
					return true
				}
			}
		}
	}
	return false
}

// deliver lets a connection wait for Accept, or closes it if there is no place for it any more.
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
// A connection behaves as net.Conn says: a deadline that passes leaves it usable. It has the methods CloseWrite, which says goodbye with
// a Close frame, where there is TLS below it ConnectionState, and otherwise TryWrite, which takes what can be sent without waiting.
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

// Close ends waiting Accept calls and closes the connections that nobody has accepted; those that were accepted go on. Requests
// are refused from then on. The HTTP server is not touched. A second Close fails with net.ErrClosed.
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

// Addr returns an address of the network "websocket": which socket and path requests come by is up to the HTTP server.
func (l *Listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "websocket" }
func (addr) String() string  { return "websocket" }

// hijacked keeps the connection of a ResponseWriter for us: the library, which wants to own it, gets a stand-in that it may close.
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
	return mine, bufio.NewReadWriter(bufio.NewReaderSize(mine, 16), bufio.NewWriterSize(mine, 16)), nil
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
	errText     = errors.New("websocket: the client sent a text frame; MQTT travels in binary frames")
	errTooBig   = errors.New("websocket: a frame or message is above the limit")
	errPing     = errors.New("websocket: a ping was not answered")
	errProtocol = errors.New("websocket: protocol error")
)
