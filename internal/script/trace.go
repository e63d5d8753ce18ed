package script

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// ParseTrace is the inverse of packets.Trace: it makes a packet of a line. What the line does not
// say is zero. The version is what a CONNECT says after "v=", 5.0 if it says nothing and for all
// other packets. Values that a trace does not show can be given as well: a password as text, and
// <100 bytes> as a text of that length. Binary values may be "hex:00ff".
func ParseTrace(line string) (packets.Packet, packets.Version, error) {
	name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	ts, err := tokenize(rest)
	if err != nil {
		return nil, 0, err
	}
	return build(name, ts)
}

// types are the packet types by name.
var types = func() map[string]packets.Type {
	m := map[string]packets.Type{}
	for t := packets.TypeConnect; t <= packets.TypeAuth; t++ {
		m[t.String()] = t
	}
	return m
}()

func known(name string) bool { return types[name] != 0 }

// build makes the packet that ts describe.
func build(name string, ts []token) (packets.Packet, packets.Version, error) {
	f := fields{name: name, rest: slices.Clone(ts)}
	v := packets.V5
	var p packets.Packet
	switch t := types[name]; t {
	case packets.TypeConnect:
		c := f.connect()
		p, v = c, c.Version
	case packets.TypeConnack:
		p = &packets.Connack{SessionPresent: f.flag("present"), Code: f.code(),
			Properties: f.properties("")}
	case packets.TypePublish:
		p = f.publish()
	case packets.TypePuback, packets.TypePubrec, packets.TypePubrel, packets.TypePubcomp:
		p = &packets.Ack{Kind: t, PacketID: f.id(), Code: f.code(), Properties: f.properties("")}
	case packets.TypeSubscribe:
		p = f.subscribe()
	case packets.TypeSuback:
		p = &packets.Suback{PacketID: f.id(), Codes: f.codes(), Properties: f.properties("")}
	case packets.TypeUnsubscribe:
		p = &packets.Unsubscribe{PacketID: f.id(), Filters: f.all("filter"),
			Properties: f.properties("")}
	case packets.TypeUnsuback:
		p = &packets.Unsuback{PacketID: f.id(), Codes: f.codes(), Properties: f.properties("")}
	case packets.TypePingreq:
		p = new(packets.Pingreq)
	case packets.TypePingresp:
		p = new(packets.Pingresp)
	case packets.TypeDisconnect:
		p = &packets.Disconnect{Code: f.code(), Properties: f.properties("")}
	case packets.TypeAuth:
		p = &packets.Auth{Code: f.code(), Properties: f.properties("")}
	default:
		return nil, 0, fmt.Errorf("%q is not a packet type", name)
	}
	for _, t := range f.rest {
		f.fail("%s cannot be said of it", t.key)
	}
	return p, v, f.err
}

// fields takes tokens of a packet one after the other.
type fields struct {
	name string
	rest []token
	err  error // the first
}

func (f *fields) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf(f.name+": "+format, args...)
	}
}

// tokens takes those of a key.
func (f *fields) tokens(key string) []token {
	var ts []token
	f.rest = slices.DeleteFunc(f.rest, func(t token) bool {
		if t.key != key || t.flag {
			return false
		}
		ts = append(ts, t)
		return true
	})
	return ts
}

func (f *fields) all(key string) []string {
	var values []string
	for _, t := range f.tokens(key) {
		values = append(values, text(t))
	}
	return values
}

func (f *fields) one(key string) (token, bool) {
	ts := f.tokens(key)
	if len(ts) > 1 {
		f.fail("%s is given twice", key)
	}
	if len(ts) == 0 {
		return token{}, false
	}
	return ts[0], true
}

func (f *fields) text(key string) (string, bool) {
	t, ok := f.one(key)
	return text(t), ok
}

func (f *fields) flag(key string) bool {
	n := len(f.rest)
	f.rest = slices.DeleteFunc(f.rest, func(t token) bool {
		return t.flag && !t.absent && t.key == key
	})
	return len(f.rest) < n
}

func (f *fields) number(key string, bits int) uint64 {
	s, ok := f.text(key)
	if !ok {
		return 0
	}
	return f.parse(key, s, 0, bits)
}

func (f *fields) parse(key, s string, base, bits int) uint64 {
	n, err := strconv.ParseUint(s, base, bits)
	if err != nil {
		f.fail("%s=%s is not a number of %d bits", key, s, bits)
	}
	return n
}

func (f *fields) bytes(key string) ([]byte, bool) {
	t, ok := f.one(key)
	if !ok {
		return nil, false
	}
	return f.binary(t), true
}

// binary is what t says, or the bytes that it gives in hex.
func (f *fields) binary(t token) []byte {
	h, ok := strings.CutPrefix(t.value, "hex:")
	if !ok || t.quoted {
		return []byte(text(t))
	}
	b, err := hex.DecodeString(h)
	if err != nil {
		f.fail("%s=%s: %v", t.key, t.value, err)
	}
	return b
}

func (f *fields) id() uint16               { return uint16(f.number("id", 16)) }
func (f *fields) code() packets.ReasonCode { return packets.ReasonCode(f.number("code", 8)) }

func (f *fields) qos(key string) packets.QoS {
	n := f.number(key, 8)
	if n > 2 {
		f.fail("%s=%d, send this as raw bytes", key, n)
	}
	return packets.QoS(n)
}

