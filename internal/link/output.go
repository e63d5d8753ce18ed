package link

import "slices"

// An Output is what is to be written: bytes in their order, and behind them those that are held
// until a ticket is decided. Once something is held, all that follows goes behind it but what is
// appended and not held. The caller guards it.
type Output struct {
	buf    *Buffer // appended to; nil: empty
	held   *held   // nil: nothing is
	writer *Buffer // what is being written; nil: nothing is
	hint   int32   // how much the last one took: what the next buffer starts with

	Counted int32 // for the caller: how much of Memory a count of memory knows of
}

type held struct {
	buf   *Buffer
	marks []Mark
	most  uint64 // the highest ticket of marks, which need not be that of the last one
	// Long payloads that nobody changes are not in buf, so that they are not kept in a copy for each
	// connection that holds them. In the order of marks
	payloads []payload
	shared   int // bytes of payloads
}

// A payload is the end of the packet of a mark.
type payload struct {
	mark int // its place in marks
	b    []byte
}

// payloadsInOrder returns a function that returns the payload of a mark that is not in buf, nil if
// there is none. It must be called for all marks, one after the other.
func (h *held) payloadsInOrder() func(mark int) []byte {
	i := 0
	return func(mark int) []byte {
		if i == len(h.payloads) || h.payloads[i].mark != mark {
			return nil
		}
		i++
		return h.payloads[i-1].b
	}
}

// addPayload notes that b, if it is not nil, is the payload of a mark behind all that have one.
func (h *held) addPayload(mark int, b []byte) {
	if b != nil {
		h.payloads = append(h.payloads, payload{mark, b})
		h.shared += len(b)
	}
}

// dropPayloads forgets payloads.
func (h *held) dropPayloads(which func(mark int) bool) {
	h.payloads = slices.DeleteFunc(h.payloads, func(p payload) bool {
		drop := which(p.mark)
		if drop {
			h.shared -= len(p.b)
		}
		return drop
	})
}

// A Mark is one packet that is held.
type Mark struct {
	Ticket uint64 // the packet waits for it
	ID     uint16
	Kind   HoldKind
	Ends   bool // for the caller

	n int32 // bytes without a payload that is not in buf; 0: withdrawn
}

// A HoldKind says what a packet that is held is.
type HoldKind byte

// The kinds.
const (
	KeepsPlace      HoldKind = iota // it waits only for its turn
	Acknowledgement                 // PUBACK or PUBREC
	Durable                         // it goes out only once it is durable
	Message                         // a PUBLISH, of which the same is true
)

// MustBeDurable says whether the packet never leaves before it is durable.
func (m *Mark) MustBeDurable() bool { return m.Kind >= Durable }

// MarkSize is what a Mark takes.
const MarkSize = 16

// Backlog is how much of what is being written the connection has not taken yet.
func (o *Output) Backlog() int {
	if o.writer == nil {
		return 0
	}
	n := len(o.writer.B) - int(o.writer.n.Load())
	if next := o.writer.next; next != nil {
		n += len(next.B)
	}
	return n
}

// Size is how much is waiting for the socket.
func (o *Output) Size() int {
	n := o.Backlog()
	if o.buf != nil {
		n += len(o.buf.B)
	}
	if h := o.held; h != nil { // there may be a mark for every four bytes
		if n += len(h.marks)*MarkSize + h.shared; h.buf != nil {
			n += len(h.buf.B)
		}
	}
	return n
}

// Memory is how much memory the Output takes. Payloads that are held count where they come from.
func (o *Output) Memory() int {
	n := 0
	if x := o.writer; x != nil && x.shared {
		n += len(x.B)
	} else if x != nil {
		n += cap(x.B)
		if x.next != nil {
			n += len(x.next.B)
		}
	}
	if o.buf != nil {
		n += cap(o.buf.B)
	}
	if h := o.held; h != nil {
		if n += cap(h.marks) * MarkSize; h.buf != nil {
			n += cap(h.buf.B)
		}
	}
	return n
}

// Empty says whether nothing is there that may be written, besides what is being written.
func (o *Output) Empty() bool { return o.buf == nil }

// Reserve returns the buffer with room for n more bytes.
func (o *Output) Reserve(n int) *Buffer {
	if o.buf == nil {
		o.buf = NewBuffer(max(n, int(o.hint)))
		return o.buf
	}
	if b := o.buf; cap(b.B)-len(b.B) < n {
		o.buf = NewBuffer(max(len(b.B)+n, 2*len(b.B)))
		o.buf.B = append(o.buf.B, b.B...)
		o.buf.Grown = cap(o.buf.B) > hintMost
		b.Free()
	}
	return o.buf
}

// Grows is how much more memory Reserve will take for n bytes.
func (o *Output) Grows(n int) int {
	switch b := o.buf; {
	case b == nil:
		return Fitting(max(n, int(o.hint)))
	case cap(b.B)-len(b.B) < n:
		return Fitting(max(len(b.B)+n, 2*len(b.B))) - cap(b.B)
	}
	return 0
}

