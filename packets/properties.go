package packets

import (
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
)

// A Property identifies a property (2.2.2.2). The zero value is not a property.
type Property byte

// The properties (2.2.2.2).
const (
	PayloadFormatIndicator          Property = 1
	MessageExpiryInterval           Property = 2
	ContentType                     Property = 3
	ResponseTopic                   Property = 8
	CorrelationData                 Property = 9
	SubscriptionIdentifier          Property = 11
	SessionExpiryInterval           Property = 17
	AssignedClientIdentifier        Property = 18
	ServerKeepAlive                 Property = 19
	AuthenticationMethod            Property = 21
	AuthenticationData              Property = 22
	RequestProblemInformation       Property = 23
	WillDelayInterval               Property = 24
	RequestResponseInformation      Property = 25
	ResponseInformation             Property = 26
	ServerReference                 Property = 28
	ReasonString                    Property = 31
	ReceiveMaximum                  Property = 33
	TopicAliasMaximum               Property = 34
	TopicAlias                      Property = 35
	MaximumQoS                      Property = 36
	RetainAvailable                 Property = 37
	UserProperty                    Property = 38
	MaximumPacketSize               Property = 39
	WildcardSubscriptionAvailable   Property = 40
	SubscriptionIdentifierAvailable Property = 41
	SharedSubscriptionAvailable     Property = 42
)

// A kind is the wire type of a property's value. The zero kind marks identifiers that are not
// defined.
type kind byte

const (
	kindByte   kind = iota + 1 // one byte
	kindTwo                    // Two Byte Integer
	kindFour                   // Four Byte Integer
	kindVarint                 // Variable Byte Integer
	kindText                   // UTF-8 Encoded String
	kindBinary                 // Binary Data
	kindPair                   // UTF-8 String Pair
)

// propertyInfo is a row of the table in 2.2.2.2.
type propertyInfo struct {
	name   string
	kind   kind
	in     uint32 // set of packet types, as bits 1<<Type
	repeat uint32 // the packet types where it may occur more than once
	min    uint32 // smallest value of an integer
	max    uint32 // largest value of an integer; 0: the largest of its wire type
}

// Sets of packet types that share properties.
const (
	toConnect    = 1 << TypeConnect
	toConnack    = 1 << TypeConnack
	toPublish    = 1 << TypePublish
	toWill       = 1 << TypeWill
	toSubscribe  = 1 << TypeSubscribe
	toDisconnect = 1 << TypeDisconnect
	toAuth       = 1 << TypeAuth
	toResponse   = toConnack | inPuback | inPubrel | inSuback | inUnsuback | toDisconnect | toAuth
	toAll        = toResponse | toConnect | toPublish | toWill | toSubscribe | 1<<TypeUnsubscribe
)

