package interop

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Control packet types of section 2.1.2, as they stand in the high half of the first byte.
const (
	typeConnect    = 1
	typeConnack    = 2
	typePublish    = 3
	typeSuback     = 9
	typePingreq    = 12
	typePingresp   = 13
	typeDisconnect = 14
)

var typeNames = [16]string{"0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL",
	"PUBCOMP", "SUBSCRIBE",
	"SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"}

// keptBody is how much of a packet a tap keeps. Every packet that a scenario looks into is shorter.
const keptBody = 512

// A packet is what a tap remembers of a control packet.
type packet struct {
	conn       int           // the Network Connection, counted from 0 for each tap
	fromBroker bool          // the direction
	at         time.Duration // since the tap was made
	header     []byte        // the fixed header
	body       []byte        // the rest, cut after keptBody bytes
	size       int           // the whole length of the rest
}

func (p packet) kind() byte { return p.header[0] >> 4 }

// String gives direction, time, name and bytes of the packet in one line.
func (p packet) String() string {
	arrow := "client -> broker"
	if p.fromBroker {
		arrow = "client <- broker"
	}
	more := ""
	if shown := p.body[:min(len(p.body), 96)]; len(shown) < p.size {
		more = fmt.Sprintf(" ... (%d bytes)", p.size)
	}
	return fmt.Sprintf("#%d %7.3fs %s %-11s % x | % x%s", p.conn, p.at.Seconds(), arrow,
		typeNames[p.kind()], p.header,
		p.body[:min(len(p.body), 96)], more)
}

// A tap stands between one client and the broker. It carries the bytes both ways unchanged,
// remembers the packets, so that a failed scenario can show them, and can cut the Network
// Connection as a broken network would.
type tap struct {
	label    string
	target   string
	listener net.Listener
	many     bool // immutable: whether it accepts more than one connection
	start    time.Time
	// the accepting goroutine and two for each connection; close waits for them
	relays sync.WaitGroup

	mu      sync.Mutex
	packets []packet      // guarded by mu
	lost    []int         // guarded by mu: connections that the broker ended
	conns   []net.Conn    // guarded by mu: both ends of the connections
	opened  int           // guarded by mu
	closed  bool          // guarded by mu
	changed chan struct{} // guarded by mu: closed, and made anew, at each change
}

// newTap gives a tap that lasts until the test ends, and which tells the test what it heard if that
// failed. Unless many is set it stops listening after the first connection, so that a client which
// was told to leave cannot come back.
func newTap(t *testing.T, label, target string, many bool) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("the tap of %s cannot listen: %v", label, err)
	}
	p := &tap{label: label, target: target, listener: l, many: many, start: time.Now(),
		changed: make(chan struct{})}
	p.relays.Go(p.accept)
	t.Cleanup(func() {
		p.close()
		if t.Failed() {
			t.Logf("what %s and the broker said:\n%s", label, p)
		}
	})
	return p
}

// port is the port on 127.0.0.1 that clients are to connect to.
func (p *tap) port() int { return p.listener.Addr().(*net.TCPAddr).Port }

func (p *tap) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		if !p.many {
			p.listener.Close()
		}
		broker, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		n := p.opened
		p.opened++
		p.conns = append(p.conns, client, broker)
		closed := p.closed
		p.mu.Unlock()
		if closed {
			client.Close()
			broker.Close()
			return
		}
		p.relays.Go(func() { p.relay(n, client, broker, false) })
		p.relays.Go(func() { p.relay(n, broker, client, true) })
	}
}

// relay carries one direction of a connection until the sender ends it, and then ends it towards
// the receiver. If the receiver has gone it still reads on, so that what the sender does is seen.
func (p *tap) relay(n int, from, to net.Conn, fromBroker bool) {
	s := splitter{emit: func(header, body []byte, size int) {
		p.note(func() {
			p.packets = append(p.packets, packet{n, fromBroker, time.Since(p.start), header, body,
				size})
		})
	}}
	buf := make([]byte, 64<<10)
	for {
		k, err := from.Read(buf)
		s.write(buf[:k])
		_, _ = to.Write(buf[:k])
		if err != nil {
			break
		}
	}
	if fromBroker {
		p.note(func() { p.lost = append(p.lost, n) })
	}
	_ = to.(*net.TCPConn).CloseWrite()
}

