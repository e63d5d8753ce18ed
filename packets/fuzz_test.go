package packets

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// fuzzDecoder fuzzes the Decode method of the packets of the given types with bodies, in every
// version.
func fuzzDecoder(f *testing.F, of ...Type) {
	for _, s := range allSamples() {
		b, err := s.p.Append(nil, s.v)
		if err != nil {
			f.Fatal(err)
		}
		if h, err := ParseHeader(b, s.v); err == nil && h.Type == of[0] && len(b) < 1000 {
			f.Add(b[h.Len:], h.Flags, byte(s.v))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, flags, version byte) {
		v := versions[int(version)%len(versions)]
		for _, packet := range of {
			h := Header{Type: packet, Flags: flags & 0xF, Remaining: len(body), Len: 2}
			if err := newPacket(packet).Decode(h, body, v); err != nil {
				var e *Error
				require.ErrorAs(t, err, &e)
				continue
			}
			first := byte(packet)<<4 | h.Flags
			if packet != TypePublish {
				first = firstByteOf(packet)
			}
			if _, err := ParseHeader(frame(first, body), v); err == nil {
				decodeEncodeDecode(t, frame(first, body), v)
			}
		}
	})
}

// firstByteOf returns the first byte of packets whose flags are fixed.
func firstByteOf(t Type) byte {
	switch t {
	case TypePubrel, TypeSubscribe, TypeUnsubscribe:
		return byte(t)<<4 | 2
	default:
		return byte(t) << 4
	}
}

func FuzzConnect(f *testing.F) { fuzzDecoder(f, TypeConnect) }
func FuzzConnack(f *testing.F) { fuzzDecoder(f, TypeConnack) }
func FuzzPublish(f *testing.F) { fuzzDecoder(f, TypePublish) }

// FuzzPublishKnowing decodes a PUBLISH with a Topic Name that may be the packet's, and without.
func FuzzPublishKnowing(f *testing.F) {
	f.Add([]byte("a/b"), []byte("\x00\x03a/b"))
	f.Add([]byte("a/b"), []byte("\x00\x03a/#"))
	f.Add([]byte("a/b"), []byte("\x00\x04a/bc"))
	f.Fuzz(func(t *testing.T, topic, body []byte) {
		if !ValidTopicName(topic) {
			topic = nil
		}
		h := Header{Type: TypePublish, Remaining: len(body), Len: 2}
		var a, b Publish
		require.Equal(t, a.Decode(h, body, V311), b.DecodeKnowing(topic, h, body, V311))
		require.Equal(t, a, b)
	})
}

func FuzzAck(f *testing.F) {
	fuzzDecoder(f, TypePuback, TypePubrec, TypePubrel, TypePubcomp)
}
func FuzzSubscribe(f *testing.F)   { fuzzDecoder(f, TypeSubscribe) }
func FuzzSuback(f *testing.F)      { fuzzDecoder(f, TypeSuback) }
func FuzzUnsubscribe(f *testing.F) { fuzzDecoder(f, TypeUnsubscribe) }
func FuzzUnsuback(f *testing.F)    { fuzzDecoder(f, TypeUnsuback) }
func FuzzPing(f *testing.F)        { fuzzDecoder(f, TypePingreq, TypePingresp) }
func FuzzDisconnect(f *testing.F)  { fuzzDecoder(f, TypeDisconnect) }
func FuzzAuth(f *testing.F)        { fuzzDecoder(f, TypeAuth) }

// FuzzReader compares the packets that a Reader finds in a stream with those that Decode finds.
func FuzzReader(f *testing.F) {
	for _, v := range versions {
		var stream []byte
		for _, s := range samples(v)[:5] {
			b, err := s.p.Append(nil, v)
			if err != nil {
				f.Fatal(err)
			}
			stream = append(stream, b...)
		}
		f.Add(stream, byte(v))
	}
	f.Add([]byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F, 0, 1, 'a'}, byte(V5))
	limits := Limits{PacketSize: 1000, Filters: 3, UserProperties: 3}
	f.Fuzz(func(t *testing.T, stream []byte, version byte) {
		v := versions[int(version)%len(versions)]
		r := NewReader(bytes.NewReader(stream), limits)
		r.SetVersion(v)
		for {
			got, gotErr := r.ReadPacket()
			want, n, wantErr := Decode(stream, v, limits)
			switch {
			case gotErr == io.EOF:
				require.Empty(t, stream)
				return
			case gotErr == io.ErrUnexpectedEOF:
				require.Equal(t, ErrShort, wantErr)
				return
			case gotErr != nil:
				var e *Error
				require.True(t, errors.As(gotErr, &e), "%v", gotErr)
				require.Equal(t, wantErr, gotErr)
				return
			}
			require.NoError(t, wantErr)
			require.Empty(t, cmp.Diff(want, got))
			if c, ok := got.(*Connect); ok {
				v = c.Version
			}
			stream = stream[n:]
		}
	})
}

// FuzzProperties reads arbitrary bytes as properties in every way.
func FuzzProperties(f *testing.F) {
	f.Add([]byte(Properties(nil).AppendUser("k", "v").AppendUint(TopicAlias, 1)), byte(TypePublish))
	f.Add([]byte(Properties(nil).AppendUint(SubscriptionIdentifier, 300)), byte(TypeSubscribe))
	f.Add([]byte{3, 0, 5, 'a'}, byte(TypeWill))
	f.Fuzz(func(t *testing.T, b []byte, in byte) {
		p, n := Properties(b), 0
		for id, value := range p.All() {
			require.True(t, p.Has(id))
			require.GreaterOrEqual(t, p.Offset(id), 1)
			n += 1 + len(value)
		}
		for range p.User() {
			n += 0
		}
		for range p.SubscriptionIDs() {
			n += 0
		}
		if !p.unencodable() {
			require.Equal(t, []byte(p[:n]), append([]byte{}, p.Without(nil)...),
				"Without nothing is a copy of what is well formed")
		}
		if err := p.Check(Type(in) % (TypeWill + 1)); err == nil {
			require.Equal(t, len(p), n, "what passes the check is well formed to its end")
		}
	})
}

// FuzzTopic compares the topic functions with plain forms of them.
func FuzzTopic(f *testing.F) {
	for _, row := range tables().Topics.MatchExamples {
		f.Add(row[0].(string), row[1].(string))
	}
	for _, s := range badText {
		f.Add(s, "$share/g/a/+/#")
	}
	f.Fuzz(checkTopicFunctions)
}
