package packets

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestReaderReadsWhatWasWritten(t *testing.T) {
	for name, slow := range map[string]func(io.Reader) io.Reader{
		"as much as there is":             func(r io.Reader) io.Reader { return r },
		"byte by byte":                    iotest.OneByteReader,
		"half of what is wanted":          iotest.HalfReader,
		"the last bytes with the end":     iotest.DataErrReader,
		"with a timeout before each byte": func(r io.Reader) io.Reader { return &hesitant{r: r} },
	} {
		for _, v := range versions {
			t.Run(name+"/"+v.String(), func(t *testing.T) {
				var stream []byte
				for _, s := range samples(v) { // which begin with a CONNECT
					stream = append(stream, encode(t, s.p, v)...)
				}
				r := NewReader(slow(bytes.NewReader(stream)), Limits{})
				for _, s := range samples(v) {
					p, err := patiently(r)
					require.NoError(t, err, s.name)
					require.Empty(t, cmp.Diff(s.p, p), s.name)
				}
				_, err := patiently(r)
				require.Equal(t, io.EOF, err, "the stream ends between packets")
			})
		}
	}
}

// A hesitant reader times out before each byte.
type hesitant struct {
	r    io.Reader
	next bool
}

func (h *hesitant) Read(b []byte) (int, error) {
	if h.next = !h.next; h.next {
		return 0, os.ErrDeadlineExceeded
	}
	return h.r.Read(b[:min(len(b), 1)])
}

// patiently reads a packet in spite of timeouts.
func patiently(r *Reader) (Packet, error) {
	for {
		p, err := r.ReadPacket()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return p, err
		}
	}
}

func TestReaderTellsWhereTheStreamEnded(t *testing.T) {
	b := encode(t, &Publish{Topic: []byte("a"), Payload: make([]byte, 5000)}, V311)
	_, err := NewReader(bytes.NewReader(nil), Limits{}).ReadPacket()
	require.Equal(t, io.EOF, err)
	for _, n := range []int{1, 2, 3, 4, 4096, 4099, 4100, len(b) - 1} {
		_, err := NewReader(bytes.NewReader(b[:n]), Limits{}).ReadPacket()
		require.Equal(t, io.ErrUnexpectedEOF, err, "%d bytes of %d", n, len(b))
	}
	broken := errors.New("broken")
	_, err = NewReader(io.MultiReader(bytes.NewReader(b[:100]), iotest.ErrReader(broken)),
		Limits{}).ReadPacket()
	require.Equal(t, broken, err, "the error of the connection is passed on")
}

func TestReaderStaysWithTheFirstProtocolError(t *testing.T) {
	stream := append([]byte{0x00, 0x00}, encode(t, &Pingreq{}, V311)...)
	r := NewReader(bytes.NewReader(stream), Limits{})
	_, first := r.ReadPacket()
	requireCode(t, MalformedPacket, first, "type 0")
	_, again := r.ReadPacket()
	require.Equal(t, first, again, "nobody knows where the next packet begins")
}

func TestReaderHoldsLimits(t *testing.T) {
	b := encode(t, &Publish{Topic: []byte("a"), Payload: make([]byte, 200)}, V311)
	_, err := NewReader(bytes.NewReader(b), Limits{PacketSize: len(b)}).ReadPacket()
	require.NoError(t, err)
	_, err = NewReader(bytes.NewReader(b[:3]), Limits{PacketSize: len(b) - 1}).ReadPacket()
	requireCode(t, PacketTooLarge, err, "from the header alone")
	b = encode(t, &Unsubscribe{PacketID: 1, Filters: []string{"a", "b"}}, V311)
	_, err = NewReader(bytes.NewReader(b), Limits{Filters: 1}).ReadPacket()
	requireCode(t, QuotaExceeded, err, "two filters")
}

func TestReaderTakesMemoryForBytesThatCameOnly(t *testing.T) {
	for _, came := range []int{0, 1, 100, 5000, 100_000} {
		r := NewReader(bytes.NewReader(append([]byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F},
			make([]byte, came)...)), Limits{})
		_, err := r.ReadPacket()
		require.Equal(t, io.ErrUnexpectedEOF, err)
		require.Len(t, r.body, came)
		require.LessOrEqual(t, cap(r.body), max(firstStep, 2*came),
			"a declared length of 256 MiB must not be believed")
	}
	r := NewReader(bytes.NewReader(encode(t,
		&Publish{Topic: []byte("a"), Payload: make([]byte, 9997)}, V311)), Limits{})
	require.NoError(t, r.readHeader())
	require.NoError(t, r.readBody())
	require.Equal(t, 10_000, cap(r.body), "a whole packet takes no more than its length")
}

func TestReaderKnowsTheVersion(t *testing.T) {
	ack := encode(t, &Suback{PacketID: 1, Codes: []ReasonCode{NotAuthorized}}, V5)
	_, err := NewReader(bytes.NewReader(ack), Limits{}).ReadPacket()
	requireCode(t, MalformedPacket, err, "3.1.1 is the default")
	r := NewReader(bytes.NewReader(ack), Limits{})
	r.SetVersion(V5)
	p, err := r.ReadPacket()
	require.NoError(t, err)
	require.Equal(t, "SUBACK id=1 codes=87", Trace(p))
}

func TestPacketsOfAReaderOwnTheirMemory(t *testing.T) {
	var stream []byte
	for _, payload := range []string{"first", "other"} {
		stream = append(stream,
			encode(t, &Publish{Topic: []byte("a"), Payload: []byte(payload)}, V311)...)
	}
	r := NewReader(bytes.NewReader(stream), Limits{})
	first, err := r.ReadPacket()
	require.NoError(t, err)
	second, err := r.ReadPacket()
	require.NoError(t, err)
	for i := range second.(*Publish).Payload {
		second.(*Publish).Payload[i] = 'x'
	}
	require.Equal(t, "first", string(first.(*Publish).Payload),
		"the next packet must not overwrite it")
	require.False(t, slices.Equal(first.(*Publish).Payload, second.(*Publish).Payload))
}
