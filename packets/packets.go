// Package packets encodes and decodes the packets of MQTT 3.1, 3.1.1 and 5.0. It imports only the
// standard library, starts no goroutine, and serves brokers, clients, proxies and tests.
//
// Each packet is a struct that implements [Packet]. Encoding appends to the caller's slice.
// Decoding works in place: the slices of a packet alias the bytes that were decoded. If a peer
// broke the protocol, the error is an [*Error] with the Reason Code that the standard asks for as
// the answer. In 3.1 and 3.1.1 the answer is always to close the connection. The caller checks
// everything that needs a Session: which side may send a packet, Topic Aliases, and Packet
// Identifiers in use.
//
// A client writes packets and reads the answers with a [Reader], which limits what it accepts from
// the other side:
//
//	connect := &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c1"}
//	b, err := connect.Append(nil, packets.V5)
//	...
//	conn.Write(b)
//	r := packets.NewReader(conn, packets.Limits{PacketSize: 1 << 20})
//	r.SetVersion(packets.V5)
//	p, err := r.ReadPacket()
//	if ack, ok := p.(*packets.Connack); ok && !ack.Code.Failed() {
//		...
//	}
//
// A proxy looks at packets and forwards their bytes. It decodes in place, and only the packets it
// needs. This one logs every packet except PUBLISH, of which it reads the topic:
//
//	for {
//		h, err := packets.ParseHeader(buf, version)
//		if err == packets.ErrShort || err == nil && len(buf) < h.Len+h.Remaining {
//			break // read more
//		}
//		...
//		whole := buf[:h.Len+h.Remaining]
//		if h.Type == packets.TypePublish {
//			// One Publish decodes all messages, without allocation.
//			err = publish.Decode(h, whole[h.Len:], version)
//		} else if p, _, err := packets.Decode(whole, version, limits); err == nil {
//			log.Print(packets.Trace(p))
//		}
//		...
//		out.Write(whole)
//		buf = buf[len(whole):]
//	}
//
// A test states the packet it expects as a line of text, which a failure then shows:
//
//	p, err := r.ReadPacket()
//	require.NoError(t, err)
//	require.Equal(t, "SUBACK id=1 codes=00,87", packets.Trace(p))
//
// A test can also send invalid packets, because Append writes the fields as they are: a Publish
// with QoS 3, a Subscribe without filters, Properties that the packet must not have.
package packets

import (
	"errors"
	"fmt"
)

// A Type is the type of a packet: bits 7 to 4 of its first byte (2.1.2). The zero value is
// reserved.
type Type byte

// The types of packets (2.1.2).
const (
	TypeConnect Type = iota + 1
	TypeConnack
	TypePublish
	TypePuback
	TypePubrec
	TypePubrel
	TypePubcomp
	TypeSubscribe
	TypeSuback
	TypeUnsubscribe
	TypeUnsuback
	TypePingreq
	TypePingresp
	TypeDisconnect
	TypeAuth // since 5.0

	// TypeWill is not a packet type. It stands for the Will Properties of a CONNECT (3.1.3.2) in
	// Properties.Check.
	TypeWill
)

var typeNames = [...]string{
	"RESERVED", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK",
	"UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH", "WILL",
}

// String returns the name in capitals as the standard writes it, such as "CONNECT".
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return fmt.Sprintf("Type(%d)", byte(t))
}

// A Version is the protocol version, as the Protocol Level of CONNECT (3.1.2.2). The zero value
// means unknown: no CONNECT has arrived yet.
type Version byte

// The protocol versions.
const (
	V31  Version = 3
	V311 Version = 4
	V5   Version = 5
)

// String returns "3.1", "3.1.1" or "5.0".
func (v Version) String() string {
	switch v {
	case V31:
		return "3.1"
	case V311:
		return "3.1.1"
	case V5:
		return "5.0"
	default:
		return fmt.Sprintf("Version(%d)", byte(v))
	}
}

// A QoS is a level of delivery: at most once, at least once, exactly once (4.3). The zero value is
// at most once.
type QoS byte

// The levels of delivery (4.3).
const (
	QoS0 QoS = iota
	QoS1
	QoS2
)