// propertyTable is the table of 2.2.2.2, by Property.
var propertyTable = [256]propertyInfo{
	PayloadFormatIndicator: {name: "payload-format-indicator", kind: kindByte,
		in: toPublish | toWill, max: 1},
	MessageExpiryInterval: {name: "message-expiry-interval", kind: kindFour,
		in: toPublish | toWill},
	ContentType:     {name: "content-type", kind: kindText, in: toPublish | toWill},
	ResponseTopic:   {name: "response-topic", kind: kindText, in: toPublish | toWill},
	CorrelationData: {name: "correlation-data", kind: kindBinary, in: toPublish | toWill},
	SubscriptionIdentifier: {name: "subscription-identifier", kind: kindVarint,
		in:     toPublish | toSubscribe,
		repeat: toPublish, min: 1},
	SessionExpiryInterval: {name: "session-expiry-interval", kind: kindFour,
		in: toConnect | toConnack | toDisconnect},
	AssignedClientIdentifier: {name: "assigned-client-identifier", kind: kindText,
		in: toConnack},
	ServerKeepAlive: {name: "server-keep-alive", kind: kindTwo, in: toConnack},
	AuthenticationMethod: {name: "authentication-method", kind: kindText,
		in: toConnect | toConnack | toAuth},
	AuthenticationData: {name: "authentication-data", kind: kindBinary,
		in: toConnect | toConnack | toAuth},
	RequestProblemInformation: {name: "request-problem-information", kind: kindByte,
		in: toConnect, max: 1},
	WillDelayInterval: {name: "will-delay-interval", kind: kindFour, in: toWill},
	RequestResponseInformation: {name: "request-response-information", kind: kindByte,
		in: toConnect, max: 1},
	ResponseInformation: {name: "response-information", kind: kindText, in: toConnack},
	ServerReference: {name: "server-reference", kind: kindText,
		in: toConnack | toDisconnect},
	ReasonString: {name: "reason-string", kind: kindText, in: toResponse},
	ReceiveMaximum: {name: "receive-maximum", kind: kindTwo,
		in: toConnect | toConnack, min: 1},
	TopicAliasMaximum: {name: "topic-alias-maximum", kind: kindTwo,
		in: toConnect | toConnack},
	TopicAlias: {name: "topic-alias", kind: kindTwo, in: toPublish, min: 1},
	MaximumQoS: {name: "maximum-qos", kind: kindByte, in: toConnack, max: 1},
	RetainAvailable: {name: "retain-available", kind: kindByte, in: toConnack,
		max: 1},
	UserProperty: {name: "user-property", kind: kindPair, in: toAll,
		repeat: toAll},
	MaximumPacketSize: {name: "maximum-packet-size", kind: kindFour,
		in: toConnect | toConnack, min: 1},
	WildcardSubscriptionAvailable: {name: "wildcard-subscription-available", kind: kindByte,
		in: toConnack, max: 1},
	SubscriptionIdentifierAvailable: {name: "subscription-identifier-available", kind: kindByte,
		in: toConnack, max: 1},
	SharedSubscriptionAvailable: {name: "shared-subscription-available", kind: kindByte,
		in: toConnack, max: 1},
}

// String returns the standard's name in lower case with hyphens, such as "session-expiry-interval".
func (id Property) String() string {
	if s := propertyTable[id].name; s != "" {
		return s
	}
	return fmt.Sprintf("property-%d", byte(id))
}

// Properties are the properties of one packet in their wire form, without the length in front. Nil
// means none. Decoding a packet checks its properties and lets them alias its bytes. No method
// panics, whatever the bytes, the property and the value are.
//
// Getters read from the front and allocate only the strings that they return. If the bytes are
// malformed, getters stop there. A getter finds no property whose values are of another type.
//
// The Append methods build properties, and extend the slice like the built-in append. A value that
// a property cannot hold is one of another type, a number that is too large, or a text of more than
// 65,535 bytes. It makes all of the Properties unusable, and they stay so: getters find nothing in
// them, Check returns an error that names the property, and so does the Append method of a packet.
type Properties []byte

// next returns the first property of p, its value, and the rest. ok is false at the end and where p
// is malformed.
func (p Properties) next() (id Property, value []byte, rest Properties, ok bool) {
	if len(p) == 0 {
		return 0, nil, nil, false
	}
	id = Property(p[0])
	n := valueLen(p[1:], propertyTable[id].kind)
	if n < 0 {
		return id, nil, nil, false
	}
	return id, p[1 : 1+n : 1+n], p[1+n:], true
}

// valueLen returns the length of the value of kind k at the start of b, or -1 if b is too short or
// k is not a kind.
func valueLen(b []byte, k kind) int {
	n := -1
	switch k {
	case kindByte:
		n = 1
	case kindTwo:
		n = 2
	case kindFour:
		n = 4
	case kindVarint:
		if _, size, _ := consumeVarint(b); size > 0 {
			n = size
		}
	case kindText, kindBinary:
		n = fieldLen(b)
	case kindPair:
		if n = fieldLen(b); n >= 0 && n <= len(b) {
			m := fieldLen(b[n:])
			if n += m; m < 0 {
				return -1
			}
		}
	}
	if n > len(b) {
		return -1
	}
	return n
}

// fieldLen returns the length of the string or binary field at the start of b, including its two
// length bytes, or -1 if b is shorter than two bytes.
func fieldLen(b []byte) int {
	if len(b) < 2 {
		return -1
	}
	return 2 + int(binary.BigEndian.Uint16(b))
}

// uintValue returns the integer in value. ok is false if k is not an integer.
func uintValue(value []byte, k kind) (n uint32, ok bool) {
	switch k {
	case kindByte:
		return uint32(value[0]), true
	case kindTwo:
		return uint32(binary.BigEndian.Uint16(value)), true
	case kindFour:
		return binary.BigEndian.Uint32(value), true
	case kindVarint:
		n, _, _ := consumeVarint(value)
		return uint32(n), true
	default:
		return 0, false
	}
}

