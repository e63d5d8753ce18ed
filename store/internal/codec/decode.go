package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// ErrInvalid is wrapped by what a Decoder returns for bytes that no Encoder has written.
var ErrInvalid = errors.New("not an operation")

// A Decoder reads the operations of a stream. The zero value reads an empty one. It trusts nothing:
// memory follows the bytes that are there.
type Decoder struct {
	// Borrow lets an operation, and what it points to, be valid only until the next call, and alias
	// the stream. It saves all memory but that of strings.
	Borrow bool

	b            []byte // what is left
	size         int    // of all
	session, seq uint64
	failed       string // what was being read when the bytes ended
	strings      *[1024]string
	hash         maphash.Seed

	// Used again if Borrow is set.
	publish  store.Publish
	message  store.Message
	retained store.PutRetained
	to       []store.Delivery
	sent     store.Sent
	done     store.Done
	released store.Released
}

// Reset begins the stream b. Unless Borrow is set, nothing that is decoded aliases it.
func (d *Decoder) Reset(b []byte) {
	d.b, d.size, d.session, d.seq, d.failed = b, len(b), 0, 0, ""
	if d.strings == nil {
		d.strings, d.hash = new([1024]string), maphash.MakeSeed()
	}
}

// More tells whether the stream has bytes left.
func (d *Decoder) More() bool { return len(d.b) > 0 }

// Offset returns how many bytes were read.
func (d *Decoder) Offset() int { return d.size - len(d.b) }

// Next returns the next operation. An error wraps ErrInvalid and says at which offset the operation
// begins that could not be read; the Decoder must then be Reset.
func (d *Decoder) Next() (store.Op, error) {
	at := d.Offset()
	op := d.next()
	if d.failed != "" {
		return nil, fmt.Errorf("%w at offset %d of %d: %s", ErrInvalid, at, d.size, d.failed)
	}
	return op, nil
}

func (d *Decoder) next() store.Op {
	switch kind := d.byte("operation"); kind {
	case publish:
		return d.readPublish()
	case sent:
		op := reused(d, &d.sent)
		op.Session, op.Seq = d.place()
		op.ID = d.uint16("packet identifier")
		return op
	case released:
		op := reused(d, &d.released)
		op.Session, op.Seq = d.place()
		return op
	case done:
		op := reused(d, &d.done)
		op.Session, op.Seq = d.place()
		return op
	case received:
		return &store.Received{Session: d.readSession(), ID: d.uint16("packet identifier")}
	case forget:
		return &store.Forget{Session: d.readSession(), ID: d.uint16("packet identifier")}
	case putRetained:
		op := reused(d, &d.retained)
		op.Message = d.readMessage()
		return op
	case deleteRetained:
		return &store.DeleteRetained{Topic: d.string("topic")}
	case putSession:
		return d.readPutSession()
	case deleteSession:
		return &store.DeleteSession{Session: d.readSession()}
	case putSubscription:
		return d.readPutSubscription()
	case deleteSubscription:
		return &store.DeleteSubscription{Session: d.readSession(), Filter: d.string("filter")}
	default:
		d.fail(fmt.Sprintf("operation %d is not known", kind))
		return nil
	}
}

// reused returns p if it may be used again, or else a new one.
func reused[T any](d *Decoder, p *T) *T {
	if !d.Borrow {
		return new(T)
	}
	return p
}

// fail notes the first thing that is wrong. From then on there are no bytes.
func (d *Decoder) fail(what string) {
	if d.failed == "" {
		d.failed = what
	}
	d.b = nil
}

