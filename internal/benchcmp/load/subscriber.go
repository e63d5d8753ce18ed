package main

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

// A subscriber reads messages, acknowledges them, and keeps account of what came from whom.
type subscriber struct {
	c *conn
	n atomic.Int64

	// Owned by run.
	from      []account // by publisher
	latency   hist
	dup, mis  int64
	malformed int64
	out       []byte // acknowledgements
	total     int64  // messages of this read
	credit    int64  // of these, how many in a row came from the publisher below
	publisher uint32
}

// An account is what a subscriber has seen of one publisher.
type account struct {
	next    uint32
	missing map[uint32]struct{}
}

func (s *subscriber) run(f *flow) {
	defer f.subscribing.Done()
	s.from = make([]account, len(f.pubs))
	for {
		s.total, s.credit = 0, 0
		at, measured := now(), f.measured.Load()
		err := s.c.each(func(first byte, body []byte) error {
			switch first >> 4 {
			case pktPublish:
				s.publish(f, first, body, at, measured)
			case pktPubrel:
				s.out = append(s.out, pktPubcomp<<4, 2, body[0], body[1])
			case pktDisconnect:
				return fmt.Errorf("DISCONNECT % x", body)
			}
			return nil
		})
		if len(s.out) > 0 && err == nil {
			_, err = s.c.c.Write(s.out)
			s.out = s.out[:0]
		}
		s.n.Add(s.total)
		s.settle(f)
		if err == nil {
			err = s.c.fill()
		}
		if err != nil {
			f.fail(fmt.Errorf("subscriber: %w", err))
			return
		}
	}
}

// settle tells the publisher how many of its messages have come.
func (s *subscriber) settle(f *flow) {
	if s.credit > 0 {
		f.pubs[s.publisher].recvd.Add(s.credit)
		f.pubs[s.publisher].signal()
		s.credit = 0
	}
}

// publish takes one message.
func (s *subscriber) publish(f *flow, first byte, body []byte, at int64, measured bool) {
	packetID, payload, err := publishParts(s.c.v, first, body)
	if err != nil || len(payload) != f.cfg.size {
		s.malformed++
		return
	}
	switch first >> 1 & 3 {
	case 1:
		s.out = append(s.out, pktPuback<<4, 2, byte(packetID>>8), byte(packetID))
	case 2:
		s.out = append(s.out, pktPubrec<<4, 2, byte(packetID>>8), byte(packetID))
	}
	id, seq := binary.BigEndian.Uint32(payload[8:]), binary.BigEndian.Uint32(payload[12:])
	if int(id) >= len(s.from) {
		s.malformed++
		return
	}
	if f.shared {
		s.takeShared(f, id, seq)
	} else {
		s.take(id, seq)
	}
	if measured {
		s.latency.add(at - int64(binary.BigEndian.Uint64(payload)))
	}
	s.total++
	if id != s.publisher {
		s.settle(f)
		s.publisher = id
	}
	s.credit++
}

// take notes a message that every subscriber gets.
func (s *subscriber) take(id, seq uint32) {
	const most = 1 << 20 // missing ones to remember
	a := &s.from[id]
	switch {
	case seq == a.next:
		a.next++
	case seq > a.next:
		if a.missing == nil {
			a.missing = map[uint32]struct{}{}
		}
		for x := a.next; x < seq && len(a.missing) < most; x++ {
			a.missing[x] = struct{}{}
		}
		a.next = seq + 1
	default:
		if _, late := a.missing[seq]; late {
			delete(a.missing, seq)
			s.mis++
		} else {
			s.dup++
		}
	}
}

// takeShared notes a message that one member of the group gets.
func (s *subscriber) takeShared(f *flow, id, seq uint32) {
	f.seenMu.Lock()
	defer f.seenMu.Unlock()
	word, bit := int(seq/64), uint64(1)<<(seq%64)
	for word >= len(f.seen[id]) {
		f.seen[id] = append(f.seen[id], make([]uint64, 1024)...)
	}
	if f.seen[id][word]&bit != 0 {
		f.seenTwice++
		return
	}
	f.seen[id][word] |= bit
	if a := &s.from[id]; seq < a.next {
		s.mis++
	} else {
		a.next = seq + 1
	}
}
