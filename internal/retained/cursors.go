package retained

import "github.com/dunlin-mqtt/dunlin/packets"

// A Cursor goes through the messages that match one new subscription. Its exported fields are the
// owner's.
type Cursor struct {
	Filter  string // immutable once the Cursor is put
	QoS     packets.QoS
	NoLocal bool
	ID      uint32 // Subscription Identifier
	Ready   bool   // messages may be sent
	Blocked bool   // the next message waits until more are acknowledged

	from       string // the topic to go on at
	prev, next *Cursor
}

// From is where the Cursor has come to: the topic to go on at, empty for the beginning.
func (x *Cursor) From() string { return x.from }

// cursorBytes is what a Cursor takes besides its strings.
const cursorBytes = 128

// CursorBytes is what a new Cursor for filter takes.
func CursorBytes(filter string) int { return cursorBytes + len(filter) }

func (x *Cursor) bytes() int { return CursorBytes(x.Filter) + len(x.from) }

// Cursors are those of one subscriber, in the order in which they were put, at most one for a
// filter. The owner guards them. The nil *Cursors has none.
type Cursors struct {
	of          map[string]*Cursor // by filter
	first, last *Cursor
	bytes       int
}

// First is the one that was put first, nil if there is none.
func (cs *Cursors) First() *Cursor {
	if cs == nil {
		return nil
	}
	return cs.first
}

// Of returns the one for filter, nil if there is none.
func (cs *Cursors) Of(filter string) *Cursor {
	if cs == nil {
		return nil
	}
	return cs.of[filter]
}

// Len is how many there are.
func (cs *Cursors) Len() int {
	if cs == nil {
		return 0
	}
	return len(cs.of)
}

// Bytes is the memory that they take.
func (cs *Cursors) Bytes() int {
	if cs == nil {
		return 0
	}
	return cs.bytes
}

// With is Bytes with a new Cursor for filter, in the place of an old one.
func (cs *Cursors) With(filter string) int {
	n := cs.Bytes() + CursorBytes(filter)
	if old := cs.Of(filter); old != nil {
		n -= old.bytes()
	}
	return n
}

// Put puts x behind the others and takes away the one for the same filter, which is returned.
func (cs *Cursors) Put(x *Cursor) (replaced *Cursor) {
	if cs.of == nil {
		cs.of = make(map[string]*Cursor)
	}
	replaced = cs.Drop(x.Filter)
	cs.of[x.Filter] = x
	cs.bytes += x.bytes()
	if x.prev, cs.last = cs.last, x; x.prev != nil {
		x.prev.next = x
	} else {
		cs.first = x
	}
	return replaced
}

// Drop takes away the one for filter and returns it, nil if there is none.
func (cs *Cursors) Drop(filter string) *Cursor {
	x := cs.Of(filter)
	if x == nil {
		return nil
	}
	delete(cs.of, filter)
	cs.bytes -= x.bytes()
	if x.prev != nil {
		x.prev.next = x.next
	} else {
		cs.first = x.next
	}
	if x.next != nil {
		x.next.prev = x.prev
	} else {
		cs.last = x.prev
	}
	x.prev, x.next = nil, nil
	return x
}

// Advance has x, which is one of cs, go on at the topic from; with the empty one it has come to its
// end and is taken away.
func (cs *Cursors) Advance(x *Cursor, from string) {
	if from == "" {
		cs.Drop(x.Filter)
		return
	}
	cs.bytes += len(from) - len(x.from)
	x.from, x.Blocked = from, false
}
