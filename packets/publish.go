package packets

import (
	"encoding/binary"
	"fmt"
)

// The flags of PUBLISH in the fixed header (3.3.1).
const (
	flagRetain = 1 << 0
	flagDup    = 1 << 3
)

// A Publish is a PUBLISH packet: an Application Message with the details of its delivery (3.3).
// After Decode its slices alias the packet's bytes. The same Publish can decode the next packet
// without allocation.
type Publish struct {
	Dup        bool
	Retain     bool
	QoS        QoS
	PacketID   uint16 // only with QoS 1 and 2
	Topic      []byte // empty only in 5.0, with a Topic Alias
	Properties Properties
	Payload    []byte
}

// Type returns TypePublish.
func (p *Publish) Type() Type { return TypePublish }

// Size returns the length of the whole packet.
func (p *Publish) Size(v Version) int { return packetLen(p.remaining(v, len(p.Topic), 0)) }

// remaining is the Remaining Length with a topic, and more properties, of these lengths.
func (p *Publish) remaining(v Version, topic, more int) int {
	n := 2 + topic + len(p.Payload)
	if p.QoS > QoS0 {
		n += 2
	}
	if v >= V5 {
		props := len(p.Properties) + more
		n += varintLen(props) + props
	}
	return n
}

// checkQoS returns an error if q does not fit its two bits.
func checkQoS(t Type, q QoS) error {
	if q > 3 {
		return fmt.Errorf("packets: %v: QoS %d", t, q)
	}
	return nil
}

// check returns an error if a field does not fit the wire.
func (p *Publish) check(n int, v Version) error {
	if err := checkQoS(TypePublish, p.QoS); err != nil {
		return err
	}
	if err := checkField(TypePublish, "topic name", len(p.Topic)); err != nil {
		return err
	}
	return checkFrame(TypePublish, n, p.Properties, v)
}

// Append appends the whole packet: see Packet.
func (p *Publish) Append(dst []byte, v Version) ([]byte, error) {
	n := p.remaining(v, len(p.Topic), 0)
	if p.QoS > 3 || len(p.Topic) > maxString || n > maxRemaining || p.Properties.unencodable() {
		if err := p.check(n, v); err != nil {
			return dst, err
		}
	}
	return AppendPublish(dst, v, p, p.Topic, nil), nil
}

// AppendPublish is Append for who sends one message to many clients: the topic is given beside p,
// as a string or as bytes, and more stands behind the Properties of p. Topic of p is not looked at.
// Nothing is checked: what does not fit the wire makes a packet that is malformed.
func AppendPublish[T ~string | ~[]byte](
	dst []byte, v Version, p *Publish, topic T, more Properties,
) []byte {
	first := FirstByte(p.QoS, p.Retain)
	if p.Dup {
		first |= flagDup
	}
	b := appendHeader(dst, first, p.remaining(v, len(topic), len(more)))
	b = appendField(b, topic)
	if p.QoS > QoS0 {
		b = binary.BigEndian.AppendUint16(b, p.PacketID)
	}
	if v >= V5 {
		b = append(appendVarint(b, len(p.Properties)+len(more)), p.Properties...)
		b = append(b, more...)
	}
	return append(b, p.Payload...)
}

// PublishSize returns the length of the packet that AppendPublish appends.
func PublishSize(v Version, p *Publish, topic, more int) int {
	return packetLen(p.remaining(v, topic, more))
}

// FirstByte returns the first byte of a PUBLISH that is sent for the first time: its type with QoS
// and RETAIN.
func FirstByte(qos QoS, retain bool) byte {
	first := byte(TypePublish)<<4 | byte(qos)<<1
	if retain {
		first |= flagRetain
	}
	return first
}

// Decode decodes the body: see Packet. It does not allocate unless it fails. The Reason Code of the
// error is
//
//   - TopicNameInvalid for a Topic Name with wildcards [MQTT-3.3.2-2],
//   - TopicAliasInvalid for a Topic Alias of 0,
//   - ProtocolError for an empty Topic Name without a Topic Alias, a Packet Identifier of 0, or
//     invalid properties,
//   - otherwise MalformedPacket.
func (p *Publish) Decode(h Header, body []byte, v Version) error {
	return p.DecodeKnowing(nil, h, body, v)
}

// DecodeKnowing is Decode for a packet whose Topic Name is probably topic, which is a valid Topic
// Name or empty. If it is, p.Topic is topic itself, and its bytes are not checked again.
func (p *Publish) DecodeKnowing(topic []byte, h Header, body []byte, v Version) error {
	*p = Publish{Dup: h.Flags&flagDup != 0, Retain: h.Flags&flagRetain != 0,
		QoS: QoS(h.Flags >> 1 & 3)}
	if len(body) < 2 {
		return publishError(MalformedPacket, "the topic name is cut short")
	}
	i := 2 + int(binary.BigEndian.Uint16(body))
	if i > len(body) {
		return publishError(MalformedPacket, "the topic name is cut short")
	}
	if p.Topic = body[2:i:i]; len(topic) > 0 && string(p.Topic) == string(topic) {
		p.Topic = topic
	} else if malformed, wildcard := inspect(p.Topic); malformed || wildcard {
		if malformed {
			return publishError(MalformedPacket, "the topic name is not UTF-8 or contains U+0000")
		}
		return publishError(TopicNameInvalid, "the topic name contains a wildcard")
	}
	switch {
	case p.QoS == 3: // [MQTT-3.3.1-4]
		return publishError(MalformedPacket, "QoS 3")
	case p.QoS == QoS0:
		if p.Dup { // [MQTT-3.3.1-2]
			return publishError(MalformedPacket, "DUP with QoS 0")
		}
	case len(body)-i < 2:
		return publishError(MalformedPacket, "the packet identifier is cut short")
	default:
		if p.PacketID = binary.BigEndian.Uint16(body[i:]); p.PacketID == 0 { // [MQTT-2.2.1-3]
			return publishError(ProtocolError, "the packet identifier is 0")
		}
		i += 2
	}
	if v >= V5 {
		if i < len(body) && body[i] == 0 {
			i++
		} else {
			r := cursor{t: TypePublish, b: body, i: i}
			if p.Properties = r.properties(TypePublish); r.err != nil {
				return r.err
			}
			i = r.i
		}
	}
	if len(p.Topic) == 0 {
		if !p.Properties.Has(TopicAlias) {
			return publishError(ProtocolError, "the topic name is empty")
		}
		p.Topic = nil
	}
	if i < len(body) {
		p.Payload = body[i:len(body):len(body)]
	}
	return nil
}

func publishError(code ReasonCode, reason string) error {
	return &Error{Code: code, Reason: "PUBLISH: " + reason}
}