// note changes what the tap remembers and wakes who waits for that.
func (p *tap) note(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// cut ends every connection at once, without a DISCONNECT.
func (p *tap) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *tap) close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cut()
	p.relays.Wait()
}

// passed gives the packets so far.
func (p *tap) passed() []packet {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.packets[:len(p.packets):len(p.packets)]
}

// wait waits until a packet fulfils want, and gives it. It is false if none has before done is
// closed.
func (p *tap) wait(done <-chan struct{}, want func(packet) bool) (packet, bool) {
	for seen := 0; ; {
		p.mu.Lock()
		packets, changed := p.packets, p.changed
		p.mu.Unlock()
		for ; seen < len(packets); seen++ {
			if want(packets[seen]) {
				return packets[seen], true
			}
		}
		select {
		case <-changed:
		case <-done:
			return packet{}, false
		}
	}
}

// waitIdle waits until nothing has passed for d.
func (p *tap) waitIdle(d time.Duration) {
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(d):
			return
		}
	}
}

// waitLost waits until the broker has ended connection n. It is false if it has not before done is
// closed.
func (p *tap) waitLost(done <-chan struct{}, n int) bool {
	for {
		p.mu.Lock()
		lost, changed := slices.Contains(p.lost, n), p.changed
		p.mu.Unlock()
		if lost {
			return true
		}
		select {
		case <-changed:
		case <-done:
			return false
		}
	}
}

// disconnectCode is the Reason Code of the broker's DISCONNECT on connection n, or -1 if it sent
// none.
func (p *tap) disconnectCode(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.packets {
		if k.conn == n && k.fromBroker && k.kind() == typeDisconnect {
			if len(k.body) == 0 {
				return 0
			}
			return int(k.body[0])
		}
	}
	return -1
}

// String gives one line for each packet.
func (p *tap) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for i, k := range p.packets {
		if i == 60 {
			fmt.Fprintf(&b, "  ... and %d more\n", len(p.packets)-i)
			break
		}
		fmt.Fprintf(&b, "  %s\n", k)
	}
	for _, n := range p.lost {
		fmt.Fprintf(&b, "  #%d was closed by the broker\n", n)
	}
	return b.String()
}

// A splitter finds the control packets in a stream of bytes.
type splitter struct {
	header []byte
	body   []byte
	size   int // of the body
	left   int // bytes of the body to come
	inBody bool
	emit   func(header, body []byte, size int)
}

func (s *splitter) write(b []byte) {
	for len(b) > 0 {
		if !s.inBody {
			s.header = append(s.header, b[0])
			b = b[1:]
			if n := len(s.header); n < 2 || s.header[n-1]&0x80 != 0 && n < 5 {
				continue
			}
			size, _ := binary.Uvarint(s.header[1:])
			s.size, s.left, s.inBody = int(size), int(size), true
		}
		k := min(s.left, len(b))
		s.body = append(s.body, b[:min(k, keptBody-len(s.body))]...)
		s.left -= k
		b = b[k:]
		if s.left == 0 {
			s.emit(s.header, s.body, s.size)
			*s = splitter{emit: s.emit}
		}
	}
}

// subackCodes gives the Reason Codes of a SUBACK.
func subackCodes(p packet, v version) []byte {
	body := p.body[2:]
	if v == v5 {
		n, k := binary.Uvarint(body)
		body = body[k+int(n):]
	}
	return append([]byte(nil), body...)
}

// publishTopicLength gives the length of the Topic Name of a PUBLISH: 0 where a Topic Alias stands
// for it.
func publishTopicLength(p packet) int { return int(binary.BigEndian.Uint16(p.body)) }
