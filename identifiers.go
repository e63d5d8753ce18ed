package dunlin

import "github.com/dunlin-mqtt/dunlin/internal/link"

// This file chooses the Packet Identifiers that a sender gives out.

// maxID is the number of Packet Identifiers, which begin with 1.
const maxID = 65535

// nextID takes the identifiers in turn and leaves out those in use [MQTT-2.2.1-4].
func (s *sender) nextID() uint16 {
	id := s.lastID%maxID + 1
	if s.free == 0 {
		id, s.free = s.freeFrom(id)
	}
	s.free--
	s.lastID = id
	return id
}

// freeFrom returns the first identifier from id on that is not in use, and how many identifiers in
// a row from there on are not in use. At least one must be free.
func (s *sender) freeFrom(id uint16) (first, n uint16) {
	if s.live > fewPlaces {
		return s.freeAmongMany(id)
	}
	for ; ; id = id%maxID + 1 {
		n = maxID
		for i := int(s.head); i < len(s.flight); i++ {
			if d := &s.flight[i]; d.state != done {
				n = min(n, uint16(behind(d.id, id)))
			}
		}
		if n > 0 {
			return id, n
		}
	}
}

// freeAmongMany is freeFrom for a sender with many deliveries in flight. It looks at them once,
// however many identifiers in a row are in use.
func (s *sender) freeAmongMany(id uint16) (first, n uint16) {
	x := link.NewBuffer(maxID/8 + 1)
	defer x.Free()
	used := x.B[:maxID/8+1]
	clear(used)
	for i := int(s.head); i < len(s.flight); i++ {
		if d := &s.flight[i]; d.state != done {
			used[d.id/8] |= 1 << (d.id % 8)
		}
	}
	inUse := func(id uint16) bool { return used[id/8]&(1<<(id%8)) != 0 }
	for first = id; inUse(first); {
		first = first%maxID + 1
	}
	for id = first; n < maxID && !inUse(id); n++ {
		id = id%maxID + 1
	}
	return first, n
}

// behind says how many identifiers b is behind a, in the order in which they are given out.
func behind(a, b uint16) int {
	n := int(a) - int(b)
	if n < 0 {
		n += maxID
	}
	return n
}