func (d *Decoder) byte(what string) byte {
	if len(d.b) == 0 {
		d.fail(what + " is cut off")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

// flags reads a byte of which the bits from unused on must be 0.
func (d *Decoder) flags(what string, unused byte) byte {
	f := d.byte(what)
	if f >= unused {
		d.fail(fmt.Sprintf("%s %#x is not known", what, f))
		return 0
	}
	return f
}

func (d *Decoder) uvarint(what string, max uint64) uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 && uint64(d.b[0]) <= max {
		n := d.b[0]
		d.b = d.b[1:]
		return uint64(n)
	}
	n, size := binary.Uvarint(d.b)
	if size <= 0 || n > max {
		d.fail(what + " is cut off or too large")
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *Decoder) uint16(what string) uint16 { return uint16(d.uvarint(what, 1<<16-1)) }

func (d *Decoder) uint32(what string) uint32 { return uint32(d.uvarint(what, 1<<32-1)) }

// delta reads a zigzag varint.
func (d *Decoder) delta(what string) uint64 {
	n := d.uvarint(what, 1<<64-1)
	return n>>1 ^ -(n & 1)
}

func (d *Decoder) instant(what string) int64 {
	if len(d.b) < 8 {
		d.fail(what + " is cut off")
		return 0
	}
	n := binary.LittleEndian.Uint64(d.b)
	d.b = d.b[8:]
	return int64(n)
}

// bytes reads a byte string, which aliases the stream.
func (d *Decoder) bytes(what string) []byte {
	n := d.uvarint(what, uint64(len(d.b)))
	if n > uint64(len(d.b)) {
		d.fail(what + " is cut off")
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

// string reads a string. Short ones that were seen lately are not made anew: there are few topics
// and clients for many messages.
func (d *Decoder) string(what string) string {
	b := d.bytes(what)
	if len(b) == 0 || len(b) > 256 {
		return string(b)
	}
	s := &d.strings[maphash.Bytes(d.hash, b)%uint64(len(d.strings))]
	if *s != string(b) {
		*s = string(b)
	}
	return *s
}

func (d *Decoder) readSession() uint64 {
	d.session += d.delta("session")
	return d.session
}

func (d *Decoder) place() (session, seq uint64) {
	d.session += d.delta("session")
	d.seq += d.delta("seq")
	return d.session, d.seq
}

func (d *Decoder) readPutSession() store.Op {
	flags := d.flags("session flags", sessionUnused)
	op := &store.PutSession{
		Session: d.readSession(), ClientID: d.string("client identifier"),
		Principal: d.string("principal"),
		Username:  d.string("user name"), Mount: d.string("mount point"),
		Named: flags&sessionNamed != 0, Expiry: d.uint32("expiry"),
	}
	if flags&sessionExpires != 0 {
		op.ExpiresAt = d.instant("end of the session")
	}
	if flags&sessionWill != 0 {
		op.Will = new(store.Will)
		d.messageInto(&op.Will.Message)
		op.Will.Delay = d.uint32("will delay")
		if flags&sessionWillAt != 0 {
			op.Will.At = d.instant("time of the will")
		}
	}
	return op
}

func (d *Decoder) readPutSubscription() store.Op {
	op := &store.PutSubscription{Session: d.readSession()}
	op.Filter = d.string("filter")
	options := d.flags("options", optionUnused)
	op.QoS, op.RetainHandling = packets.QoS(options&3), options>>4&3
	op.NoLocal, op.RetainAsPublished = options&optionNoLocal != 0,
		options&optionRetainAsPublished != 0
	op.ID = d.uint32("subscription identifier")
	return op
}

func (d *Decoder) readPublish() store.Op {
	op := reused(d, &d.publish)
	*op = store.Publish{Message: d.readMessage()}
	flags := d.flags("publish flags", publishUnused)
	op.Retain = flags&publishRetain != 0
	if flags&publishFrom != 0 {
		op.FromSession, op.FromID = d.readSession(), d.uint16("packet identifier")
	}
	// Each delivery takes two bytes at least.
	n := int(d.uvarint("number of deliveries", uint64(len(d.b)/2)))
	if n == 0 {
		return op
	}
	if d.Borrow {
		d.to = slices.Grow(d.to[:0], n)
		op.To = d.to[:n]
	} else {
		op.To = make([]store.Delivery, n)
	}
	for to := op.To; len(to) > 0 && d.failed == ""; {
		to = to[d.run(to):]
	}
	return op
}

// run reads a run of deliveries into the front of to and returns its length, never 0.
func (d *Decoder) run(to []store.Delivery) int {
	flags := d.flags("delivery flags", runUnused)
	shape := store.Delivery{QoS: packets.QoS(flags & 3), Retain: flags&runRetain != 0}
	n := 1
	if flags&runLong != 0 {
		if n = int(d.uvarint("length of a run", uint64(len(to)))); n == 0 {
			d.fail("a run is empty")
			return len(to)
		}
	}
	if flags&runIDs != 0 {
		shape.IDs = d.readIDs()
	}
	if flags&runGroup != 0 {
		shape.Group = d.string("group")
	}
	for i := range to[:n] {
		shape.Session, shape.Seq = d.place()
		to[i] = shape
	}
	return n
}

func (d *Decoder) readIDs() []uint32 {
	n := int(d.uvarint("number of subscription identifiers", uint64(len(d.b))))
	ids := make([]uint32, 0, n)
	for range n {
		ids = append(ids, d.uint32("subscription identifier"))
	}
	return ids
}

// readMessage reads a message. Its parts share one piece of memory.
func (d *Decoder) readMessage() *store.Message {
	m := reused(d, &d.message)
	*m = store.Message{}
	m.From, m.Expires = d.messageInto(&m.Message)
	return m
}

func (d *Decoder) messageInto(m *packets.Message) (from string, expires int64) {
	flags := d.flags("message flags", messageUnused)
	m.QoS, m.Retain = packets.QoS(flags&3), flags&messageRetain != 0
	m.Topic = d.string("topic")
	if flags&messageFrom != 0 {
		from = d.string("publisher")
	}
	var properties []byte
	if flags&messageProperties != 0 {
		properties = d.bytes("properties")
	}
	payload := d.bytes("payload")
	if flags&messageExpires != 0 {
		expires = d.instant("expiry")
	}
	if !d.Borrow {
		own := make([]byte, len(properties)+len(payload))
		n := copy(own, properties)
		copy(own[n:], payload)
		properties, payload = own[:n:n], own[n:]
	}
	if len(properties) > 0 {
		m.Properties = properties
	}
	if len(payload) > 0 {
		m.Payload = payload
	}
	return from, expires
}

// DecodeMessage decodes what AppendMessage has written.
func (d *Decoder) DecodeMessage(b []byte) (*store.Message, error) {
	d.Reset(b)
	m := d.readMessage()
	if d.failed == "" && d.More() {
		d.fail("bytes follow the message")
	}
	if d.failed != "" {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, d.failed)
	}
	return m, nil
}
