package packets

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// A Subscription is one Topic Filter of a SUBSCRIBE with its Subscription Options (3.8.3.1).
type Subscription struct {
	Filter            string
	QoS               QoS  // the maximum QoS of deliveries
	NoLocal           bool // since 5.0, like the fields below
	RetainAsPublished bool
	// 0: send retained messages; 1: only if the subscription is new; 2: never
	RetainHandling byte
}

// A Subscribe is a SUBSCRIBE packet (3.8).
type Subscribe struct {
	PacketID      uint16
	Properties    Properties // since 5.0
	Subscriptions []Subscription
}

// Type returns TypeSubscribe.
func (s *Subscribe) Type() Type { return TypeSubscribe }

// Size returns the length of the whole packet.
func (s *Subscribe) Size(v Version) int { return packetLen(s.remaining(v)) }

func (s *Subscribe) remaining(v Version) int {
	n := 2
	if v >= V5 {
		n += propertiesLen(s.Properties)
	}
	for i := range s.Subscriptions {
		n += 2 + len(s.Subscriptions[i].Filter) + 1
	}
	return n
}

// Append appends the whole packet: see Packet.
func (s *Subscribe) Append(dst []byte, v Version) ([]byte, error) {
	n := s.remaining(v)
	if err := checkFrame(TypeSubscribe, n, s.Properties, v); err != nil {
		return dst, err
	}
	for i := range s.Subscriptions {
		sub := &s.Subscriptions[i]
		if err := checkField(TypeSubscribe, "topic filter", len(sub.Filter)); err != nil {
			return dst, err
		}
		if sub.QoS > 3 || sub.RetainHandling > 3 {
			return dst, fmt.Errorf("packets: SUBSCRIBE: QoS %d, retain handling %d", sub.QoS,
				sub.RetainHandling)
		}
	}
	b := appendHeader(dst, byte(TypeSubscribe)<<4|2, n)
	b = binary.BigEndian.AppendUint16(b, s.PacketID)
	if v >= V5 {
		b = appendProperties(b, s.Properties)
	}
	for i := range s.Subscriptions {
		sub := &s.Subscriptions[i]
		b = append(appendField(b, sub.Filter), sub.options(v))
	}
	return b, nil
}

// options returns the Subscription Options, or the Requested QoS before 5.0.
func (s *Subscription) options(v Version) byte {
	o := byte(s.QoS)
	if v < V5 {
		return o
	}
	if s.NoLocal {
		o |= 1 << 2
	}
	if s.RetainAsPublished {
		o |= 1 << 3
	}
	return o | s.RetainHandling<<4
}

// Decode decodes the body: see Packet. It refuses an invalid Topic Filter as MalformedPacket: an
// empty one, one with a wildcard in the wrong place, and in 5.0 one that begins with $share/
// without being a shared subscription (see SplitShared).
func (s *Subscribe) Decode(_ Header, body []byte, v Version) error {
	return s.decode(body, v, Limits{})
}

func (s *Subscribe) decode(body []byte, v Version, l Limits) error {
	*s = Subscribe{}
	r := cursor{t: TypeSubscribe, b: body}
	s.PacketID = r.packetID()
	if v >= V5 {
		s.Properties = r.properties(TypeSubscribe)
	}
	n := countFilters(&r, 1, l)
	if r.err != nil {
		return r.err
	}
	s.Subscriptions = make([]Subscription, n)
	for i := range s.Subscriptions {
		sub := &s.Subscriptions[i]
		sub.Filter = r.topicFilter(v)
		sub.decodeOptions(&r, v)
	}
	return r.end()
}

// countFilters counts the remaining fields, each followed by extra bytes. It runs before anything
// is allocated, so that a packet over the limits costs no memory.
func countFilters(r *cursor, extra int, l Limits) (n int) {
	if r.err != nil {
		return 0
	}
	for b := r.b[r.i:]; len(b) > 0; n++ {
		size := fieldLen(b)
		if size < 0 || size+extra > len(b) {
			r.fail(MalformedPacket, "topic filter", "or what belongs to it is cut short")
			return 0
		}
		b = b[size+extra:]
	}
	if n == 0 { // [MQTT-3.8.3-2] [MQTT-3.10.3-2]
		r.fail(ProtocolError, "payload", "has no topic filter")
	} else if err := l.checkFilters(n); err != nil {
		r.err = err
	}
	return n
}

