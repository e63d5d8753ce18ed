package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A loadPhone is a client that takes pushes at any QoS and remembers what came. One goroutine reads
// for all of them, so that the machine has its time for the service. All is guarded by load.mu.
type loadPhone struct {
	id    int
	token string
	fd    int
	up    bool     // it was accepted
	rest  []byte   // of a packet that has come in part
	got   []uint8  // how often each push to its group came, in the order of the pushes
	spans []span   // when it was not in its group
	open  []uint16 // Packet Identifiers of QoS 2 messages that are not released
}

// A span is a time in which somebody was not in a group, or perhaps was not: certain is when the
// answer to the leave had come, back when the next join began.
type span struct{ begin, certain, back, end time.Time }

// connect connects all phones.
func (l *load) connect() {
	l.t.Helper()
	to := netip.MustParseAddrPort(l.devices)
	for _, p := range l.phones {
		if err := l.dial(p, &syscall.SockaddrInet4{Port: int(to.Port()),
			Addr: to.Addr().As4()}); err != nil {
			l.t.Fatal(err)
		}
	}
	l.wait(func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !slices.ContainsFunc(l.phones, func(p *loadPhone) bool { return !p.up })
	})
}

func (l *load) dial(p *loadPhone, to syscall.Sockaddr) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	l.mu.Lock()
	p.fd, p.up, p.rest = fd, false, nil
	l.mu.Unlock()
	wire, err := connect(fmt.Sprint("phone", p.id), "", p.token).Append(nil, packets.V5)
	if err == nil {
		err = syscall.Connect(fd, to)
	}
	if err == nil {
		err = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	}
	if err == nil {
		_, err = syscall.Write(fd, wire)
	}
	if err == nil {
		err = syscall.SetNonblock(fd, true)
	}
	if err != nil {
		return err
	}
	return syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, fd,
		&syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(p.id)})
}

// read takes what comes for the phones until the test ends.
func (l *load) read() {
	buf := make([]byte, 64<<10)
	var out []byte
	events := make([]syscall.EpollEvent, 256)
	for l.t.Context().Err() == nil {
		n, err := syscall.EpollWait(l.epoll, events, 100)
		if err != nil && err != syscall.EINTR {
			l.t.Error(err)
			return
		}
		l.mu.Lock()
		for _, e := range events[:max(n, 0)] {
			p := l.phones[e.Fd]
			have := copy(buf, p.rest)
			n, err := syscall.Read(p.fd, buf[have:])
			if err == nil && n > 0 {
				var used int
				out, used = l.take(p, buf[:have+n], out[:0], time.Now())
				p.rest = append(p.rest[:0], buf[used:have+n]...)
				if len(out) > 0 {
					_, err = syscall.Write(p.fd, out)
				}
			}
			if err != nil && err != syscall.EAGAIN || err == nil && n == 0 {
				syscall.Close(p.fd) // which takes it out of epoll
				p.up = false
			}
		}
		l.mu.Unlock()
	}
}

// take takes the whole packets in b, and appends the answers to out.
func (l *load) take(p *loadPhone, b, out []byte, now time.Time) (answers []byte, used int) {
	for len(b)-used >= 2 {
		n, w := binary.Uvarint(b[used+1:]) // like the Remaining Length
		end := used + 1 + w + int(n)
		if w <= 0 || end > len(b) {
			break
		}
		out = l.takeOne(p, b[used], b[used+1+w:end], out, now)
		used = end
	}
	return out, used
}

func (l *load) takeOne(p *loadPhone, first byte, body, out []byte, now time.Time) []byte {
	switch packets.Type(first >> 4) {
	case packets.TypeConnack:
		p.up = body[1] == 0
		if body[0]&1 == 0 {
			p.open = nil
		}
	case packets.TypePubrel:
		id := binary.BigEndian.Uint16(body)
		if i := slices.Index(p.open, id); i >= 0 {
			p.open = slices.Delete(p.open, i, i+1)
		}
		return append(out, byte(packets.TypePubcomp)<<4, 2, body[0], body[1])
	case packets.TypePublish:
		at := 2 + int(binary.BigEndian.Uint16(body))
		qos, id := first>>1&3, uint16(0)
		if qos > 0 {
			id, at = binary.BigEndian.Uint16(body[at:]), at+2
		}
		n, w := binary.Uvarint(body[at:])
		if qos < 2 || !slices.Contains(p.open, id) {
			l.note(p, string(body[at+w+int(n):]), now)
		}
		switch qos {
		case 1:
			out = append(out, byte(packets.TypePuback)<<4, 2, byte(id>>8), byte(id))
		case 2:
			if !slices.Contains(p.open, id) {
				p.open = append(p.open, id)
			}
			out = append(out, byte(packets.TypePubrec)<<4, 2, byte(id>>8), byte(id))
		}
	}
	return out
}

// note remembers a message.
func (l *load) note(p *loadPhone, payload string, now time.Time) {
	first, second, _ := strings.Cut(payload, "/")
	number, err := strconv.Atoi(first)
	sent, err2 := strconv.ParseInt(second, 10, 64)
	if err != nil || err2 != nil {
		return
	}
	round := number / l.groups()
	for len(p.got) <= round {
		p.got = append(p.got, 0)
	}
	p.got[round]++
	l.deliveries++
	l.latencies = append(l.latencies, time.Duration(now.UnixNano()-sent))
}

// wasMember says whether the phone has to have a push: it was sent while nothing changed in its group.
func (p *loadPhone) wasMember(from, to time.Time) bool {
	for _, s := range p.spans {
		if to.After(s.begin) && (s.end.IsZero() || from.Before(s.end)) {
			return false
		}
	}
	return true
}

// hadLeft says whether the phone was out of its group for certain while a push was made.
func (p *loadPhone) hadLeft(from, to time.Time) bool {
	for _, s := range p.spans {
		if !s.certain.IsZero() && from.After(s.certain) && to.Before(s.back) {
			return true
		}
	}
	return false
}

// compare returns how many pushes are missing, came twice, and came although the phone had left.
// l.mu is held.
func (p *loadPhone) compare(l *load) (missing, doubled, late int) {
	for number := p.id / 10; number < len(l.made); number += l.groups() {
		n, x := uint8(0), &l.made[number]
		if round := number / l.groups(); round < len(p.got) {
			n = p.got[round]
		}
		if n > 1 {
			doubled++
		}
		if n == 0 && *loadQoS > 0 && x.acked && p.wasMember(x.at, x.at.Add(x.took)) {
			missing++
		}
		if n > 0 && p.hadLeft(x.at, x.at.Add(x.took)) {
			late++
		}
	}
	return missing, doubled, late
}

// tryPush pushes a list. The status is 0 if there was no answer.
func (l *load) tryPush(list []push) (results []result, status int) {
	text, err := json.Marshal(list)
	if err != nil {
		l.t.Error(err)
		return nil, 0
	}
	status, text = l.try("POST", "/v1/push", text)
	if status == http.StatusOK && json.Unmarshal(text, &results) != nil {
		l.t.Errorf("a list was answered with %s", text)
	}
	return results, status
}

// try makes a request as the backend. The status is 0 if there was no answer.
func (l *load) try(method, path string, body []byte) (status int, answer []byte) {
	q, err := http.NewRequest(method, l.url+path, bytes.NewReader(body))
	if err != nil {
		l.t.Error(err)
		return 0, nil
	}
	q.Header.Set("Authorization", "Bearer "+testKey)
	resp, err := loadClient.Do(q)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil
	}
	return resp.StatusCode, answer
}

var loadClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