// End is where the next packet begins.
func (o *Output) End() int {
	if o.buf == nil {
		return 0
	}
	return len(o.buf.B)
}

// Cut takes back what was appended behind at.
func (o *Output) Cut(at int) {
	if at > 0 {
		o.buf.B, o.buf.tail = o.buf.B[:at], nil
	} else {
		o.Discard()
	}
}

// Discard takes back all that was appended, and is neither held nor being written.
func (o *Output) Discard() {
	if o.buf != nil {
		o.buf.Free()
		o.buf = nil
	}
}

// hintMost bounds what an Output starts with.
const hintMost = 64 << 10

// Take makes what was appended, which is not nothing, the buffer that is being written.
func (o *Output) Take() *Buffer {
	x := o.buf
	o.buf = nil
	o.hint = int32(min(len(x.B), hintMost))
	if x.n.Load() != 0 {
		x.n.Store(0)
	}
	x.failed, x.whole = false, false
	o.writer = x
	return x
}

// Share sees to it that little waits for the client besides what x, which is being written, has
// left: a payload that x ends with, of at least least bytes, is written from where it is, not from
// a copy, and the rest is moved to a buffer that fits. It returns what is to be written instead of
// x.
func (o *Output) Share(x *Buffer, least int) *Buffer {
	left, payload := x.B[x.n.Load():], x.tail
	if len(x.B) != x.tailAt || len(payload) < least {
		payload = nil
	}
	head := len(left) - len(payload)
	var next *Buffer
	switch {
	case payload != nil:
		next = &Buffer{B: payload, shared: true}
		next.n.Store(int64(max(-head, 0)))
	case Fitting(head) >= cap(x.B):
		return x
	}
	y := next
	if head > 0 {
		y = NewBuffer(head)
		y.B = append(y.B, left[:head]...)
		y.n.Store(0)
		y.failed, y.whole, y.next = false, false, next
	}
	o.writer = y
	x.Free()
	return y
}

// Follow ends the writing of x, if something is to be written behind it, and returns that.
func (o *Output) Follow(x *Buffer) *Buffer {
	y := x.next
	if y != nil {
		o.writer = y
		x.Free()
	}
	return y
}

// Wrote ends the writing of x.
func (o *Output) Wrote(x *Buffer) {
	o.writer = nil
	x.Free()
}

// Held says whether anything is held.
func (o *Output) Held() bool { return o.held != nil }

// HoldsMessage says whether a PUBLISH with that identifier is held.
func (o *Output) HoldsMessage(id uint16) bool {
	if o.held == nil {
		return false
	}
	for i := range o.held.marks {
		if m := &o.held.marks[i]; m.ID == id && m.Kind == Message && m.n > 0 {
			return true
		}
	}
	return false
}

// LastTicket is what the packet waits for that is held last; 0: none is.
func (o *Output) LastTicket() uint64 {
	if h := o.held; h != nil && len(h.marks) > 0 {
		return h.marks[len(h.marks)-1].Ticket
	}
	return 0
}

// LastEnds sets Ends of the packet that is held last.
func (o *Output) LastEnds() { o.held.marks[len(o.held.marks)-1].Ends = true }

// Ordered says whether anything is held that later messages and acknowledgements must not overtake.
// PUBREL and PUBCOMP have an order of their own (4.6).
func (o *Output) Ordered() bool {
	if o.held == nil {
		return false
	}
	for i := range o.held.marks {
		if o.held.marks[i].Kind != Durable {
			return true
		}
	}
	return false
}

// Hold takes the packet that begins at the given place, the last one, out of what may be written.
// With a ticket of 0 it waits for its turn only: until all that is held before it is decided.
func (o *Output) Hold(at int, m Mark) {
	if o.held == nil {
		o.held = new(held)
	}
	h := o.held
	if m.Ticket == 0 {
		m.Ticket, m.Kind = h.most, KeepsPlace
	}
	h.most = max(h.most, m.Ticket)
	payload := o.buf.tail
	if n := len(payload); n < ShareMuch || n >= len(o.buf.B)-at || len(o.buf.B) != o.buf.tailAt {
		payload = nil
	}
	o.buf.tail = nil // what is held can be taken out
	m.n = int32(len(o.buf.B) - at - len(payload))
	if h.buf == nil && at == 0 && payload == nil {
		h.buf, o.buf = o.buf, nil
	} else {
		h.append(o.buf.B[at : at+int(m.n)])
		o.Cut(at)
	}
	h.addPayload(len(h.marks), payload)
	h.marks = append(h.marks, m)
}

func (h *held) append(b []byte) {
	if h.buf == nil {
		h.buf = NewBuffer(len(b))
	} else if x := h.buf; cap(x.B)-len(x.B) < len(b) {
		h.buf = NewBuffer(max(len(x.B)+len(b), 2*len(x.B)))
		h.buf.B = append(h.buf.B, x.B...)
		x.Free()
	}
	h.buf.B = append(h.buf.B, b...)
}

