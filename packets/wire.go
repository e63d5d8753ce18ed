package packets

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// The limits of the wire format (1.5, 2.1.4).
const (
	maxString    = 65_535      // bytes of a UTF-8 string or of binary data
	maxRemaining = 268_435_455 // the largest Variable Byte Integer
)

// appendVarint appends n as a Variable Byte Integer in its shortest form [MQTT-1.5.5-1].
func appendVarint(dst []byte, n int) []byte {
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}

// varintLen returns how many bytes appendVarint appends.
func varintLen(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	default:
		return 4
	}
}

// consumeVarint reads a Variable Byte Integer at the start of b. size is its number of bytes, 0 if
// b ends inside it, and -1 if it has more than four. minimal is false if it is not in its shortest
// form.
func consumeVarint(b []byte) (n, size int, minimal bool) {
	for i, c := range b[:min(len(b), 4)] {
		n |= int(c&0x7F) << (7 * i)
		if c < 0x80 {
			return n, i + 1, i == 0 || c != 0
		}
	}
	if len(b) < 4 {
		return 0, 0, true
	}
	return 0, -1, true
}

// appendField appends a UTF-8 string or binary data after its length in two bytes (1.5.4, 1.5.6).
// The caller has checked the length.
func appendField[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// appendProperties appends p with its length in front.
func appendProperties(dst []byte, p Properties) []byte {
	return append(appendVarint(dst, len(p)), p...)
}

// propertiesLen returns how many bytes appendProperties appends.
func propertiesLen(p Properties) int { return varintLen(len(p)) + len(p) }

// packetLen returns the length of a packet whose Remaining Length is n.
func packetLen(n int) int { return 1 + varintLen(n) + n }

// appendHeader makes room for a whole packet and appends its fixed header.
func appendHeader(dst []byte, first byte, n int) []byte {
	dst = slices.Grow(dst, packetLen(n))
	return appendVarint(append(dst, first), n)
}

// checkFrame returns an error if a packet of type t cannot have Remaining Length n, or if v has
// properties and p cannot be encoded.
func checkFrame(t Type, n int, p Properties, v Version) error {
	if v >= V5 && p.unencodable() {
		return fmt.Errorf("packets: %v: %v was given a value that it cannot hold", t, p.misfit())
	}
	if n > maxRemaining {
		return fmt.Errorf("packets: %v: a Remaining Length of %d is above %d", t, n, maxRemaining)
	}
	return nil
}

// checkField returns an error if a string or binary field of n bytes is too long for the wire.
func checkField(t Type, field string, n int) error {
	if n > maxString {
		return fmt.Errorf("packets: %v: %s has %d bytes, above %d", t, field, n, maxString)
	}
	return nil
}

// A cursor reads the fields of a packet's body in order. After the first failure it returns zero
// values, and err holds that failure.
type cursor struct {
	t   Type
	b   []byte
	i   int
	err error
}

// fail records the first failure.
func (c *cursor) fail(code ReasonCode, field, what string) {
	if c.err == nil {
		c.err = Errorf(code, "%v: %s at offset %d %s", c.t, field, c.i, what)
	}
}

// take returns the next n bytes, capped so that appending to them copies them.
func (c *cursor) take(n int, field string) []byte {
	if c.err != nil {
		return nil
	}
	if len(c.b)-c.i < n {
		c.fail(MalformedPacket, field, "is cut short")
		return nil
	}
	b := c.b[c.i : c.i+n : c.i+n]
	c.i += n
	return b
}

func (c *cursor) uint8(field string) byte {
	if b := c.take(1, field); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16(field string) uint16 {
	if b := c.take(2, field); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// packetID reads a Packet Identifier, which is never 0 [MQTT-2.2.1-3].
func (c *cursor) packetID() uint16 {
	id := c.uint16("packet identifier")
	if id == 0 {
		c.fail(ProtocolError, "packet identifier", "is 0")
	}
	return id
}

// binary reads binary data; nil if it is empty.
func (c *cursor) binary(field string) []byte {
	b := c.take(int(c.uint16(field)), field)
	if len(b) == 0 {
		return nil
	}
	return b
}

// text reads a UTF-8 string and checks it [MQTT-1.5.4-1] [MQTT-1.5.4-2].
func (c *cursor) text(field string) string {
	b := c.binary(field)
	if !ValidUTF8(b) {
		c.fail(MalformedPacket, field, "is not UTF-8 or contains U+0000")
		return ""
	}
	return string(b)
}

// properties reads the length and the properties after it, and checks them for packets of type in.
func (c *cursor) properties(in Type) Properties {
	if c.err != nil {
		return nil
	}
	n, size, minimal := consumeVarint(c.b[c.i:])
	switch {
	case size == 0:
		c.fail(MalformedPacket, "property length", "is cut short")
	case size < 0 || !minimal:
		c.fail(MalformedPacket, "property length",
			"is not a Variable Byte Integer in its shortest form")
	}
	c.i += max(size, 0)
	p := Properties(c.take(n, "properties"))
	if c.err != nil || len(p) == 0 {
		return nil
	}
	if c.err = p.check(in); c.err != nil {
		return nil
	}
	return p
}

// end returns the first failure. Bytes left over are a failure too [MQTT5-NOID-2.1.4-1].
func (c *cursor) end() error {
	if c.i < len(c.b) {
		c.fail(MalformedPacket, "end", "is followed by more bytes")
	}
	return c.err
}
