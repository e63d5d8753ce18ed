package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"syscall"
	"time"
)

// A crowd is a part of the connections of scenario million. One goroutine runs it, and waits for
// all of them with one epoll descriptor. A connection is a descriptor and a member, nothing else,
// so that a process can have a million of them beside the broker.
type crowd struct {
	cfg         *config
	to          syscall.SockaddrInet4
	first, step int // member i is connection first + i*step
	members     []member
	epoll       int
	ask         chan func() // what run calls between two looks at the connections
	buf, out    []byte
	pad         []byte           // of a payload
	rest        map[int32][]byte // of a member: the beginning of a packet
	random      *rand.Rand

	// Connecting: each of members[next:] is due at its time.
	next     int
	start    int64
	rate     float64 // connections a second; 0: as fast as they are accepted
	underway int
	// Pinging: members[turn:], and then those before it, are due in this order.
	turn  int
	every int64 // nanoseconds between two PINGREQ of a connection; 0: there are none
	// Publishing.
	publishing bool
	from       int64   // when it began
	perSecond  float64 // messages
	begun      int     // how many of them have been sent
	// Leaving: members[:left] have.
	left int

	tally
}

// A tally is what has happened to a crowd.
type tally struct {
	open, refused, ended int // connections: those that are there, those that never were, the others
	pings, answered      int
	sent, got            int
	err                  error // the first
	connect, ping, delay hist
}

// A member is one connection.
type member struct {
	// When it was due, and after that when it sent its last PINGREQ, as now says it
	at    int64
	fd    int32
	state state
}

type state byte

const (
	absent      state = iota
	connecting        // TCP does
	greeting          // CONNACK is to come
	subscribing       // SUBACK is to come
	present
)

// How much a crowd does before it looks again at what has come, and how many of its connections
// are made at the same time: those of all crowds have to fit into the backlog of the listener.
const (
	mostAtOnce   = 64
	mostUnderway = 512
	mostSkipped  = 1000
)

// keepAlive is that of the connections, in seconds.
const keepAlive = 60

func newCrowd(cfg *config, to syscall.SockaddrInet4, first, step, members int) (*crowd, error) {
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &crowd{
		cfg: cfg, to: to, first: first, step: step, members: make([]member, members), epoll: epoll,
		ask: make(chan func()), buf: make([]byte, 64<<10), pad: make([]byte, cfg.size-stampLen),
		rest: make(map[int32][]byte), random: rand.New(rand.NewSource(int64(first))),
		next: members, left: members,
	}, nil
}

// run does all of the crowd until ask is closed. Then it closes what is open.
func (w *crowd) run() {
	defer func() {
		for i := range w.members {
			if w.members[i].state != absent {
				syscall.Close(int(w.members[i].fd))
			}
		}
		syscall.Close(w.epoll)
	}()
	events := make([]syscall.EpollEvent, 512)
	for {
		n, err := syscall.EpollWait(w.epoll, events, 1)
		if err != nil && err != syscall.EINTR {
			w.note(os.NewSyscallError("epoll_wait", err))
		}
		for _, e := range events[:max(n, 0)] {
			w.ready(e.Fd)
		}
		select {
		case f, more := <-w.ask:
			if !more {
				return
			}
			f()
		default:
		}
		w.connectDue()
		w.pingDue()
		w.publishDue()
		w.leave()
	}
}

func (w *crowd) note(err error) {
	if w.err == nil {
		w.err = err
	}
}

// lose is the end of a connection that was to go on.
func (w *crowd) lose(i int32, err error) {
	m := &w.members[i]
	if m.state == present {
		w.ended++
	} else {
		w.refused++
	}
	w.note(fmt.Errorf("connection %d: %w", w.first+int(i)*w.step, err))
	w.close(i)
}

func (w *crowd) close(i int32) {
	m := &w.members[i]
	if m.state == present {
		w.open--
	} else {
		w.underway--
	}
	m.state = absent
	delete(w.rest, i)
	syscall.Close(int(m.fd))
}