// find returns the value bytes of the first property id.
func (p Properties) find(id Property) (value []byte, ok bool) {
	for {
		got, value, rest, ok := p.next()
		if !ok || got == id {
			return value, ok
		}
		p = rest
	}
}

// Uint returns the value of the first property id if it is an integer of one, two or four bytes or
// a Variable Byte Integer. ok is false if there is none.
func (p Properties) Uint(id Property) (n uint32, ok bool) {
	value, ok := p.find(id)
	if !ok {
		return 0, false
	}
	return uintValue(value, propertyTable[id].kind)
}

// Bytes returns the value of the first property id if it is a string or binary data. It aliases p.
// ok is false if there is none.
func (p Properties) Bytes(id Property) (b []byte, ok bool) {
	if k := propertyTable[id].kind; k != kindText && k != kindBinary {
		return nil, false
	}
	value, ok := p.find(id)
	if !ok {
		return nil, false
	}
	return value[2:], true
}

// Text returns the value of the first property id like Bytes, but as a string.
func (p Properties) Text(id Property) (s string, ok bool) {
	b, ok := p.Bytes(id)
	return string(b), ok
}

// Has reports whether p has a property id.
func (p Properties) Has(id Property) bool {
	_, ok := p.find(id)
	return ok
}

// count returns how many properties id p has.
func (p Properties) count(id Property) (n int) {
	for got := range p.All() {
		if got == id {
			n++
		}
	}
	return n
}

// Offset returns the index of the first byte of the value of the first property id, or -1 if there
// is none. It lets the caller change an integer in place.
func (p Properties) Offset(id Property) int {
	i := 0
	for rest := p; ; {
		got, value, after, ok := rest.next()
		if !ok {
			return -1
		}
		if got == id {
			return i + 1
		}
		i += 1 + len(value)
		rest = after
	}
}

// All yields each property with the bytes of its value, in order. The bytes alias p.
func (p Properties) All() iter.Seq2[Property, []byte] {
	return func(yield func(Property, []byte) bool) {
		for {
			id, value, rest, ok := p.next()
			if !ok || !yield(id, value) {
				return
			}
			p = rest
		}
	}
}

// User yields the name and the value of each User Property, in order (3.3.2.3.7).
func (p Properties) User() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for id, value := range p.All() {
			if id == UserProperty {
				n := fieldLen(value)
				if !yield(string(value[2:n]), string(value[n+2:])) {
					return
				}
			}
		}
	}
}

// SubscriptionIDs yields each Subscription Identifier, in order (3.3.2.3.8).
func (p Properties) SubscriptionIDs() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for id, value := range p.All() {
			if id == SubscriptionIdentifier {
				if n, _ := uintValue(value, kindVarint); !yield(n) {
					return
				}
			}
		}
	}
}

// AppendUint appends an integer property and returns the extended slice. If id is not an integer
// property, or n does not fit its wire type, the result is unusable: see Properties.
func (p Properties) AppendUint(id Property, n uint32) Properties {
	switch k := propertyTable[id].kind; {
	case k == kindByte && n <= 0xFF:
		return append(p, byte(id), byte(n))
	case k == kindTwo && n <= 0xFFFF:
		return binary.BigEndian.AppendUint16(append(p, byte(id)), uint16(n))
	case k == kindFour:
		return binary.BigEndian.AppendUint32(append(p, byte(id)), n)
	case k == kindVarint && n <= maxRemaining:
		return appendVarint(append(p, byte(id)), int(n))
	}
	return noWireForm(id)
}

// AppendText appends a property that is a string or binary data and returns the extended slice. If
// id is neither, or s has more than 65,535 bytes, the result is unusable: see Properties.
func (p Properties) AppendText(id Property, s string) Properties { return appendBytes(p, id, s) }

// AppendBytes is AppendText for a byte slice. It copies b.
func (p Properties) AppendBytes(id Property, b []byte) Properties { return appendBytes(p, id, b) }

func appendBytes[T text](p Properties, id Property, s T) Properties {
	k := propertyTable[id].kind
	if k != kindText && k != kindBinary || len(s) > maxString {
		return noWireForm(id)
	}
	return appendField(append(p, byte(id)), s)
}