// topicFilter reads a Topic Filter (4.7.1). Shared subscriptions exist only since 5.0.
func (r *cursor) topicFilter(v Version) string {
	f := r.text("topic filter")
	switch {
	case r.err != nil:
	case f == "":
		r.fail(MalformedPacket, "topic filter", "is empty") // [MQTT-4.7.3-1]
	case !ValidTopicFilter(f):
		r.fail(MalformedPacket, "topic filter",
			"has a wildcard in the wrong place") // [MQTT-4.7.1-1] [MQTT-4.7.1-2]
	case v >= V5 && strings.HasPrefix(f, sharePrefix):
		if _, _, err := SplitShared(f); err != nil {
			r.fail(MalformedPacket, "topic filter",
				"begins with $share/, but is not that of a shared subscription")
		}
	}
	return f
}

// decodeOptions reads the Subscription Options, or the Requested QoS before 5.0.
func (s *Subscription) decodeOptions(r *cursor, v Version) {
	o := r.uint8("subscription options")
	s.QoS = QoS(o & 3)
	if v < V5 {
		if o > 2 { // [v3.1.1 MQTT-3.8.3-4]
			r.fail(MalformedPacket, "requested QoS", "is not 0, 1 or 2")
		}
		return
	}
	s.NoLocal = o>>2&1 != 0
	s.RetainAsPublished = o>>3&1 != 0
	s.RetainHandling = o >> 4 & 3
	switch {
	case o>>6 != 0: // [MQTT-3.8.3-5]
		r.fail(MalformedPacket, "subscription options", "have a reserved bit")
	case s.QoS == 3:
		r.fail(ProtocolError, "subscription options", "have QoS 3")
	case s.RetainHandling == 3:
		r.fail(ProtocolError, "subscription options", "have retain handling 3")
	case s.NoLocal && strings.HasPrefix(s.Filter, sharePrefix): // [MQTT-3.8.3-4]
		r.fail(ProtocolError, "subscription options", "have no local on a shared subscription")
	}
}

// A Suback is a SUBACK packet: the answer to SUBSCRIBE (3.9).
type Suback struct {
	PacketID   uint16
	Properties Properties   // since 5.0
	Codes      []ReasonCode // one for each Topic Filter. Before 5.0 every failure is sent as 0x80.
}

// Type returns TypeSuback.
func (s *Suback) Type() Type { return TypeSuback }

// Size returns the length of the whole packet.
func (s *Suback) Size(v Version) int { return packetLen(s.remaining(v)) }

func (s *Suback) remaining(v Version) int {
	if v < V5 {
		return 2 + len(s.Codes)
	}
	return 2 + propertiesLen(s.Properties) + len(s.Codes)
}

// Append appends the whole packet: see Packet.
func (s *Suback) Append(dst []byte, v Version) ([]byte, error) {
	n := s.remaining(v)
	if err := checkFrame(TypeSuback, n, s.Properties, v); err != nil {
		return dst, err
	}
	b := appendHeader(dst, byte(TypeSuback)<<4, n)
	b = binary.BigEndian.AppendUint16(b, s.PacketID)
	if v >= V5 {
		b = appendProperties(b, s.Properties)
	}
	for _, code := range s.Codes {
		if v < V5 && code.Failed() {
			code = UnspecifiedError // [v3.1.1 MQTT-3.9.3-2]
		}
		b = append(b, byte(code))
	}
	return b, nil
}

// Decode decodes the body: see Packet.
func (s *Suback) Decode(_ Header, body []byte, v Version) error {
	*s = Suback{}
	r := cursor{t: TypeSuback, b: body}
	s.PacketID = r.packetID()
	if v >= V5 {
		s.Properties = r.properties(TypeSuback)
	}
	s.Codes = r.codes(v)
	return r.end()
}

// codes reads Reason Codes to the end of the packet; at least one is required.
func (c *cursor) codes(v Version) []ReasonCode {
	b := c.take(max(len(c.b)-c.i, 1), "reason codes")
	if c.err != nil {
		return nil
	}
	codes := make([]ReasonCode, len(b))
	for i := range b {
		codes[i] = ReasonCode(b[i])
		if !codes[i].ValidIn(c.t) {
			c.fail(ProtocolError, "reason code", "is not one of this packet")
		} else if v < V5 && codes[i] > UnspecifiedError {
			c.fail(MalformedPacket, "return code", "is reserved")
		}
	}
	return codes
}
