package packets

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// tracePayload is the longest payload that a trace shows.
const tracePayload = 64

// Trace returns one line that describes p: its type, then values as "key=value" and flags that are
// set as bare words. The line is meant for logs and tests. Its format is stable, and it never shows
// a password or authentication data.
//
//	PUBLISH dup qos=1 id=5 retain topic=a/b payload="x y" message-expiry-interval=60 user.key=value
//	SUBSCRIBE id=1 filter=a/b:1 filter=c/#:2,nl,rap,rh=1
//	PUBACK id=5 code=0x10
//
// A value with a quote, or with a byte that is not printable ASCII, is quoted as in Go. Binary data
// that is not UTF-8 is written as "hex:" and its digits. A payload of more than 64 bytes is written
// as its length, such as "<65 bytes>".
func Trace(p Packet) string { return string(AppendTrace(nil, p)) }

// AppendTrace appends the line of Trace to dst and returns the extended slice.
func AppendTrace(dst []byte, p Packet) []byte {
	b := append(dst, p.Type().String()...)
	switch p := p.(type) {
	case *Connect:
		b = traceConnect(b, p)
	case *Connack:
		b = traceProperties(traceCode(traceFlag(b, "present", p.SessionPresent), p.Code), "",
			p.Properties)
	case *Publish:
		b = tracePublish(b, p)
	case *Ack:
		b = traceProperties(traceCode(traceUint(b, "id", uint32(p.PacketID)), p.Code), "",
			p.Properties)
	case *Subscribe:
		b = traceUint(b, "id", uint32(p.PacketID))
		for i := range p.Subscriptions {
			b = traceSubscription(b, &p.Subscriptions[i])
		}
		b = traceProperties(b, "", p.Properties)
	case *Suback:
		b = traceProperties(traceCodes(traceUint(b, "id", uint32(p.PacketID)), p.Codes), "",
			p.Properties)
	case *Unsubscribe:
		b = traceUint(b, "id", uint32(p.PacketID))
		for _, f := range p.Filters {
			b = traceText(b, "filter", f)
		}
		b = traceProperties(b, "", p.Properties)
	case *Unsuback:
		b = traceProperties(traceCodes(traceUint(b, "id", uint32(p.PacketID)), p.Codes), "",
			p.Properties)
	case *Disconnect:
		b = traceProperties(traceCode(b, p.Code), "", p.Properties)
	case *Auth:
		b = traceProperties(traceCode(b, p.Code), "", p.Properties)
	}
	return b
}

func traceConnect(b []byte, c *Connect) []byte {
	b = traceUint(b, "v", uint32(c.Version))
	b = traceText(b, "client", c.ClientID)
	b = traceFlag(b, "clean", c.CleanStart)
	b = traceUint(b, "keepalive", uint32(c.KeepAlive))
	if w := c.Will; w != nil {
		b = traceText(b, "will-topic", w.Topic)
		b = traceData(b, "will-payload", w.Payload)
		b = traceUint(b, "will-qos", uint32(w.QoS))
		b = traceFlag(b, "will-retain", w.Retain)
	}
	if c.HasUsername {
		b = traceText(b, "user", c.Username)
	}
	if c.HasPassword {
		b = traceSize(b, "pass", len(c.Password))
	}
	b = traceProperties(b, "", c.Properties)
	if c.Will != nil {
		b = traceProperties(b, "will.", c.Will.Properties)
	}
	return b
}

func tracePublish(b []byte, p *Publish) []byte {
	b = traceFlag(b, "dup", p.Dup)
	b = traceUint(b, "qos", uint32(p.QoS))
	if p.QoS > QoS0 {
		b = traceUint(b, "id", uint32(p.PacketID))
	}
	b = traceFlag(b, "retain", p.Retain)
	b = traceText(b, "topic", p.Topic)
	b = traceData(b, "payload", p.Payload)
	return traceProperties(b, "", p.Properties)
}

func traceSubscription(b []byte, s *Subscription) []byte {
	b = traceText(b, "filter", s.Filter)
	b = strconv.AppendUint(append(b, ':'), uint64(s.QoS), 10)
	if s.NoLocal {
		b = append(b, ",nl"...)
	}
	if s.RetainAsPublished {
		b = append(b, ",rap"...)
	}
	if s.RetainHandling != 0 {
		b = strconv.AppendUint(append(b, ",rh="...), uint64(s.RetainHandling), 10)
	}
	return b
}

// traceProperties writes each property with prefix before its name.
func traceProperties(b []byte, prefix string, p Properties) []byte {
	known := 0
	for id, value := range p.All() {
		known += 1 + len(value)
		key := prefix + id.String()
		switch propertyTable[id].kind {
		case kindText:
			b = traceText(b, key, value[2:])
		case kindBinary:
			if id == AuthenticationData {
				b = traceSize(b, key, len(value)-2)
			} else {
				b = traceData(b, key, value[2:])
			}
		case kindPair:
			n := fieldLen(value)
			b = append(b, ' ')
			b = append(append(b, prefix...), "user."...)
			b = traceValue(b, value[2:n], "=")
			b = traceValue(append(b, '='), value[n+2:], "")
		default:
			n, _ := uintValue(value, propertyTable[id].kind)
			b = traceUint(b, key, n)
		}
	}
	if known < len(p) {
		b = traceWord(b, prefix+"malformed-properties")
	}
	return b
}

func traceKey(b []byte, key string) []byte { return append(append(append(b, ' '), key...), '=') }

func traceFlag(b []byte, key string, is bool) []byte {
	if !is {
		return b
	}
	return traceWord(b, key)
}

func traceWord(b []byte, key string) []byte { return append(append(b, ' '), key...) }

func traceUint(b []byte, key string, n uint32) []byte {
	return strconv.AppendUint(traceKey(b, key), uint64(n), 10)
}

func traceSize(b []byte, key string, n int) []byte {
	return fmt.Appendf(traceKey(b, key), "<%d bytes>", n)
}

func traceCode(b []byte, c ReasonCode) []byte { return fmt.Appendf(b, " code=0x%02X", byte(c)) }

func traceCodes(b []byte, codes []ReasonCode) []byte {
	for i, c := range codes {
		if i == 0 {
			b = traceKey(b, "codes")
		} else {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "%02X", byte(c))
	}
	return b
}

func traceText[T text](b []byte, key string, s T) []byte {
	return traceValue(traceKey(b, key), s, "")
}

// traceData writes binary data.
func traceData(b []byte, key string, data []byte) []byte {
	switch {
	case len(data) > tracePayload:
		return traceSize(b, key, len(data))
	case !utf8.Valid(data):
		return fmt.Appendf(traceKey(b, key), "hex:%x", data)
	case strings.HasPrefix(string(data), "hex:"):
		return strconv.AppendQuote(traceKey(b, key), string(data))
	default:
		return traceText(b, key, data)
	}
}

// traceValue writes s. It quotes s if s has a quote, a byte that is not printable ASCII, or a byte
// in special.
func traceValue[T text](b []byte, s T, special string) []byte {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || strings.IndexByte(special, c) >= 0 {
			return strconv.AppendQuote(b, string(s))
		}
	}
	return append(b, s...)
}