func (f *fields) codes() []packets.ReasonCode {
	s, ok := f.text("codes")
	if !ok {
		return nil
	}
	var codes []packets.ReasonCode
	for c := range strings.SplitSeq(s, ",") {
		codes = append(codes, packets.ReasonCode(f.parse("codes", c, 16, 8)))
	}
	return codes
}

func (f *fields) connect() *packets.Connect {
	c := &packets.Connect{Version: packets.V5, CleanStart: f.flag("clean"),
		KeepAlive: uint16(f.number("keepalive", 16))}
	if v, ok := f.text("v"); ok {
		switch v {
		case "3.1":
			c.Version = packets.V31
		case "3.1.1":
			c.Version = packets.V311
		case "5.0":
		default:
			c.Version = packets.Version(f.parse("v", v, 10, 8))
		}
	}
	c.ClientID, _ = f.text("client")
	c.Username, c.HasUsername = f.text("user")
	c.Password, c.HasPassword = f.bytes("pass")
	if topic, ok := f.text("will-topic"); ok {
		c.Will = &packets.Will{Topic: topic, QoS: f.qos("will-qos"), Retain: f.flag("will-retain")}
		c.Will.Payload, _ = f.bytes("will-payload")
		c.Will.Properties = f.properties("will.")
	}
	c.Properties = f.properties("")
	return c
}

func (f *fields) publish() *packets.Publish {
	p := &packets.Publish{Dup: f.flag("dup"), Retain: f.flag("retain"), QoS: f.qos("qos"),
		PacketID: f.id()}
	topic, _ := f.text("topic")
	p.Topic = []byte(topic)
	p.Payload, _ = f.bytes("payload")
	p.Properties = f.properties("")
	return p
}

func (f *fields) subscribe() *packets.Subscribe {
	s := &packets.Subscribe{PacketID: f.id()}
	for _, filter := range f.all("filter") {
		var sub packets.Subscription
		i := strings.LastIndexByte(filter, ':')
		if i < 0 {
			f.fail("filter=%s without :qos", filter)
			i = len(filter)
		}
		sub.Filter = filter[:i]
		for n, o := range strings.Split(strings.TrimPrefix(filter[i:], ":"), ",") {
			switch {
			case n == 0:
				sub.QoS = packets.QoS(f.parse("filter", o, 10, 2))
			case o == "nl":
				sub.NoLocal = true
			case o == "rap":
				sub.RetainAsPublished = true
			case strings.HasPrefix(o, "rh="):
				sub.RetainHandling = byte(f.parse("rh", o[3:], 10, 2))
			default:
				f.fail("filter=%s: %q is not a subscription option", filter, o)
			}
		}
		s.Subscriptions = append(s.Subscriptions, sub)
	}
	s.Properties = f.properties("")
	return s
}

// properties takes the properties whose keys begin with prefix, in order. Repeated ones and such as
// the packet must not have are not held back: tests want to send them.
func (f *fields) properties(prefix string) packets.Properties {
	var ps packets.Properties
	f.rest = slices.DeleteFunc(f.rest, func(t token) bool {
		key, ok := strings.CutPrefix(t.key, prefix)
		if !ok || t.flag {
			return false
		}
		value := text(t)
		if name, ok := strings.CutPrefix(key, "user."); ok {
			ps = ps.AppendUser(name, value)
			return true
		}
		id, ok := properties[key]
		if !ok {
			return false
		}
		switch id {
		case packets.CorrelationData, packets.AuthenticationData:
			ps = ps.AppendBytes(id, f.binary(t))
		case packets.ContentType, packets.ResponseTopic, packets.AssignedClientIdentifier,
			packets.AuthenticationMethod,
			packets.ResponseInformation, packets.ServerReference, packets.ReasonString:
			ps = ps.AppendText(id, value)
		default:
			ps = ps.AppendUint(id, uint32(f.parse(key, value, 10, 32)))
		}
		return true
	})
	return ps
}

// properties are the properties by their names in traces, except User Property.
var properties = func() map[string]packets.Property {
	m := map[string]packets.Property{}
	for _, id := range []packets.Property{
		packets.PayloadFormatIndicator, packets.MessageExpiryInterval, packets.ContentType,
		packets.ResponseTopic,
		packets.CorrelationData, packets.SubscriptionIdentifier, packets.SessionExpiryInterval,
		packets.AssignedClientIdentifier, packets.ServerKeepAlive, packets.AuthenticationMethod,
		packets.AuthenticationData, packets.RequestProblemInformation, packets.WillDelayInterval,
		packets.RequestResponseInformation, packets.ResponseInformation, packets.ServerReference,
		packets.ReasonString,
		packets.ReceiveMaximum, packets.TopicAliasMaximum, packets.TopicAlias, packets.MaximumQoS,
		packets.RetainAvailable, packets.MaximumPacketSize, packets.WildcardSubscriptionAvailable,
		packets.SubscriptionIdentifierAvailable, packets.SharedSubscriptionAvailable,
	} {
		m[id.String()] = id
	}
	return m
}()

// text is the value of t to be sent.
func text(t token) string {
	if m := sized.FindStringSubmatch(t.value); m != nil && !t.quoted {
		if n, err := strconv.Atoi(m[1]); err == nil && n <= 1<<28 {
			return strings.Repeat("x", n)
		}
	}
	return t.value
}
