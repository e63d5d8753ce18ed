package dunlin

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/script"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the third way in which the scripts meet the broker: that of production, TCP, in real
// time. No clock says when the broker has come to rest. So a client that expects a packet waits for
// it, and a client that expects nothing sends PINGREQ: before its PINGRESP comes all that was due.

// tcpPatience bounds each wait. Nothing waits so long while all is well.
const tcpPatience = 30 * time.Second

// tcpHarness is a Broker that serves TCP on the loopback.
type tcpHarness struct {
	b      *Broker
	l      *takenListener
	served chan error
	links  []*tcpLink
}

// takenListener tells when the Broker has taken up a connection: it then wants the next one.
type takenListener struct {
	net.Listener
	last    string // the peer of what was accepted last. Accept is not called concurrently
	mu      sync.Mutex
	changed sync.Cond
	taken   map[string]bool // by peer. Guarded by mu
}

func (l *takenListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	l.taken[l.last] = true
	l.changed.Broadcast()
	l.mu.Unlock()
	nc, err := l.Listener.Accept()
	if err == nil {
		l.last = nc.RemoteAddr().String()
	}
	return nc, err
}

// await waits until the Broker has taken up the connection from peer. Others may connect as well: a
// port may have been that of somebody else.
func (l *takenListener) await(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.taken[peer] {
		l.changed.Wait()
	}
	delete(l.taken, peer)
}

func newTCPHarness(cfg Config) (*tcpHarness, error) {
	b, err := New(cfg)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Close()
		return nil, err
	}
	h := &tcpHarness{b: b, l: &takenListener{Listener: l, taken: map[string]bool{}},
		served: make(chan error, 1)}
	h.l.changed.L = &h.l.mu
	go func() { h.served <- b.serve(h.l, nil, plain(l)) }()
	return h, nil
}

func (h *tcpHarness) Open(string) (script.Link, error) {
	if err := h.rest(nil); err != nil {
		return nil, err
	}
	nc, err := net.Dial("tcp", h.l.Addr().String())
	if err != nil {
		return nil, err
	}
	h.l.await(nc.LocalAddr().String())
	l := &tcpLink{h: h, nc: nc}
	h.links = append(h.links, l)
	h.each(func(c *conn) {
		if c.nc.RemoteAddr().String() == nc.LocalAddr().String() {
			l.conn = c
		}
	})
	return l, nil
}

// each calls f for each connection of the Broker.
func (h *tcpHarness) each(f func(*conn)) {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	for c := range h.b.early {
		f(c)
	}
	for c := range h.b.conns {
		f(c)
	}
}

// Advance is not called: scripts that are Timed do not come here.
func (h *tcpHarness) Advance(time.Duration) { panic("BUG: a script that needs virtual time") }

func (h *tcpHarness) Close() {
	for _, l := range h.links {
		l.nc.Close()
	}
	h.b.Close()
	<-h.served
}

// rest waits until the Broker has handled what all but l have sent, has let go those that have
// gone, and has looked for the retained messages of new subscriptions.
func (h *tcpHarness) rest(l *tcpLink) error {
	for _, x := range h.links {
		if x != l && x.unsettled {
			if err := x.settle(); err != nil {
				return err
			}
		}
	}
	for end := time.Now().Add(tcpPatience); h.busy(); runtime.Gosched() {
		if time.Now().After(end) {
			return errors.New("the broker does not come to rest")
		}
	}
	return nil
}

func (h *tcpHarness) busy() (busy bool) {
	w := &h.b.walkers
	w.mu.Lock()
	busy = w.running > 0
	w.mu.Unlock()
	h.each(func(c *conn) {
		for _, l := range h.links {
			busy = busy || l.cut && l.conn == c
		}
	})
	return busy
}

// A tcpLink is the client's end.
type tcpLink struct {
	h    *tcpHarness
	nc   net.Conn
	conn *conn // the Broker's end; nil if it was turned away

	sent     []byte // the beginning of a packet
	connect  *packets.Connect
	left     bool // sent DISCONNECT, or what is no packet: the Broker ends it
	pings    int  // how many PINGREQ were sent
	accepted bool // got CONNACK with success
	pongs    int  // how many PINGRESP have come

	arrived   []byte // not looked at
	in        []byte // whole packets for the script
	unsettled bool   // sent something since the last settle
	closed    bool   // by the broker
	cut       bool   // by the script
	failed    error  // what Recv cannot return
}

