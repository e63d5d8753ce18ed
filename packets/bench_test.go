package packets

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// aPublish is the packet of the hot path: a topic of 20 bytes and a payload of 128.
func aPublish(q QoS) *Publish {
	p := &Publish{QoS: q, Topic: []byte("plant/7/line/3/speed"),
		Payload: bytes.Repeat([]byte("x"), 128)}
	if q > QoS0 {
		p.PacketID = 7
	}
	return p
}

func BenchmarkParseHeader(b *testing.B) {
	for name, packet := range map[string]Packet{
		"one byte of length":  &Pingreq{},
		"two bytes of length": aPublish(QoS0),
	} {
		b.Run(name, func(b *testing.B) {
			buf := encode(b, packet, V5)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseHeader(buf, V5); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPublish(b *testing.B) {
	props := Properties(nil).AppendUint(MessageExpiryInterval, 60).
		AppendText(ContentType, "text/plain").AppendUser("key", "value")
	with := aPublish(QoS1)
	with.Properties = props
	for _, tt := range []struct {
		name   string
		packet *Publish
		v      Version
	}{
		{"3.1.1, QoS 0", aPublish(QoS0), V311},
		{"5.0, QoS 0", aPublish(QoS0), V5},
		{"5.0, QoS 1", aPublish(QoS1), V5},
		{"5.0, QoS 1, three properties", with, V5},
	} {
		buf := encode(b, tt.packet, tt.v)
		h, err := ParseHeader(buf, tt.v)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("Decode/"+tt.name, func(b *testing.B) {
			var p Publish
			b.ReportAllocs()
			for b.Loop() {
				if err := p.Decode(h, buf[h.Len:], tt.v); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("Append/"+tt.name, func(b *testing.B) {
			dst := make([]byte, 0, len(buf))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tt.packet.Append(dst, tt.v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAck(b *testing.B) {
	ack := &Ack{Kind: TypePuback, PacketID: 7}
	buf := encode(b, ack, V5)
	h, _ := ParseHeader(buf, V5)
	b.Run("Decode", func(b *testing.B) {
		var a Ack
		b.ReportAllocs()
		for b.Loop() {
			if err := a.Decode(h, buf[h.Len:], V5); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Append", func(b *testing.B) {
		dst := make([]byte, 0, 16)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ack.Append(dst, V5); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkTopic(b *testing.B) {
	for _, name := range []string{"a/b", "plant/7/line/3/speed", "werk/7/straße/3/tür",
		strings.Repeat("level/", 40) + "x"} {
		b.Run(fmt.Sprintf("ValidTopicName/%d bytes", len(name)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !ValidTopicName(name) {
					b.Fatal("refused")
				}
			}
		})
	}
	b.Run("MatchTopic", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !MatchTopic("plant/+/line/#", "plant/7/line/3/speed") {
				b.Fatal("no match")
			}
		}
	})
}
