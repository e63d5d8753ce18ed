package main

import (
	"fmt"
	"math/rand"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A publisher sends stamped messages as fast as its windows or its rate allow. One goroutine
// writes, another one reads the acknowledgements.
type publisher struct {
	id      uint32
	c       *conn
	topic   func(seq uint32) string
	sent    atomic.Int64
	acked   atomic.Int64
	recvd   atomic.Int64 // deliveries that subscribers have seen
	waiting atomic.Bool
	wake    chan struct{}
	write   sync.Mutex // one writer at a time: PUBLISH here, PUBREL there

	// Owned by run.
	seq      uint32
	start    time.Time
	stalls   int
	forgiven int64 // deliveries that nobody waits for any more
	pad, buf []byte
}

// signal wakes run if it waits for room.
func (p *publisher) signal() {
	if p.waiting.Load() {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// room says how many messages may go out now.
func (p *publisher) room(f *flow) int64 {
	sent, n := p.sent.Load(), int64(1<<30)
	if f.cfg.qos > 0 {
		n = int64(f.cfg.window) - (sent - p.acked.Load())
	}
	if f.cfg.e2e > 0 {
		undelivered := sent - (p.recvd.Load()+p.forgiven)/int64(f.fan)
		n = min(n, int64(f.cfg.e2e)-undelivered)
	}
	return n
}

func (p *publisher) run(f *flow) {
	defer f.publishing.Done()
	p.pad = make([]byte, f.cfg.size-stampLen)
	for i := range p.pad {
		p.pad[i] = byte('a' + i%26)
	}
	p.start = time.Now()
	if f.cfg.rate > 0 { // spread over the period, so that they do not all send at once
		part := float64(p.id) / float64(len(f.pubs))
		p.start = p.start.Add(time.Duration(part / f.perPublisher() * float64(time.Second)))
	}
	for !f.stop.Load() {
		n := p.due(f)
		if n > 0 {
			n = p.granted(f, n)
		}
		if n > 0 {
			if err := p.send(f, n); err != nil {
				f.fail(fmt.Errorf("publisher %d write: %w", p.id, err))
				return
			}
		}
	}
}

// due returns how many messages the rate asks for. If that is none it waits until one is due.
func (p *publisher) due(f *flow) int64 {
	if f.cfg.rate == 0 {
		return int64(f.cfg.batch)
	}
	each := f.perPublisher()
	n := int64(time.Since(p.start).Seconds()*each) + 1 - p.sent.Load()
	if n <= 0 {
		next := time.Duration(float64(p.sent.Load()) / each * float64(time.Second))
		time.Sleep(time.Until(p.start.Add(next)))
	}
	return min(n, int64(f.cfg.batch))
}

// granted returns how many of n messages the windows have room for. Without a rate it waits for
// half of them, so that batches do not become single messages.
func (p *publisher) granted(f *flow, n int64) int64 {
	enough := func(m int64) bool { return m > 0 && (f.cfg.rate > 0 || m >= n/2) }
	if m := p.room(f); enough(m) {
		return min(n, m)
	}
	p.waiting.Store(true)
	defer p.waiting.Store(false)
	if m := p.room(f); enough(m) {
		return min(n, m)
	}
	before := p.recvd.Load() + p.acked.Load()
	select {
	case <-p.wake:
	case <-time.After(700 * time.Millisecond):
		if p.recvd.Load()+p.acked.Load() == before { // lost messages must not stop the run
			p.stalls++
			p.forgiven = p.sent.Load()*int64(f.fan) - p.recvd.Load()
			if f.cfg.qos > 0 && p.room(f) <= 0 {
				p.acked.Store(p.sent.Load())
			}
		}
	}
	return 0
}

// large is the size from which a payload is written from where it is, not copied.
const large = 4096

// send writes n messages with one call.
func (p *publisher) send(f *flow, n int64) error {
	at := now()
	if f.cfg.rate > 0 { // a late publisher stamps the time that it should have sent at
		early := float64(p.sent.Load()) / f.perPublisher() * float64(time.Second)
		planned := int64(p.start.Sub(began)) + int64(early)
		if at-planned > int64(10*time.Millisecond) {
			at = planned
		}
	}
	m := stamped{v: f.cfg.version, qos: f.cfg.qos, size: f.cfg.size, at: at, pub: p.id}
	var pieces net.Buffers
	p.buf = p.buf[:0]
	for range n {
		m.seq, m.topic = p.seq, p.topic(p.seq)
		p.seq++
		if f.cfg.size > large {
			pieces = append(pieces, m.appendHead(make([]byte, 0, 128)), p.pad)
		} else {
			p.buf = append(m.appendHead(p.buf), p.pad...)
		}
	}
	p.sent.Add(n)
	p.write.Lock()
	defer p.write.Unlock()
	if f.cfg.size > large {
		_, err := pieces.WriteTo(p.c.c)
		return err
	}
	_, err := p.c.c.Write(p.buf)
	return err
}

// acks reads what the broker sends to the publisher.
func (p *publisher) acks(f *flow) {
	var out []byte
	for {
		var n int64
		err := p.c.each(func(first byte, body []byte) error {
			refused := len(body) > 2 && body[2] >= 0x80
			switch first >> 4 {
			case pktPubrec:
				if !refused {
					out = append(out, pktPubrel<<4|2, 2, body[0], body[1])
					return nil
				}
				fallthrough
			case pktPuback, pktPubcomp:
				n++
				if refused {
					f.rejects.Add(1)
				}
			case pktDisconnect:
				return fmt.Errorf("DISCONNECT % x", body)
			}
			return nil
		})
		if len(out) > 0 {
			p.write.Lock()
			p.c.c.Write(out)
			p.write.Unlock()
			out = out[:0]
		}
		if n > 0 {
			p.acked.Add(n)
			p.signal()
		}
		if err == nil {
			err = p.c.fill()
		}
		if err != nil {
			f.fail(fmt.Errorf("publisher %d read: %w", p.id, err))
			return
		}
	}
}

// fixed is the topic of a publisher that has one.
func fixed(topic string) func(uint32) string { return func(uint32) string { return topic } }

// random returns topics that are made beforehand, at random over all filters of scenario wild, so
// that no cache of matches helps much.
func random(seed int64, filters int) func(uint32) string {
	const n = 1 << 16
	r := rand.New(rand.NewSource(seed))
	topics := make([]string, n)
	for i := range topics {
		topics[i] = wildTopic(r.Intn(filters), r)
	}
	return func(seq uint32) string { return topics[seq%n] }
}