// A Packet is a pointer to one of the packet types of this package.
type Packet interface {
	// Type returns the type of the packet.
	Type() Type
	// Size returns the length of the whole packet as Append writes it.
	Size(v Version) int
	// Append appends the whole packet, fixed header included, and returns the extended slice. It
	// writes the fields as they are, valid or not, and leaves out fields that v does not have. It
	// returns dst unchanged and an error if a field does not fit the wire: a string or binary data
	// over 65,535 bytes, a packet over 268,435,460 bytes, a QoS over 3. It does not allocate if dst
	// has room for Size(v) bytes.
	Append(dst []byte, v Version) ([]byte, error)
	// Decode replaces the whole packet with the contents of body, the h.Remaining bytes after the
	// fixed header. Slices alias body, and are nil if they are empty; strings are copies. The error
	// is an *Error, and the packet is then incomplete.
	Decode(h Header, body []byte, v Version) error
}

// A Header is a decoded fixed header (2.1).
type Header struct {
	Type      Type
	Flags     byte // bits 3 to 0 of the first byte
	Remaining int  // the Remaining Length: bytes that follow the fixed header
	Len       int  // bytes of the fixed header itself, 2 to 5
}

// ErrShort means that the bytes end inside the packet: read more and try again. It is not an
// *Error.
var ErrShort = errors.New("packets: the packet is not complete")

// firstBytes holds, for each first byte, the set of versions that allow it, as bits 1<<Version. Bit
// 0 is the unknown version.
var firstBytes = func() (set [256]byte) {
	const all = 1<<0 | 1<<V31 | 1<<V311 | 1<<V5
	for t := TypeConnect; t <= TypeDisconnect; t++ {
		switch t {
		case TypePublish:
			// QoS 3 [MQTT-3.3.1-4] and DUP with QoS 0 [MQTT-3.3.1-2] are left out.
			for _, flags := range []byte{0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0xA, 0xB, 0xC, 0xD} {
				set[byte(t)<<4|flags] = all
			}
		case TypePubrel, TypeSubscribe, TypeUnsubscribe:
			set[byte(t)<<4|0x2] = all
			set[byte(t)<<4|0xA] = 1 << V31 // in 3.1 these have a DUP flag
		default:
			set[byte(t)<<4] = all
		}
	}
	set[byte(TypeAuth)<<4] = 1 << V5
	return set
}()

// ParseHeader decodes the fixed header at the start of b (2.1). The error is ErrShort if b ends
// inside the header. Otherwise it is an *Error with MalformedPacket: for a type or flags that v
// does not have, for a Remaining Length of more than four bytes, and for a Remaining Length that is
// not in its shortest form, which only 3.1 and 3.1.1 allow. A zero v, before the CONNECT, is as
// strict as 5.0. ParseHeader reads only the fixed header, and does not allocate unless it fails.
func ParseHeader(b []byte, v Version) (h Header, err error) {
	if len(b) >= 2 && b[1] < 0x80 && firstBytes[b[0]]>>(v&7)&1 != 0 {
		return Header{Type(b[0] >> 4), b[0] & 0xF, int(b[1]), 2}, nil
	}
	return parseHeader(b, v)
}

// parseHeader is the slow path of ParseHeader.
func parseHeader(b []byte, v Version) (Header, error) {
	if len(b) == 0 {
		return Header{}, ErrShort
	}
	t, flags := Type(b[0]>>4), b[0]&0xF
	if firstBytes[b[0]]>>(v&7)&1 == 0 {
		if t == 0 || t == TypeAuth && v != V5 {
			return Header{}, Errorf(MalformedPacket, "packet type %d is reserved", t)
		}
		return Header{}, Errorf(MalformedPacket, "%v: flags %04b are not allowed", t, flags)
	}
	n, size, minimal := consumeVarint(b[1:])
	switch {
	case size == 0:
		return Header{}, ErrShort
	case size < 0:
		return Header{}, Errorf(MalformedPacket,
			"%v: the Remaining Length has more than four bytes", t)
	case !minimal && v != V31 && v != V311:
		return Header{}, Errorf(MalformedPacket,
			"%v: the Remaining Length is not in its shortest form", t)
	}
	return Header{t, flags, n, 1 + size}, nil
}

// Limits bounds the packets that Decode and a Reader accept. Zero means no limit.
type Limits struct {
	PacketSize     int // bytes of a whole packet, fixed header included; above: PacketTooLarge
	Filters        int // Topic Filters of one SUBSCRIBE or UNSUBSCRIBE; above: QuotaExceeded
	UserProperties int // User Properties of one packet and its Will; above: QuotaExceeded
}

