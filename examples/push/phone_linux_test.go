package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A loadPhone is a client that takes pushes at any QoS, connects again when its connection breaks,
// and remembers what came. It is lean: there are thousands of them.
type loadPhone struct {
	id, addr, token string

	mu        sync.Mutex
	nc        net.Conn
	up        bool           // it was accepted
	got       map[uint32]int // by number of the push
	latencies []time.Duration
	spans     []span          // when it was not in its group
	open      map[uint16]bool // Packet Identifiers of QoS 2 messages that are not released
}

// A span is a time in which somebody was not in a group, or perhaps was not: certain is when the
// answer to the leave had come, back when the next join began.
type span struct{ begin, certain, back, end time.Time }

func (p *loadPhone) last() *span { return &p.spans[len(p.spans)-1] }

func (p *loadPhone) away(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spans = append(p.spans, span{begin: now})
}

func (p *loadPhone) gone(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last().certain = now
}

func (p *loadPhone) back(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last().back.IsZero() {
		p.last().back = now
	}
}

func (p *loadPhone) returned(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last().end = now
}

// connect connects all users.
func (l *load) connect(tokens []string) {
	l.t.Helper()
	for i, token := range tokens {
		p := &loadPhone{id: fmt.Sprint("phone", i), addr: l.devices, token: token,
			got: map[uint32]int{}, open: map[uint16]bool{}}
		l.phones = append(l.phones, p)
		if err := p.dial(); err != nil {
			l.t.Fatal(err)
		}
		go p.serve(l) // ends with the test
		l.t.Cleanup(p.broken)
	}
	l.wait(func() bool { return !slices.ContainsFunc(l.phones, (*loadPhone).isAway) })
}

func (p *loadPhone) isAway() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.up
}

func (p *loadPhone) dial() error {
	nc, err := net.Dial("tcp", p.addr)
	if err != nil {
		return err
	}
	wire, err := connect(p.id, "", p.token).Append(nil, packets.V5)
	if err == nil {
		_, err = nc.Write(wire)
	}
	if err != nil {
		nc.Close()
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nc, p.up = nc, false
	return nil
}

// broken cuts the connection.
func (p *loadPhone) broken() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nc.Close()
}

func (p *loadPhone) serve(l *load) {
	for l.t.Context().Err() == nil {
		p.mu.Lock()
		nc := p.nc
		p.mu.Unlock()
		p.read(nc)
		nc.Close()
		pause(l.t.Context(), 100*time.Millisecond)
		for l.t.Context().Err() == nil && p.dial() != nil {
			pause(l.t.Context(), 200*time.Millisecond)
		}
	}
}

// read takes packets until the connection ends.
func (p *loadPhone) read(nc net.Conn) {
	r := bufio.NewReaderSize(nc, 2048)
	var out, body []byte
	for {
		first, err := r.ReadByte()
		if err != nil {
			return
		}
		n, err := binary.ReadUvarint(r) // like the Remaining Length
		if err != nil {
			return
		}
		if uint64(cap(body)) < n {
			body = make([]byte, n)
		}
		body = body[:n]
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		out = p.take(first, body, out)
		if r.Buffered() == 0 && len(out) > 0 {
			if _, err := nc.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
	}
}

// take takes one packet, and appends the answer to out.
func (p *loadPhone) take(first byte, body, out []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch packets.Type(first >> 4) {
	case packets.TypeConnack:
		p.up = body[1] == 0
		if body[1] == 0 && body[0]&1 == 0 {
			clear(p.open)
		}
	case packets.TypePubrel:
		id := binary.BigEndian.Uint16(body)
		delete(p.open, id)
		return append(out, byte(packets.TypePubcomp)<<4, 2, body[0], body[1])
	case packets.TypePublish:
		at := 2 + int(binary.BigEndian.Uint16(body))
		qos := first >> 1 & 3
		var id []byte
		if qos > 0 {
			id, at = body[at:at+2], at+2
		}
		n, w := binary.Uvarint(body[at:])
		payload := body[at+w+int(n):]
		if qos < 2 || !p.open[binary.BigEndian.Uint16(id)] {
			p.note(string(payload))
		}
		switch qos {
		case 1:
			out = append(out, byte(packets.TypePuback)<<4, 2, id[0], id[1])
		case 2:
			p.open[binary.BigEndian.Uint16(id)] = true
			out = append(out, byte(packets.TypePubrec)<<4, 2, id[0], id[1])
		}
	}
	return out
}

// note remembers a message. p.mu is held.
func (p *loadPhone) note(payload string) {
	first, second, _ := strings.Cut(payload, "/")
	number, err := strconv.Atoi(first)
	sent, err2 := strconv.ParseInt(second, 10, 64)
	if err != nil || err2 != nil {
		return
	}
	p.got[uint32(number)]++
	p.latencies = append(p.latencies, time.Duration(time.Now().UnixNano()-sent))
}

// must says whether the phone has to have a push, or would have had to if its times are known: it
// was sent while nothing changed in its group.
func (p *loadPhone) wasMember(from, to time.Time) bool {
	for _, s := range p.spans {
		if to.After(s.begin) && (s.end.IsZero() || from.Before(s.end)) {
			return false
		}
	}
	return true
}

func (p *loadPhone) hasAll(l *load, i int) bool {
	missing, _, _ := p.compare(l, i)
	return missing == 0
}

// compare returns how many pushes are missing, came twice, and came although the phone had left.
func (p *loadPhone) compare(l *load, i int) (missing, doubled, late int) {
	groups := len(l.phones) / 10
	l.mu.Lock()
	defer l.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for number := i / 10; number < len(l.acked); number += groups {
		n := p.got[uint32(number)]
		if n > 1 {
			doubled++
		}
		if n == 0 && *loadQoS > 0 && l.acked[number] &&
			p.wasMember(l.made[number], l.made[number].Add(l.took[number])) {
			missing++
		}
		if n > 0 && p.hadLeft(l.made[number]) {
			late++
		}
	}
	return missing, doubled, late
}

// hadLeft says whether the phone was certainly not in its group at a time. p.mu is held.
func (p *loadPhone) hadLeft(at time.Time) bool {
	for _, s := range p.spans {
		if !s.certain.IsZero() && at.After(s.certain) && at.Before(s.back) {
			return true
		}
	}
	return false
}

// tryPush pushes a list. The error says that there was no answer.
func (l *load) tryPush(list []push) (results []result, err error) {
	text, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	q, err := http.NewRequest("POST", l.url+"/v1/push", strings.NewReader(string(text)))
	if err != nil {
		return nil, err
	}
	q.Header.Set("Authorization", "Bearer "+testKey)
	resp, err := loadClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	err = json.NewDecoder(resp.Body).Decode(&results)
	return results, err
}

// try makes a request as the backend. The error says that there was no answer.
func (l *load) try(method, path string) (status int, err error) {
	q, err := http.NewRequest(method, l.url+path, nil)
	if err != nil {
		return 0, err
	}
	q.Header.Set("Authorization", "Bearer "+testKey)
	resp, err := loadClient.Do(q)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, nil
}

var loadClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
