package packets

import "encoding/binary"

// An Unsubscribe is an UNSUBSCRIBE packet (3.10).
type Unsubscribe struct {
	PacketID   uint16
	Properties Properties // since 5.0
	Filters    []string
}

// Type returns TypeUnsubscribe.
func (u *Unsubscribe) Type() Type { return TypeUnsubscribe }

// Size returns the length of the whole packet.
func (u *Unsubscribe) Size(v Version) int { return packetLen(u.remaining(v)) }

func (u *Unsubscribe) remaining(v Version) int {
	n := 2
	if v >= V5 {
		n += propertiesLen(u.Properties)
	}
	for _, f := range u.Filters {
		n += 2 + len(f)
	}
	return n
}

// Append appends the whole packet: see Packet.
func (u *Unsubscribe) Append(dst []byte, v Version) ([]byte, error) {
	n := u.remaining(v)
	if err := checkFrame(TypeUnsubscribe, n, u.Properties, v); err != nil {
		return dst, err
	}
	for _, f := range u.Filters {
		if err := checkField(TypeUnsubscribe, "topic filter", len(f)); err != nil {
			return dst, err
		}
	}
	b := appendHeader(dst, byte(TypeUnsubscribe)<<4|2, n)
	b = binary.BigEndian.AppendUint16(b, u.PacketID)
	if v >= V5 {
		b = appendProperties(b, u.Properties)
	}
	for _, f := range u.Filters {
		b = appendField(b, f)
	}
	return b, nil
}

// Decode decodes the body: see Packet. It refuses an invalid Topic Filter as MalformedPacket, as
// Subscribe does.
func (u *Unsubscribe) Decode(_ Header, body []byte, v Version) error {
	return u.decode(body, v, Limits{})
}

func (u *Unsubscribe) decode(body []byte, v Version, l Limits) error {
	*u = Unsubscribe{}
	r := cursor{t: TypeUnsubscribe, b: body}
	u.PacketID = r.packetID()
	if v >= V5 {
		u.Properties = r.properties(TypeUnsubscribe)
	}
	n := countFilters(&r, 0, l)
	if r.err != nil {
		return r.err
	}
	u.Filters = make([]string, n)
	for i := range u.Filters {
		u.Filters[i] = r.topicFilter(v)
	}
	return r.end()
}

// An Unsuback is an UNSUBACK packet: the answer to UNSUBSCRIBE (3.11).
type Unsuback struct {
	PacketID   uint16
	Properties Properties   // since 5.0
	Codes      []ReasonCode // since 5.0: one for each Topic Filter
}

// Type returns TypeUnsuback.
func (u *Unsuback) Type() Type { return TypeUnsuback }

// Size returns the length of the whole packet.
func (u *Unsuback) Size(v Version) int { return packetLen(u.remaining(v)) }

func (u *Unsuback) remaining(v Version) int {
	if v < V5 {
		return 2
	}
	return 2 + propertiesLen(u.Properties) + len(u.Codes)
}

// Append appends the whole packet: see Packet.
func (u *Unsuback) Append(dst []byte, v Version) ([]byte, error) {
	n := u.remaining(v)
	if err := checkFrame(TypeUnsuback, n, u.Properties, v); err != nil {
		return dst, err
	}
	b := appendHeader(dst, byte(TypeUnsuback)<<4, n)
	b = binary.BigEndian.AppendUint16(b, u.PacketID)
	if v >= V5 {
		b = appendProperties(b, u.Properties)
		for _, code := range u.Codes {
			b = append(b, byte(code))
		}
	}
	return b, nil
}

// Decode decodes the body: see Packet.
func (u *Unsuback) Decode(_ Header, body []byte, v Version) error {
	*u = Unsuback{}
	r := cursor{t: TypeUnsuback, b: body}
	u.PacketID = r.packetID()
	if v >= V5 {
		u.Properties = r.properties(TypeUnsuback)
		u.Codes = r.codes(v)
	}
	return r.end()
}
