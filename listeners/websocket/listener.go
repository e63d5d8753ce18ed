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
	// Backlog is how many connections may wait for Accept. Another one is refused with 503. Default 128.
	Backlog int
}

// maxPacket is the largest MQTT packet.
const maxPacket = 268435460

// A Listener is an http.Handler that upgrades requests to WebSocket connections, and a net.Listener that accepts them. Its methods
// may be called concurrently. It starts no goroutine.
type Listener struct {
	o Options // immutable

	mu      sync.Mutex
	changed sync.Cond // waiting or closed
	waiting []*conn   // guarded by mu
	coming  int       // handshakes that have a place in waiting; guarded by mu
	closed  bool      // guarded by mu
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
	checkPatterns(o.Origins)
	l := &Listener{o: o}
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
	if !l.reserve() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the MQTT broker takes no more connections now", http.StatusServiceUnavailable)
		return
	}
	var hw hijacked
	hw.ResponseWriter = w
	o := websocket.AcceptOptions{Subprotocols: subprotocols, OriginPatterns: l.o.Origins, CompressionMode: websocket.CompressionDisabled}
	if len(l.o.Origins) == 1 && l.o.Origins[0] == "*" {
		o.InsecureSkipVerify = true
	}
	if _, err := websocket.Accept(&hw, r, &o); err != nil {
		if hw.nc != nil {
			hw.nc.Close()
		}
		l.deliver(nil)
		return
	}
	c := newConn(hw.nc, l.o, hw.early)
	c.remote = l.remoteAddr(r, hw.nc.RemoteAddr())
	l.deliver(c)
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

// reserve takes a place in waiting before the handshake.
func (l *Listener) reserve() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.waiting)+l.coming >= l.o.Backlog {
		return false
	}
	l.coming++
	return true
}

// deliver uses the place, or gives it back if c is nil.
func (l *Listener) deliver(c *conn) {
	l.mu.Lock()
	l.coming--
	closed := l.closed
	if c != nil && !closed {
		l.waiting = append(l.waiting, c)
		l.changed.Signal()
	}
	l.mu.Unlock()
	if c != nil && closed {
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
