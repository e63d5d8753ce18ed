package packets

import "encoding/binary"

// An Ack is a PUBACK, PUBREC, PUBREL or PUBCOMP packet. The four share one form (3.4 to 3.7).
type Ack struct {
	Kind       Type // which of the four; Append panics for any other
	PacketID   uint16
	Code       ReasonCode // since 5.0
	Properties Properties // since 5.0
}

// Type returns a.Kind.
func (a *Ack) Type() Type { return a.Kind }

// Size returns the length of the whole packet.
func (a *Ack) Size(v Version) int { return packetLen(a.remaining(v)) }

func (a *Ack) remaining(v Version) int {
	switch {
	case v < V5 || a.Code == Success && len(a.Properties) == 0:
		return 2
	case len(a.Properties) == 0:
		return 3
	default:
		return 3 + propertiesLen(a.Properties)
	}
}

// firstByte returns the first byte of the packet.
func (a *Ack) firstByte() byte {
	switch a.Kind {
	case TypePubrel:
		return byte(TypePubrel)<<4 | 2
	case TypePuback, TypePubrec, TypePubcomp:
		return byte(a.Kind) << 4
	default:
		panic("BUG: " + a.Kind.String() + " is not an acknowledgement of PUBLISH")
	}
}

// Append appends the whole packet in its shortest form: see Packet.
func (a *Ack) Append(dst []byte, v Version) ([]byte, error) {
	n := a.remaining(v)
	if n == 2 {
		return append(dst, a.firstByte(), 2, byte(a.PacketID>>8), byte(a.PacketID)), nil
	}
	if err := checkFrame(a.Kind, n, a.Properties, v); err != nil {
		return dst, err
	}
	b := appendHeader(dst, a.firstByte(), n)
	b = binary.BigEndian.AppendUint16(b, a.PacketID)
	b = append(b, byte(a.Code))
	if n > 3 {
		b = appendProperties(b, a.Properties)
	}
	return b, nil
}

// Decode decodes the body: see Packet. h.Type tells which of the four packets it is.
func (a *Ack) Decode(h Header, body []byte, v Version) error {
	if len(body) == 2 && (body[0] != 0 || body[1] != 0) {
		*a = Ack{Kind: h.Type, PacketID: binary.BigEndian.Uint16(body)}
		return nil
	}
	*a = Ack{Kind: h.Type}
	r := cursor{t: h.Type, b: body}
	a.PacketID = r.packetID()
	if v >= V5 && len(body) > 2 {
		if a.Code = ReasonCode(r.uint8("reason code")); !a.Code.ValidIn(h.Type) {
			r.fail(ProtocolError, "reason code", "is not one of this packet")
		}
		if len(body) > 3 {
			a.Properties = r.properties(h.Type)
		}
	}
	return r.end()
}
