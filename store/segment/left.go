package segment

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/dunlin-mqtt/dunlin/store"
)

// left is the state after all operations of a log, without the content of messages. For a message
// it stores the number of the operation that added it; a second reading of the log fetches the
// content. An entry of a queue takes 16 bytes.
type left struct {
	n        uint64 // operations so far
	sessions map[uint64]*leftSession
	retained map[string]uint64 // the operation that brought the message, by topic
}

type leftSession struct {
	put      store.PutSession
	subs     map[string]store.PutSubscription
	received map[uint16]struct{}
	queue    []leftEntry // by seq
	hint     int         // behind the entry that was found last
}

// A leftEntry is an entry of a queue.
type leftEntry struct {
	seq uint64
	// from the lowest bit on: Packet Identifier (16), released (1), number of the operation that
	// brought it (47)
	at uint64
}

const (
	leftReleased = 1 << 16
	leftShift    = 17
)

func newLeft() *left {
	return &left{sessions: make(map[uint64]*leftSession), retained: make(map[string]uint64)}
}

// apply applies the next operation. It keeps no borrowed memory of the operation.
func (l *left) apply(op store.Op) {
	l.n++
	switch op := op.(type) {
	case *store.Publish:
		l.publish(op)
	case *store.Sent:
		if e := l.entry(op.Session, op.Seq); e != nil {
			e.at = e.at&^0xFFFF | uint64(op.ID)
		}
	case *store.Released:
		if e := l.entry(op.Session, op.Seq); e != nil {
			e.at |= leftReleased
		}
	case *store.Done:
		if c := l.sessions[op.Session]; c != nil {
			c.done(op.Seq)
		}
	case *store.PutRetained:
		l.retained[op.Message.Topic] = l.n
	case *store.DeleteRetained:
		delete(l.retained, op.Topic)
	case *store.PutSession:
		l.putSession(op)
	case *store.DeleteSession:
		delete(l.sessions, op.Session)
	default:
		l.applyToSession(op)
	}
}

func (l *left) applyToSession(op store.Op) {
	switch op := op.(type) {
	case *store.Received:
		l.received(op.Session, op.ID)
	case *store.Forget:
		if c := l.sessions[op.Session]; c != nil {
			delete(c.received, op.ID)
		}
	case *store.PutSubscription:
		if c := l.sessions[op.Session]; c != nil {
			if c.subs == nil {
				c.subs = make(map[string]store.PutSubscription)
			}
			c.subs[op.Filter] = *op
		}
	case *store.DeleteSubscription:
		if c := l.sessions[op.Session]; c != nil {
			delete(c.subs, op.Filter)
		}
	default:
		panic("BUG: an operation that is none of store's")
	}
}

func (l *left) putSession(op *store.PutSession) {
	c := l.sessions[op.Session]
	if c == nil {
		c = new(leftSession)
		l.sessions[op.Session] = c
	}
	c.put = *op
	if op.Will != nil {
		w := *op.Will
		w.Message.Payload, w.Message.Properties = slices.Clone(w.Message.Payload),
			slices.Clone(w.Message.Properties)
		c.put.Will = &w
	}
}

func (l *left) publish(op *store.Publish) {
	for i := range op.To {
		if c := l.sessions[op.To[i].Session]; c != nil {
			c.enqueue(op.To[i].Seq, l.n)
		}
	}
	if op.Retain {
		l.retained[op.Message.Topic] = l.n
	}
	if op.FromSession != 0 {
		l.received(op.FromSession, op.FromID)
	}
}

func (l *left) received(session uint64, id uint16) {
	if c := l.sessions[session]; c != nil {
		if c.received == nil {
			c.received = make(map[uint16]struct{})
		}
		c.received[id] = struct{}{}
	}
}

func (l *left) entry(session, seq uint64) *leftEntry {
	if c := l.sessions[session]; c != nil {
		if i, ok := c.find(seq); ok {
			return &c.queue[i]
		}
	}
	return nil
}

// find returns the position of the entry, or the position where it would be. It first looks at both
// ends and after the last position.
func (c *leftSession) find(seq uint64) (i int, ok bool) {
	n := len(c.queue)
	switch {
	case n == 0 || seq > c.queue[n-1].seq:
		return n, false
	case c.queue[0].seq == seq:
		i, ok = 0, true
	case c.hint < n && c.queue[c.hint].seq == seq:
		i, ok = c.hint, true
	default:
		i, ok = slices.BinarySearchFunc(c.queue, seq, func(e leftEntry, seq uint64) int {
			return cmp.Compare(e.seq, seq)
		})
	}
	c.hint = i + 1
	return i, ok
}

func (c *leftSession) enqueue(seq, op uint64) {
	if i, taken := c.find(seq); !taken {
		c.queue = slices.Insert(c.queue, i, leftEntry{seq, op << leftShift})
	}
}

// done removes an entry. It moves the entries on the shorter side.
func (c *leftSession) done(seq uint64) {
	i, ok := c.find(seq)
	switch {
	case !ok:
	case i <= len(c.queue)/2:
		copy(c.queue[1:i+1], c.queue[:i])
		c.queue = c.queue[1:]
	default:
		c.queue = slices.Delete(c.queue, i, i+1)
	}
}

// write writes the state: first the Sessions with everything that belongs to them, then the
// messages in the order of the log, each followed by its later operations. The scan reads the log
// again.
func (l *left) write(ctx context.Context, c *scan, w *foldWriter) error {
	for _, id := range slices.Sorted(maps.Keys(l.sessions)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.session(l.sessions[id]); err != nil {
			return err
		}
	}
	n := uint64(0)
	return c.each(ctx, func(op store.Op) error {
		n++
		switch op := op.(type) {
		case *store.Publish:
			return l.writePublish(w, op, n)
		case *store.PutRetained:
			if l.retained[op.Message.Topic] == n {
				return w.op(op)
			}
		}
		return nil
	})
}

// session writes a Session, without its queue.
func (w *foldWriter) session(c *leftSession) error {
	if err := w.op(&c.put); err != nil {
		return err
	}
	for _, filter := range slices.Sorted(maps.Keys(c.subs)) {
		sub := c.subs[filter]
		if err := w.op(&sub); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.received)) {
		if err := w.op(&store.Received{Session: c.put.Session, ID: id}); err != nil {
			return err
		}
	}
	return nil
}

// writePublish writes the live part of the n-th operation.
func (l *left) writePublish(w *foldWriter, op *store.Publish, n uint64) error {
	to := op.To[:0]
	var then []store.Op
	for _, d := range op.To {
		e := l.entry(d.Session, d.Seq)
		if e == nil || e.at>>leftShift != n {
			continue
		}
		to = append(to, d)
		if id := uint16(e.at); id != 0 {
			then = append(then, &store.Sent{Session: d.Session, Seq: d.Seq, ID: id})
		}
		if e.at&leftReleased != 0 {
			then = append(then, &store.Released{Session: d.Session, Seq: d.Seq})
		}
	}
	retain := op.Retain && l.retained[op.Message.Topic] == n
	if len(to) == 0 && !retain {
		return nil
	}
	err := w.op(&store.Publish{Message: op.Message, To: to, Retain: retain})
	for _, op := range then {
		if err == nil {
			err = w.op(op)
		}
	}
	return err
}