// AppendUser appends a User Property and returns the extended slice. If key or value has more than
// 65,535 bytes, the result is unusable: see Properties.
func (p Properties) AppendUser(key, value string) Properties {
	if len(key) > maxString || len(value) > maxString {
		return noWireForm(UserProperty)
	}
	return appendField(appendField(append(p, byte(UserProperty)), key), value)
}

// noWireForm returns a marker for properties that cannot be encoded, because id was given a value
// that it cannot hold. It begins with 0, which is not a Property, and appending more keeps the 0 in
// front.
func noWireForm(id Property) Properties { return Properties{0, byte(id)} }

// unencodable reports whether p comes from noWireForm.
func (p Properties) unencodable() bool { return len(p) > 0 && p[0] == 0 }

// misfit returns the property that noWireForm was called with.
func (p Properties) misfit() Property {
	if len(p) < 2 {
		return 0
	}
	return Property(p[1])
}

// Without appends all properties of p except ids to dst, in order, and returns the extended slice.
// dst must not overlap p, unless it is p[:0].
func (p Properties) Without(dst Properties, ids ...Property) Properties {
	if p.unencodable() {
		return noWireForm(p.misfit())
	}
	for id, value := range p.All() {
		if !slices.Contains(ids, id) {
			dst = append(append(dst, byte(id)), value...)
		}
	}
	return dst
}

// Check returns an *Error if p is not a valid set of properties for packets of type in, or TypeWill
// (2.2.2.2). The code is
//
//   - MalformedPacket if a property is cut short, undefined, not allowed in this packet, or a
//     string that is not UTF-8, and if p is unusable (see Properties),
//   - ProtocolError if a property occurs twice that may occur once, or has a value out of range, or
//     if the Response Topic is empty or has wildcards,
//   - TopicAliasInvalid if the Topic Alias is 0.
func (p Properties) Check(in Type) error {
	if p.unencodable() {
		return Errorf(MalformedPacket, "%v: %v was given a value that it cannot hold", in,
			p.misfit())
	}
	return p.check(in)
}

// check is Check for properties that have come from the wire.
func (p Properties) check(in Type) error {
	var seen [256 / 64]uint64
	for len(p) > 0 {
		id, value, rest, ok := p.next()
		info := &propertyTable[id]
		switch {
		case info.kind == 0:
			return Errorf(MalformedPacket, "%v: property %d is not defined", in, byte(id))
		case info.in>>in&1 == 0:
			return Errorf(MalformedPacket, "%v: %v is not allowed", in, id)
		case !ok:
			return Errorf(MalformedPacket, "%v: %v is cut short", in, id)
		case seen[id/64]>>(id%64)&1 != 0 && info.repeat>>in&1 == 0:
			return Errorf(ProtocolError, "%v: %v occurs twice", in, id)
		}
		seen[id/64] |= 1 << (id % 64)
		if err := checkValue(in, id, value); err != nil {
			return err
		}
		p = rest
	}
	return nil
}

// checkValue checks the value of one property, whose length is right.
func checkValue(in Type, id Property, value []byte) error {
	info := &propertyTable[id]
	switch info.kind {
	case kindText, kindPair:
		n := fieldLen(value)
		malformed, wildcard := inspect(value[2:n])
		if malformed || info.kind == kindPair && !ValidUTF8(value[n+2:]) {
			return Errorf(MalformedPacket, "%v: %v is not UTF-8 or contains U+0000", in, id)
		}
		switch {
		case id != ResponseTopic:
		case wildcard:
			return Errorf(ProtocolError, "%v: %v contains a wildcard", in, id) // [MQTT-3.3.2-14]
		case n == 2:
			return Errorf(ProtocolError, "%v: %v is empty", in, id) // [MQTT-4.7.3-1]
		}
		return nil
	case kindBinary:
		return nil
	case kindVarint:
		if _, _, minimal := consumeVarint(value); !minimal {
			return Errorf(MalformedPacket, "%v: %v is not in its shortest form", in, id)
		}
	}
	if n, _ := uintValue(value, info.kind); n < info.min || info.max != 0 && n > info.max {
		code := ProtocolError
		if id == TopicAlias {
			code = TopicAliasInvalid // [MQTT-3.3.2-8]
		}
		return Errorf(code, "%v: %v is %d", in, id, n)
	}
	return nil
}