// giveUp is the end of all that have waited too long for their CONNACK or SUBACK.
func (w *crowd) giveUp() {
	for i := range w.members {
		if s := w.members[i].state; s != absent && s != present {
			w.lose(int32(i), errors.New("no answer in time"))
		}
	}
}

// connectDue begins the connections that are due.
func (w *crowd) connectDue() {
	t := now()
	for n := 0; n < mostAtOnce && w.next < len(w.members) && w.underway < mostUnderway; n++ {
		due := t
		if w.rate > 0 {
			due = w.start + int64(float64(w.next)/w.rate*1e9)
		}
		if due > t {
			return
		}
		if err := w.dial(int32(w.next), due); err != nil {
			w.refused++
			w.note(err)
		}
		w.next++
	}
}

// sources is how many addresses the connections come from: each has the ports of the system.
const sources = 240

// dial begins the connection of member i, which was due at the given time.
func (w *crowd) dial(i int32, due int64) error {
	fd, err := syscall.Socket(syscall.AF_INET,
		syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if w.to.Addr[0] == 127 {
		syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, 24, 1) // IP_BIND_ADDRESS_NO_PORT
		number := w.first + int(i)*w.step
		source := syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + number%sources)}}
		err = os.NewSyscallError("bind", syscall.Bind(fd, &source))
	}
	if err == nil {
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
		if err = syscall.Connect(fd, &w.to); err == syscall.EINPROGRESS {
			err = nil
		}
		err = os.NewSyscallError("connect", err)
	}
	if err == nil {
		const edge = 1 << 31 // EPOLLET
		err = os.NewSyscallError("epoll_ctl", syscall.EpollCtl(w.epoll, syscall.EPOLL_CTL_ADD, fd,
			&syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | edge, Fd: i}))
	}
	if err != nil {
		syscall.Close(fd)
		return err
	}
	w.members[i] = member{at: due, fd: int32(fd), state: connecting}
	w.underway++
	return nil
}

