package packets_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// aPublish is the packet of the hot path: a topic of 20 bytes and a payload of 128.
func aPublish(q packets.QoS) *packets.Publish {
	p := &packets.Publish{QoS: q, Topic: []byte("plant/7/line/3/speed"), Payload: bytes.Repeat([]byte("x"), 128)}
	if q > packets.QoS0 {
		p.PacketID = 7
	}
	return p
}

// encode returns the bytes of p and fails the test if there are none.
func encode(tb testing.TB, p packets.Packet, v packets.Version) []byte {
	tb.Helper()
	b, err := p.Append(nil, v)
	if err != nil {
		tb.Fatalf("%v does not encode: %v", p.Type(), err)
	}
	return b
}

func BenchmarkParseHeader(b *testing.B) {
	for name, packet := range map[string]packets.Packet{
		"one byte of length":  &packets.Pingreq{},
		"two bytes of length": aPublish(packets.QoS0),
	} {
		b.Run(name, func(b *testing.B) {
			buf := encode(b, packet, packets.V5)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := packets.ParseHeader(buf, packets.V5); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPublish(b *testing.B) {
	props := packets.Properties(nil).AppendUint(packets.MessageExpiryInterval, 60).
		AppendText(packets.ContentType, "text/plain").AppendUser("key", "value")
	with := aPublish(packets.QoS1)
	with.Properties = props
	for _, tt := range []struct {
		name   string
		packet *packets.Publish
		v      packets.Version
	}{
		{"3.1.1, QoS 0", aPublish(packets.QoS0), packets.V311},
		{"5.0, QoS 0", aPublish(packets.QoS0), packets.V5},
		{"5.0, QoS 1", aPublish(packets.QoS1), packets.V5},
		{"5.0, QoS 1, three properties", with, packets.V5},
	} {
		buf := encode(b, tt.packet, tt.v)
		h, err := packets.ParseHeader(buf, tt.v)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("Decode/"+tt.name, func(b *testing.B) {
			var p packets.Publish
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
	ack := &packets.Ack{Kind: packets.TypePuback, PacketID: 7}
	buf := encode(b, ack, packets.V5)
	h, _ := packets.ParseHeader(buf, packets.V5)
	b.Run("Decode", func(b *testing.B) {
		var a packets.Ack
		b.ReportAllocs()
		for b.Loop() {
			if err := a.Decode(h, buf[h.Len:], packets.V5); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Append", func(b *testing.B) {
		dst := make([]byte, 0, 16)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ack.Append(dst, packets.V5); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkTopic(b *testing.B) {
	for _, name := range []string{"a/b", "plant/7/line/3/speed", "werk/7/straße/3/tür", strings.Repeat("level/", 40) + "x"} {
		b.Run(fmt.Sprintf("ValidTopicName/%d bytes", len(name)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !packets.ValidTopicName(name) {
					b.Fatal("refused")
				}
			}
		})
	}
	b.Run("MatchTopic", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !packets.MatchTopic("plant/+/line/#", "plant/7/line/3/speed") {
				b.Fatal("no match")
			}
		}
	})
}
