package codec

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

func encode(ops []store.Op) []byte {
	var e Encoder
	var b []byte
	for _, op := range ops {
		b = e.Append(b, op)
	}
	return b
}

func decode(t testing.TB, b []byte, borrow bool, each func(op store.Op)) {
	d := Decoder{Borrow: borrow}
	d.Reset(b)
	for d.More() {
		op, err := d.Next()
		require.NoError(t, err)
		each(op)
	}
	require.Equal(t, len(b), d.Offset())
}

func TestOperationsComeBack(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := storetest.NewHistory(seed)
	for range 500 {
		want := h.Batch()
		b := encode(want)
		var got []store.Op
		decode(t, b, false, func(op store.Op) { got = append(got, op) })
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty(),
			cmpopts.IgnoreUnexported(store.Message{})); d != "" {
			t.Fatalf("seed %d:\n%s", seed, d)
		}
		var e Encoder
		var again []byte
		decode(t, b, true, func(op store.Op) { again = e.Append(again, op) })
		require.Equal(t, b, again, "what is borrowed is the same")
	}
}

func TestDecodedOperationsOwnTheirMemory(t *testing.T) {
	h := storetest.NewHistory(1)
	for range 100 {
		want := h.Batch()
		b := encode(want)
		var got []store.Op
		decode(t, b, false, func(op store.Op) { got = append(got, op) })
		clear(b)
		require.Empty(t, cmp.Diff(want, got, cmpopts.EquateEmpty(),
			cmpopts.IgnoreUnexported(store.Message{})))
	}
}

func TestPrefixesAreErrors(t *testing.T) {
	h := storetest.NewHistory(2)
	var d Decoder
	for range 200 {
		for _, op := range h.Batch() {
			b := encode([]store.Op{op})
			for n := range min(len(b), 200) {
				d.Reset(b[:n])
				_, err := d.Next()
				require.ErrorIs(t, err, ErrInvalid, "%T, %d bytes of %d", op, n, len(b))
			}
		}
	}
}

func TestMessagesComeBack(t *testing.T) {
	m := &store.Message{Message: packets.Message{Topic: "a", Payload: []byte("x"), QoS: 2,
		Retain: true}, Expires: -5, From: "c"}
	b := AppendMessage(nil, m)
	var d Decoder
	got, err := d.DecodeMessage(b)
	require.NoError(t, err)
	require.Equal(t, m, got)
	for n := range b {
		_, err := d.DecodeMessage(b[:n])
		require.ErrorIs(t, err, ErrInvalid)
	}
	_, err = d.DecodeMessage(append(b, 0))
	require.ErrorContains(t, err, "bytes follow the message")
}

func TestSizes(t *testing.T) {
	p := &store.Publish{Message: &store.Message{
		Message: packets.Message{Topic: "plant/7/line/3/temperature", Payload: make([]byte, 256),
			QoS: 1}, From: "sensor-00017"}}
	p.To = []store.Delivery{{Session: 1, Seq: 1_000_000, QoS: 1}}
	require.Less(t, len(encode([]store.Op{p, p}))/2, 310)
	p.To = nil
	for i := range uint64(10_000) {
		p.To = append(p.To, store.Delivery{Session: i + 1, Seq: 77, QoS: 1})
	}
	require.Less(t, len(encode([]store.Op{p})), 20_500)
	var acks []store.Op
	for i := range uint64(1000) {
		acks = append(acks, &store.Done{Session: i + 1, Seq: 1_000_000 + i%5})
	}
	require.Less(t, len(encode(acks)), 3100)
}

func TestErrorsNameTheOperation(t *testing.T) {
	good := encode([]store.Op{&store.DeleteSession{Session: 1}})
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"a kind from the future", []byte{200}, "operation 200 is not known"},
		{"no kind", []byte{0}, "operation 0 is not known"},
		{"flags from the future", []byte{putSession, 0x80}, "session flags 0x80 is not known"},
		{"a packet identifier of 17 bits", []byte{sent, 2, 2, 0x80, 0x80, 4},
			"packet identifier is cut off or too large"},
		{"an empty run", []byte{publish, 0, 0, 0, 0, 1, runLong, 0, 0}, "a run is empty"},
		{"more deliveries than bytes", []byte{publish, 0, 0, 0, 0, 9, 0, 0},
			"number of deliveries is cut off or too large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d Decoder
			d.Reset(append(bytes.Clone(good), c.b...))
			_, err := d.Next()
			require.NoError(t, err)
			_, err = d.Next()
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, fmt.Sprintf("at offset %d of", len(good)))
		})
	}
}

func FuzzDecoder(f *testing.F) {
	h := storetest.NewHistory(3)
	for range 20 {
		f.Add(encode(h.Batch()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, borrow := range []bool{false, true} {
			d := Decoder{Borrow: borrow}
			d.Reset(b)
			var e Encoder
			for d.More() {
				op, err := d.Next()
				if err != nil {
					break
				}
				e.Append(nil, op)
			}
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		p := &store.Publish{Message: &store.Message{
			Message: packets.Message{Topic: "plant/7/line/3/temperature",
				Payload: make([]byte, 256), QoS: 1}, From: "sensor-00017"}}
		for i := range n {
			p.To = append(p.To, store.Delivery{Session: uint64(i + 1), Seq: 77, QoS: 1})
		}
		data := encode([]store.Op{p})
		b.Run(fmt.Sprintf("encode/to=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var e Encoder
				data = e.Append(data[:0], p)
			}
		})
		for _, borrow := range []bool{false, true} {
			b.Run(fmt.Sprintf("decode/to=%d/borrow=%t", n, borrow), func(b *testing.B) {
				b.ReportAllocs()
				d := Decoder{Borrow: borrow}
				for b.Loop() {
					d.Reset(data)
					if _, err := d.Next(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