// Drop forgets all that is held.
func (o *Output) Drop() {
	if h := o.held; h != nil {
		if h.buf != nil {
			h.buf.Free()
		}
		o.held = nil
	}
}

// Release lets go what waits for tickets up to the given one, and calls leaves for each such
// packet. It says whether anything may be written now that could not before.
func (o *Output) Release(upto uint64, leaves func(m *Mark)) bool {
	h := o.held
	if h == nil {
		return false
	}
	k, n, any := 0, 0, false
	payload := h.payloadsInOrder()
	for k < len(h.marks) && h.marks[k].Ticket <= upto {
		n += int(h.marks[k].n)
		any = any || n > 0
		leaves(&h.marks[k])
		if b := payload(k); b != nil {
			o.move(n)
			o.appendPayload(b)
			n = 0
		}
		k++
	}
	if n > 0 {
		o.move(n)
	}
	if k == len(h.marks) {
		o.held = nil
		return any
	}
	h.marks = append(h.marks[:0], h.marks[k:]...)
	h.dropPayloads(func(mark int) bool { return mark < k })
	for i := range h.payloads {
		h.payloads[i].mark -= k
	}
	return any
}

// appendPayload appends the end of a packet, which nobody changes.
func (o *Output) appendPayload(b []byte) {
	if len(b) > 0 {
		x := o.Reserve(len(b))
		x.B = append(x.B, b...)
		x.EndsWith(b)
	}
}

// move takes the first n bytes that are held to what may be written.
func (o *Output) move(n int) {
	h := o.held
	if n == len(h.buf.B) && o.buf == nil {
		o.buf, h.buf = h.buf, nil
		return
	}
	y := o.Reserve(n)
	y.B = append(y.B, h.buf.B[:n]...)
	if h.buf.B = h.buf.B[:copy(h.buf.B, h.buf.B[n:])]; len(h.buf.B) == 0 {
		h.buf.Free()
		h.buf = nil
	}
}

// A Fate is what becomes of a packet that is held.
type Fate byte

// The fates.
const (
	Stays  Fate = iota // it is held as before
	Leaves             // it may be written
	Falls              // it is forgotten
)

// Sort asks for the fate of each packet that is held, in their order. What fate appends stands in
// its place. A packet that was withdrawn falls.
func (o *Output) Sort(fate func(m *Mark, first byte) Fate) {
	h := o.held
	o.held = nil
	rest := &held{}
	var b []byte
	if h.buf != nil {
		b = h.buf.B
		defer h.buf.Free()
	}
	at, payloadOf := 0, h.payloadsInOrder()
	for i, m := range h.marks {
		p, payload := b[at:at+int(m.n)], payloadOf(i)
		at += int(m.n)
		if m.n == 0 {
			fate(&m, 0)
			continue
		}
		switch fate(&m, p[0]) {
		case Stays:
			rest.append(p)
			rest.addPayload(len(rest.marks), payload)
			rest.marks = append(rest.marks, m)
			rest.most = max(rest.most, m.Ticket)
		case Leaves:
			y := o.Reserve(len(p))
			y.B = append(y.B, p...)
			o.appendPayload(payload)
		}
	}
	if len(rest.marks) > 0 {
		o.held = rest
	}
}

// Withdraw takes the first packet out that is held under an identifier and matches, and says
// whether there was one. first is the first byte of the packet.
func (o *Output) Withdraw(id uint16, match func(m *Mark, first byte) bool) bool {
	h := o.held
	if h == nil {
		return false
	}
	at := 0
	for i := range h.marks {
		m := &h.marks[i]
		if m.n > 0 && m.ID == id && match(m, h.buf.B[at]) {
			h.buf.B = append(h.buf.B[:at], h.buf.B[at+int(m.n):]...)
			h.dropPayloads(func(mark int) bool { return mark == i })
			m.n, m.Kind = 0, KeepsPlace
			return true
		}
		at += int(m.n)
	}
	return false
}

// WithdrawMessages takes all packets of the kind Message out that are held, and calls each for
// them, with their identifier and their first byte.
func (o *Output) WithdrawMessages(each func(id uint16, first byte)) {
	h := o.held
	if h == nil || h.buf == nil {
		return
	}
	at, rest := 0, h.buf.B[:0]
	h.dropPayloads(func(mark int) bool { return h.marks[mark].Kind == Message })
	for i := range h.marks {
		m := &h.marks[i]
		p := h.buf.B[at : at+int(m.n)]
		at += int(m.n)
		if m.Kind == Message {
			each(m.ID, p[0])
			m.n, m.Kind = 0, KeepsPlace
		} else {
			rest = append(rest, p...)
		}
	}
	h.buf.B = rest
}
