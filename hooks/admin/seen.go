package admin

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file lists topics of recent messages. The broker keeps no list of them: when somebody asks,
// a Tap takes a sample.

const (
	// The bounds of a look: PUBLISH packets, their bytes, and time.
	lookPackets = 5000
	lookBytes   = 8 << 20
	lookFor     = time.Second
	// keptTopics is how many topics of all looks are kept. maxSeen is how long a topic may be, and
	// a Client Identifier.
	keptTopics = 500
	maxSeen    = 1024
)

// A seenView is a topic that a look has seen.
type seenView struct {
	// Topic is as the client writes it, without its mount point.
	Topic string `json:"topic"`
	// At is when it was seen last, First when it was first seen.
	At    time.Time `json:"at"`
	First time.Time `json:"first"`
	// Packets is how many packets were seen. It is a sample: see the description of the route.
	Packets uint64 `json:"packets"`
	QoS     int    `json:"qos"`
	Bytes   int    `json:"bytes"` // of the payload of the last one
	// From is the client that published it, if a look has seen the packet arrive.
	From string `json:"from,omitempty"`
}

// A seen is what looks have seen of one broker.
type seen struct {
	topics ring[seenView]

	mu   sync.Mutex // held during a look: others wait for it and take its result
	last time.Time  // when the last look ended; guarded by mu
}

// look takes a sample, unless somebody has done so within an interval.
func (s *seen) look(ctx context.Context, b *dunlin.Broker, interval time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || time.Since(s.last) < interval {
		return ctx.Err()
	}
	tap, err := b.Tap(ctx, dunlin.TapOptions{Filter: "#", MaxPackets: lookPackets,
		MaxBytes: lookBytes, Buffer: lookPackets, BufferBytes: lookBytes, For: lookFor})
	if err != nil {
		return err
	}
	defer tap.Stop()
	for p := range tap.Packets() {
		s.note(&p)
	}
	s.last = time.Now()
	return nil
}

// note keeps what a packet shows.
func (s *seen) note(p *dunlin.TapPacket) {
	d, err := p.Packet()
	m, ok := d.(*packets.Publish)
	if err != nil || !ok || len(m.Topic) == 0 || len(m.Topic) > maxSeen {
		return
	}
	v := seenView{Topic: string(m.Topic), QoS: int(m.QoS), Bytes: len(m.Payload)}
	if p.Incoming && len(p.Client.ID) <= maxSeen {
		v.From = p.Client.ID
	}
	s.topics.merge(v.Topic, v, func(old, v *seenView) {
		if v.From == "" {
			v.From = old.From
		}
	})
}

// seen lists the topics of messages that pass, and of messages that passed while somebody looked
// before, the last ones first. It looks for a second and at most at 5,000 packets, so it can miss a
// topic with few messages among many. All requests share one look at a time. While nobody asks,
// messages cost nothing more.
func (c *call) seen() error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	err = c.desk.seen.look(c.r.Context(), c.desk.b, c.h.opts.Interval)
	switch {
	case errors.Is(err, dunlin.ErrBrokerClosed), c.r.Context().Err() != nil:
		return err
	case err != nil: // as many Taps are open as may be
		return busy()
	}
	page, room := page[seenView]{Items: []seenView{}}, newPager(limit)
	for _, x := range c.desk.seen.topics.newest(limit) {
		v := x.value
		v.At, v.First, v.Packets = x.at, x.first, x.count
		if !room.takes(256 + len(v.Topic) + len(v.From)) {
			break
		}
		page.Items = append(page.Items, v)
	}
	return c.answer(page)
}