// ready is for member i, whose socket has something to say.
func (w *crowd) ready(i int32) {
	m := &w.members[i]
	if m.state == absent { // it was closed a moment ago
		return
	}
	if m.state == connecting {
		code, err := syscall.GetsockoptInt(int(m.fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err == nil && code != 0 {
			err = syscall.Errno(code)
		}
		if err != nil {
			w.lose(i, os.NewSyscallError("connect", err))
			return
		}
		m.state = greeting
		w.write(i, connectPacket(w.cfg.version, dialOpts{
			id: fmt.Sprintf("million-%d", w.first+int(i)*w.step), clean: true, keepAlive: keepAlive,
		}))
	}
	for m.state != absent {
		n := copy(w.buf, w.rest[i])
		more, err := syscall.Read(int(m.fd), w.buf[n:])
		switch {
		case err == syscall.EAGAIN:
			return
		case err == syscall.EINTR:
			continue
		case err != nil:
			w.lose(i, os.NewSyscallError("read", err))
			return
		case more == 0:
			w.lose(i, errors.New("the broker closed it"))
			return
		}
		c := conn{v: w.cfg.version, buf: w.buf[:n+more], w: n + more}
		if err := c.each(func(first byte, body []byte) error {
			return w.packet(i, first, body)
		}); err != nil {
			w.lose(i, err)
			return
		}
		if delete(w.rest, i); c.r < n+more && m.state != absent {
			w.rest[i] = append([]byte(nil), w.buf[c.r:n+more]...)
		}
	}
}

// packet handles a packet for member i. An error is the end of the connection.
func (w *crowd) packet(i int32, first byte, body []byte) error {
	m, t := &w.members[i], now()
	switch kind := first >> 4; {
	case m.state == absent: // it ended with an earlier packet
	case kind == pktConnack && m.state == greeting && len(body) > 1:
		if body[1] != 0 {
			return fmt.Errorf("CONNACK with Reason Code %#x", body[1])
		}
		w.connect.add(t - m.at)
		m.state = subscribing
		w.write(i, subscribePacket(w.cfg.version, 1, []string{w.topic(w.first + int(i)*w.step)},
			w.cfg.qos))
	case kind == pktSuback && m.state == subscribing && len(body) > 2:
		if code := body[len(body)-1]; code >= 0x80 {
			return fmt.Errorf("SUBACK with Reason Code %#x", code)
		}
		m.state, m.at = present, t
		w.open++
		w.underway--
	case kind == pktPingresp && m.state == present:
		w.ping.add(t - m.at)
		w.answered++
	case kind == pktPublish && m.state == present:
		id, payload, err := publishParts(w.cfg.version, first, body)
		if err != nil || len(payload) < stampLen {
			return errMalformed
		}
		w.delay.add(t - int64(binary.BigEndian.Uint64(payload)))
		w.got++
		if id != 0 {
			w.write(i, []byte{pktPuback << 4, 2, byte(id >> 8), byte(id)})
		}
	case kind == pktPuback && m.state == present:
	default:
		return fmt.Errorf("unexpected packet %#x % x", first, body[:min(len(body), 8)])
	}
	return nil
}

func (w *crowd) topic(connection int) string { return fmt.Sprintf("million/%d/cmd", connection) }

// write writes a packet, for which the socket of an idle connection has always room.
func (w *crowd) write(i int32, packet []byte) {
	n, err := syscall.Write(int(w.members[i].fd), packet)
	if err == nil && n < len(packet) {
		err = syscall.EAGAIN
	}
	if err != nil {
		w.lose(i, os.NewSyscallError("write", err))
	}
}

// pingDue sends PINGREQ on the connections for which it is time. All become due in the same order.
func (w *crowd) pingDue() {
	if w.every == 0 {
		return
	}
	t, n := now(), 0
	for skipped := 0; n < mostAtOnce && skipped < min(mostSkipped, len(w.members)); {
		i := w.turn % len(w.members)
		switch m := &w.members[i]; {
		case m.state != present:
			skipped++
		case m.at+w.every > t:
			return
		default:
			m.at = t
			w.pings++
			n++
			w.write(int32(i), []byte{pktPingreq << 4, 0})
		}
		w.turn = i + 1
	}
}

// publishDue sends the messages that are due, each from one connection of the crowd to any other.
func (w *crowd) publishDue() {
	if !w.publishing || w.open == 0 {
		return
	}
	for n := 0; n < mostAtOnce; n++ {
		t, due := now(), w.from+int64(float64(w.begun)/w.perSecond*1e9)
		if due > t {
			return
		}
		if t-due > int64(10*time.Millisecond) { // a late one says when it should have been sent
			t = due
		}
		i := w.random.Intn(len(w.members))
		for w.members[i].state != present {
			i = (i + 1) % len(w.members)
		}
		p := stamped{v: w.cfg.version, qos: w.cfg.qos, size: w.cfg.size, at: t, pub: uint32(w.first),
			seq: uint32(w.begun), topic: w.topic(w.random.Intn(w.cfg.count))}
		w.out = append(p.appendHead(w.out[:0]), w.pad...)
		w.begun++
		w.sent++
		w.write(int32(i), w.out)
	}
}

// leave disconnects the next ones, once all are to.
func (w *crowd) leave() {
	for n := 0; n < mostAtOnce && w.left < len(w.members); n++ {
		if i := int32(w.left); w.members[i].state == present {
			w.write(i, disconnectPacket())
			if w.members[i].state == present {
				w.close(i)
			}
		}
		w.left++
	}
}

// connectAll has all members connect, so many in a second, or as fast as they are accepted.
func (w *crowd) connectAll(perSecond float64) {
	w.next, w.start, w.rate, w.turn = 0, now(), perSecond, 0
	w.refused, w.connect = 0, hist{}
}

// ipv4 resolves the address of the broker.
func ipv4(addr string) (to syscall.SockaddrInet4, err error) {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return to, err
	}
	to.Port, to.Addr = a.Port, [4]byte(a.IP.To4())
	return to, nil
}