func (l *tcpLink) Send(b []byte) error {
	if err := l.h.rest(l); err != nil {
		return err
	}
	l.unsettled = true
	l.note(b)
	l.nc.SetWriteDeadline(time.Now().Add(tcpPatience))
	l.nc.Write(b) // that the broker has closed it shows in Recv
	return nil
}

// note looks at what is sent, to know when a PINGREQ may be.
func (l *tcpLink) note(b []byte) {
	l.sent = append(l.sent, b...)
	for !l.left {
		h, err := packets.ParseHeader(l.sent, l.version())
		if errors.Is(err, packets.ErrShort) || err == nil && len(l.sent) < h.Len+h.Remaining {
			return
		}
		switch {
		case err != nil:
			l.left = true
			return
		case l.connect == nil:
			p, _, err := packets.Decode(l.sent, packets.V5, packets.Limits{})
			if l.connect, _ = p.(*packets.Connect); err != nil || l.connect == nil {
				l.left = true
				return
			}
		case h.Type == packets.TypePingreq:
			l.pings++
		case h.Type == packets.TypeDisconnect:
			l.left = true
		}
		l.sent = l.sent[h.Len+h.Remaining:]
	}
}

// version is that of the packets that the client sends.
func (l *tcpLink) version() packets.Version {
	if l.connect == nil {
		return packets.V5
	}
	return l.connect.Version
}

// mayPing says whether the standard allows a PINGREQ here.
func (l *tcpLink) mayPing() bool {
	return !l.left && l.connect != nil && len(l.sent) == 0 &&
		(l.accepted || !l.connect.Properties.Has(packets.AuthenticationMethod))
}

// settle waits until the Broker has handled what was sent. Where no PINGREQ may be sent, within a
// packet or while the client authenticates, it does not wait, and l stays unsettled.
func (l *tcpLink) settle() error {
	switch {
	case l.closed || l.cut:
	case l.left:
		for !l.closed && l.failed == nil {
			l.read()
		}
	case l.mayPing():
		l.note([]byte{0xC0, 0})
		own := l.pings
		l.nc.Write([]byte{0xC0, 0})
		for l.pongs < own && !l.closed && l.failed == nil {
			l.readUntil(own)
		}
	default:
		return nil
	}
	l.unsettled = false
	return l.failed
}

func (l *tcpLink) read() { l.readUntil(0) }

// readUntil reads what comes next. The PINGRESP with the number own is not for the script.
func (l *tcpLink) readUntil(own int) {
	var b [4096]byte
	l.nc.SetReadDeadline(time.Now().Add(tcpPatience))
	n, err := l.nc.Read(b[:])
	l.arrived = append(l.arrived, b[:n]...)
	for len(l.arrived) > 0 {
		h, err := packets.ParseHeader(l.arrived, packets.V5)
		if err != nil || len(l.arrived) < h.Len+h.Remaining {
			break
		}
		p := l.arrived[:h.Len+h.Remaining]
		l.arrived = l.arrived[len(p):]
		switch h.Type {
		case packets.TypeConnack:
			l.accepted = len(p) > 3 && p[3] == 0
		case packets.TypePingresp:
			if l.pongs++; l.pongs == own {
				continue
			}
		}
		l.in = append(l.in, p...)
	}
	if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() {
		l.failed = fmt.Errorf("nothing comes within %v", tcpPatience)
	} else if err != nil {
		l.closed = true
		l.in, l.arrived = append(l.in, l.arrived...), nil
	}
}

// Await is that of script.Waiter.
func (l *tcpLink) Await() ([]byte, bool) {
	for len(l.in) == 0 && !l.closed && l.failed == nil {
		l.read()
	}
	return l.taken()
}

// Recv returns all that the Broker sends because of what has happened. Where no PINGREQ may be sent
// it returns what it has.
func (l *tcpLink) Recv() ([]byte, bool) {
	err := l.h.rest(l)
	if err == nil {
		err = l.settle()
	}
	if l.failed == nil {
		l.failed = err
	}
	return l.taken()
}

func (l *tcpLink) taken() ([]byte, bool) {
	b := l.in
	l.in = nil
	return b, l.closed
}

func (l *tcpLink) Close() {
	l.cut, l.unsettled = true, false
	l.nc.Close()
}