// CheckHeader returns an *Error with PacketTooLarge if the packet with header h is larger than the
// limit.
func (l Limits) CheckHeader(h Header) error {
	if l.PacketSize > 0 && h.Len+h.Remaining > l.PacketSize {
		return Errorf(PacketTooLarge, "%v: %d bytes, above %d", h.Type, h.Len+h.Remaining,
			l.PacketSize)
	}
	return nil
}

// Check returns an *Error with QuotaExceeded if p has more Topic Filters or User Properties than
// the limits allow. Decode and Reader call it already.
func (l Limits) Check(p Packet) error {
	var user, filters int
	switch p := p.(type) {
	case *Connect:
		user = l.user(p.Properties)
		if p.Will != nil {
			user += l.user(p.Will.Properties)
		}
	case *Publish:
		user = l.user(p.Properties)
	case *Subscribe:
		user, filters = l.user(p.Properties), len(p.Subscriptions)
	case *Unsubscribe:
		user, filters = l.user(p.Properties), len(p.Filters)
	case *Ack:
		user = l.user(p.Properties)
	case *Connack:
		user = l.user(p.Properties)
	case *Suback:
		user = l.user(p.Properties)
	case *Unsuback:
		user = l.user(p.Properties)
	case *Disconnect:
		user = l.user(p.Properties)
	case *Auth:
		user = l.user(p.Properties)
	}
	if l.UserProperties > 0 && user > l.UserProperties {
		return Errorf(QuotaExceeded, "more than %d User Properties", l.UserProperties)
	}
	return l.checkFilters(filters)
}

// user counts User Properties if they are limited.
func (l Limits) user(p Properties) int {
	if l.UserProperties <= 0 || len(p) == 0 {
		return 0
	}
	return p.count(UserProperty)
}

func (l Limits) checkFilters(n int) error {
	if l.Filters > 0 && n > l.Filters {
		return Errorf(QuotaExceeded, "more than %d Topic Filters", l.Filters)
	}
	return nil
}

// Decode decodes the packet at the start of b, and returns it with the number of bytes it took.
// Slices of the packet alias b. If b ends inside the packet, n is 0 and err is ErrShort; a packet
// whose header is not allowed is refused at once. Any other error is an *Error. A zero v means that
// a CONNECT is expected; any other packet is then decoded as 3.1.1.
func Decode(b []byte, v Version, l Limits) (p Packet, n int, err error) {
	h, err := ParseHeader(b, v)
	if err != nil {
		return nil, 0, err
	}
	if err = l.CheckHeader(h); err != nil {
		return nil, 0, err
	}
	n = h.Len + h.Remaining
	if len(b) < n {
		return nil, 0, ErrShort
	}
	if p, err = decode(h, b[h.Len:n:n], v, l); err != nil {
		return nil, 0, err
	}
	return p, n, nil
}

// decode makes a packet of a header and its body.
func decode(h Header, body []byte, v Version, l Limits) (Packet, error) {
	var err error
	p := newPacket(h.Type)
	switch p := p.(type) {
	case *Subscribe:
		err = p.decode(body, v, l)
	case *Unsubscribe:
		err = p.decode(body, v, l)
	default:
		err = p.Decode(h, body, v)
	}
	if err == nil {
		err = l.Check(p)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// newPacket returns an empty packet of type t. ParseHeader has accepted the type.
func newPacket(t Type) Packet {
	switch t {
	case TypeConnect:
		return new(Connect)
	case TypeConnack:
		return new(Connack)
	case TypePublish:
		return new(Publish)
	case TypePuback, TypePubrec, TypePubrel, TypePubcomp:
		return new(Ack)
	case TypeSubscribe:
		return new(Subscribe)
	case TypeSuback:
		return new(Suback)
	case TypeUnsubscribe:
		return new(Unsubscribe)
	case TypeUnsuback:
		return new(Unsuback)
	case TypePingreq:
		return new(Pingreq)
	case TypePingresp:
		return new(Pingresp)
	case TypeDisconnect:
		return new(Disconnect)
	case TypeAuth:
		return new(Auth)
	default:
		panic(fmt.Sprintf("BUG: no packet has type %d", t))
	}
}
