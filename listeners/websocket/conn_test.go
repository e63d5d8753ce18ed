package websocket

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/stretchr/testify/require"
)

// pair returns a connection over memory, whose other end takes raw frames.
func pair(t *testing.T, o Options) (*conn, net.Conn) {
	t.Helper()
	m := listeners.NewMemory()
	client, err := m.Dial()
	require.NoError(t, err)
	server, err := m.Accept()
	require.NoError(t, err)
	m.Close()
	c := newConn(server, New(o).o, nil)
	t.Cleanup(func() {
		client.Close()
		c.Close()
	})
	return c, client
}

// frame makes a masked frame of a client.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n <= 0xFFFF:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0x12, 0x34, 0x56, 0x78}
	b = append(b, mask[:]...)
	for i, x := range payload {
		b = append(b, x^mask[i&3])
	}
	return b
}

const (
	fin    = 0x80
	binFin = fin | opBinary
)

func TestFramesOfClients(t *testing.T) {
	long := make([]byte, 126)
	for _, tt := range []struct {
		name  string
		raw   []byte
		limit Options
		want  string // what Read yields
		err   string // what it says then
		code  int    // of the Close frame
	}{
		{name: "one frame", raw: frame(binFin, []byte("abc")), want: "abc"},
		{name: "two fragments", raw: join(frame(opBinary, []byte("ab")),
			frame(fin|opContinuation, []byte("c"))), want: "abc"},
		{name: "an empty last fragment", raw: join(frame(opBinary, []byte("ab")), frame(fin, nil),
			frame(binFin, []byte("c"))), want: "abc"},
		{name: "an empty first fragment", raw: join(frame(opBinary, nil),
			frame(fin, []byte("abc"))), want: "abc"},
		{name: "a pong nobody asked for", raw: join(frame(fin|opPong, []byte("x")),
			frame(binFin, []byte("abc"))), want: "abc"},
		{name: "a goodbye", raw: join(frame(binFin, []byte("abc")),
			frame(fin|opClose, []byte{3, 232})), want: "abc", err: "EOF", code: 1000},
		{name: "a goodbye without code", raw: frame(fin|opClose, nil), err: "EOF", code: 1000},
		{name: "a goodbye that leaves", raw: frame(fin|opClose, []byte{3, 233, 'x'}), err: "EOF",
			code: 1001},
		{name: "a goodbye of one byte", raw: frame(fin|opClose, []byte{3}), err: "Close frame",
			code: 1002},
		{name: "a goodbye with a code of nobody", raw: frame(fin|opClose, []byte{0, 5}),
			err: "Close frame", code: 1002},
		{name: "a goodbye with a code that is never sent", raw: frame(fin|opClose, []byte{3, 237}),
			err: "Close frame", code: 1002},
		{name: "text", raw: frame(fin|opText, []byte("abc")), err: "text frame", code: 1003},
		{name: "text after binary", raw: join(frame(binFin, []byte("ab")),
			frame(fin|opText, []byte("c"))), want: "ab", err: "text frame", code: 1003},
		{name: "no mask", raw: []byte{binFin, 1, 'a'}, err: "not masked", code: 1002},
		{name: "reserved bit", raw: frame(binFin|0x40, nil), err: "reserved bits", code: 1002},
		{name: "unknown data opcode", raw: frame(fin|3, nil), err: "opcode 3", code: 1002},
		{name: "unknown control opcode", raw: frame(fin|11, nil), err: "opcode 11", code: 1002},
		{name: "a continuation of nothing", raw: frame(fin|opContinuation, nil), err: "opcode 0",
			code: 1002},
		{name: "a new message inside of one", raw: join(frame(opBinary, []byte("a")),
			frame(binFin, nil)), want: "a", err: "opcode 2", code: 1002},
		{name: "a ping in fragments", raw: frame(opPing, nil), err: "control frame", code: 1002},
		{name: "a ping that is too long", raw: frame(fin|opPing, long), err: "control frame",
			code: 1002},
		{name: "a length of 16 bits that needs 7",
			raw: []byte{binFin, 0x80 | 126, 0, 5, 0, 0, 0, 0}, err: "shortest", code: 1002},
		{name: "a length of 64 bits that needs 16", raw: append([]byte{binFin, 0x80 | 127, 0, 0, 0,
			0, 0, 0, 1, 0}, 0, 0, 0, 0), err: "shortest", code: 1002},
		{name: "a negative length", raw: append([]byte{binFin, 0x80 | 127, 255, 0, 0, 0, 0, 0, 0,
			0}, 0, 0, 0, 0), err: "shortest", code: 1002},
		{name: "a frame at the limit", raw: frame(binFin, []byte("abc")),
			limit: Options{MaxFrame: 3}, want: "abc"},
		{name: "a frame above the limit", raw: frame(binFin, []byte("abcd")),
			limit: Options{MaxFrame: 3}, err: "limit", code: 1009},
		{name: "a message at the limit", raw: join(frame(opBinary, []byte("ab")),
			frame(fin, []byte("c"))), limit: Options{MaxMessage: 3}, want: "abc"},
		{name: "a message above the limit", raw: join(frame(opBinary, []byte("ab")),
			frame(fin, []byte("cd"))), limit: Options{MaxMessage: 3}, want: "ab", err: "limit",
			code: 1009},
		{name: "two messages that are above it together", raw: join(frame(binFin, []byte("ab")),
			frame(binFin, []byte("cd"))), limit: Options{MaxMessage: 3}, want: "abcd"},
		{name: "no limits", raw: frame(binFin, long), limit: Options{MaxFrame: -1, MaxMessage: -1},
			want: string(long)},
	} {
		for _, step := range []int{1, 3, 1 << 20} {
			t.Run(tt.name, func(t *testing.T) {
				c, peer := pair(t, tt.limit)
				go func() { // ended by the Close of pair
					for b := tt.raw; len(b) > 0; b = b[min(step, len(b)):] {
						peer.Write(b[:min(step, len(b))])
					}
					if tt.err == "" {
						peer.(interface{ CloseWrite() error }).CloseWrite()
					}
				}()
				got, err := io.ReadAll(io.LimitReader(c, 1<<20))
				require.Equal(t, tt.want, string(got))
				if tt.err == "" {
					require.NoError(t, err)
					return
				}
				if tt.err == "EOF" {
					require.NoError(t, err)
				} else {
					require.ErrorContains(t, err, tt.err)
				}
				require.Equal(t, tt.code, closeCode(t, peer))
				_, err = c.Read(make([]byte, 1))
				require.Error(t, err, "nothing is read after the end")
				_, err = c.Write([]byte("x"))
				require.ErrorIs(t, err, net.ErrClosed, "nothing is written after a Close frame")
			})
		}
	}
}

// closeCode reads a Close frame.
func closeCode(t *testing.T, peer net.Conn) int {
	t.Helper()
	h := make([]byte, 4)
	_, err := io.ReadFull(peer, h)
	require.NoError(t, err)
	require.Equal(t, byte(fin|opClose), h[0])
	return int(binary.BigEndian.Uint16(h[2:]))
}

func join(bs ...[]byte) []byte { return bytes.Join(bs, nil) }

func TestEndInsideOfAFrame(t *testing.T) {
	whole := frame(binFin, []byte("abc"))
	for n := 1; n < len(whole); n++ {
		c, peer := pair(t, Options{})
		peer.Write(whole[:n])
		peer.Close()
		_, err := io.ReadAll(c)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "after %d bytes", n)
	}
}

// A deadline that passes does no harm wherever it hits: Keep Alive re-arms it.
func TestDeadlinesLeaveTheConnectionUsable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pair(t, Options{})
		raw := join(frame(fin|opPing, []byte("hello")), frame(opBinary, []byte("ab")),
			frame(fin, make([]byte, 200)))
		var got []byte
		b := make([]byte, 4096)
		for i := range raw {
			c.SetReadDeadline(time.Now().Add(time.Second))
			_, err := c.Read(b)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			c.SetReadDeadline(time.Time{})
			peer.Write(raw[i : i+1])
			c.SetReadDeadline(time.Now().Add(time.Second))
			n, err := c.Read(b)
			got = append(got, b[:n]...)
			if n == 0 {
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			}
		}
		require.Equal(t, join([]byte("ab"), make([]byte, 200)), got)
		pong := make([]byte, 7)
		io.ReadFull(peer, pong)
		require.Equal(t, "\x8a\x05hello", string(pong))
	})
}

// Whatever frames a stream is cut into, and however it arrives, it is the same stream.
func TestAnyFramesAreTheSameStream(t *testing.T) {
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	rng := mathrand.New(mathrand.NewPCG(seed, 1))
	for range 200 {
		want := make([]byte, rng.IntN(200_000))
		rand.Read(want)
		var raw []byte
		open := false
		for rest := want; len(rest) > 0; {
			if rng.IntN(4) == 0 {
				raw = append(raw, frame(fin|opPong, rest[:rng.IntN(min(126, len(rest)))])...)
			}
			n := min(len(rest), []int{0, 1, 125, 126, rng.IntN(70_000)}[rng.IntN(5)])
			first := byte(opBinary)
			if open {
				first = opContinuation
			}
			if open = rng.IntN(2) == 0; !open {
				first |= fin
			}
			raw = append(raw, frame(first, rest[:n])...)
			rest = rest[n:]
		}
		c := newConn(&scripted{raw: raw, rng: rng}, New(Options{}).o, nil)
		if k := rng.IntN(100); k < len(raw) {
			c.early = raw[:k]
			c.nc.(*scripted).raw = raw[k:]
		}
		var got []byte
		for b := make([]byte, 1+rng.IntN(8000)); ; {
			n, err := c.Read(b)
			got = append(got, b[:n]...)
			if err != nil {
				break
			}
		}
		require.True(t, bytes.Equal(want, got), "%d bytes in, %d out", len(want), len(got))
	}
}

// A scripted is a net.Conn that yields raw in pieces.
type scripted struct {
	net.Conn
	raw []byte
	rng *mathrand.Rand
}

func (s *scripted) Read(b []byte) (int, error) {
	if len(s.raw) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:1+s.rng.IntN(len(b))], s.raw)
	s.raw = s.raw[n:]
	return n, nil
}
func (s *scripted) RemoteAddr() net.Addr             { return addr{} }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }
func (s *scripted) Write(b []byte) (int, error)      { return len(b), nil }

// TryWrite never waits, and what is sent by it, by Write and by others meanwhile arrives whole and
// in order.
func TestTryWriteOverTCP(t *testing.T) {
	l := New(Options{})
	srv := httptest.NewServer(l)
	defer srv.Close()
	client, _, err := websocket.Dial(t.Context(), srv.URL,
		&websocket.DialOptions{Subprotocols: subprotocols})
	require.NoError(t, err)
	client.SetReadLimit(-1)
	defer client.CloseNow()
	nc, err := l.Accept()
	require.NoError(t, err)
	tw, ok := nc.(*tryConn)
	require.True(t, ok, "a TCP connection can write without waiting")

	var want []byte
	chunk := make([]byte, 100_000)
	for full := false; !full; { // until the socket is full
		rand.Read(chunk)
		n, err := tw.TryWrite(chunk)
		require.NoError(t, err)
		require.LessOrEqual(t, n, len(chunk))
		want = append(want, chunk[:n]...)
		full = n == 0
	}
	rand.Read(chunk)
	want = append(want, chunk...)
	wrote := make(chan error, 1)
	go func() {
		_, err := tw.Write(chunk)
		wrote <- errors.Join(err, tw.CloseWrite())
	}()
	go io.Copy(io.Discard, tw) // ends with the client's Close frame
	got, err := io.ReadAll(websocket.NetConn(t.Context(), client, websocket.MessageBinary))
	require.NoError(t, err)
	require.NoError(t, <-wrote)
	require.True(t, bytes.Equal(want, got), "%d bytes sent, %d received", len(want), len(got))
	_, err = tw.TryWrite([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
	tw.Close()
}

// A client that takes nothing ends its connection by the write deadline, one that takes a little
// does not.
func TestWriteDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pair(t, Options{})
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		go func() {
			b := make([]byte, 20_000)
			for range 20 { // 400 KB in 10 minutes, then no more
				time.Sleep(30 * time.Second)
				io.ReadFull(peer, b)
			}
		}()
		start := time.Now()
		n, err := c.Write(make([]byte, 4<<20))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Positive(t, n)
		require.Greater(t, time.Since(start), 10*time.Minute)
		_, err = c.Write([]byte("x"))
		require.ErrorIs(t, err, errBroken, "half a frame has been written")
	})
}

func TestPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := listeners.NewMemory()
		l := New(Options{PingInterval: 10 * time.Second})
		srv := &http.Server{Handler: l}
		go srv.Serve(m)
		defer srv.Close()
		tr := &http.Transport{DialContext: m.DialContext}
		client, _, err := websocket.Dial(context.Background(), "http://broker/",
			&websocket.DialOptions{
				Subprotocols: subprotocols, HTTPClient: &http.Client{Transport: tr},
			})
		require.NoError(t, err)
		defer client.CloseNow()
		nc, err := l.Accept()
		require.NoError(t, err)
		defer nc.Close()
		ended := make(chan error, 1)
		go func() {
			_, err := nc.Read(make([]byte, 10))
			ended <- err
		}()
		ctx, cancel := context.WithCancel(context.Background())
		go client.Read(ctx) // answers pings
		time.Sleep(time.Hour)
		require.Empty(t, ended, "a client that answers pings stays")

		cancel() // the library closes the connection
		err = <-ended
		require.Error(t, err)
		l.Close()
	})
}

func TestAPingThatIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pair(t, Options{PingInterval: 10 * time.Second})
		c.startPings()
		start := time.Now()
		_, err := c.Read(make([]byte, 10))
		require.Error(t, err)
		require.Equal(t, 20*time.Second, time.Since(start))
		b := make([]byte, 2)
		io.ReadFull(peer, b)
		require.Equal(t, "\x89\x00", string(b))
		require.Equal(t, closeGoingAway, closeCode(t, peer))
	})
}

// onePacket is an MQTT packet of n bytes, which need three for the Remaining Length.
func onePacket(n int) []byte {
	b := make([]byte, n)
	b[0] = 0x30
	binary.AppendUvarint(b[:1], uint64(n-4))
	return b
}

// Clients that take one packet out of each frame must not miss the second one.
func TestEachPacketLeavesInAFrameOfItsOwn(t *testing.T) {
	small := [][]byte{
		{0xD0, 0}, {0x40, 2, 0, 1}, append([]byte{0x30, 0xC8, 1}, make([]byte, 200)...), {0xE0, 0},
	}
	stream := join(small...)
	var want []byte
	for _, p := range small {
		want = append(appendHeader(want, opBinary, len(p)), p...)
	}
	t.Run("written together they leave in one call", func(t *testing.T) {
		below := &recorder{}
		n, err := newConn(below, Options{}, nil).Write(stream)
		require.NoError(t, err)
		require.Equal(t, len(stream), n)
		require.Equal(t, [][]byte{want}, below.calls)
	})
	t.Run("TryWrite does the same", func(t *testing.T) {
		below := &recorder{}
		c := newConn(below, Options{}, nil)
		c.try = below.Write
		n, err := (&tryConn{c}).TryWrite(stream)
		require.NoError(t, err)
		require.Equal(t, len(stream), n)
		require.Equal(t, [][]byte{want}, below.calls)
	})
	t.Run("written in two parts, a frame holds no more than a part of one packet",
		func(t *testing.T) {
			for cut := 1; cut < len(stream); cut++ {
				below := &recorder{}
				c := newConn(below, Options{}, nil)
				for _, part := range [][]byte{stream[:cut], stream[cut:]} {
					_, err := c.Write(part)
					require.NoError(t, err)
				}
				payloads := payloadsOf(t, join(below.calls...))
				require.Equal(t, stream, join(payloads...), "cut at %d", cut)
				for _, p := range small { // each packet begins with a frame
					for len(p) > 0 {
						require.LessOrEqual(t, len(payloads[0]), len(p), "cut at %d", cut)
						p, payloads = p[len(payloads[0]):], payloads[1:]
					}
				}
			}
		})
	t.Run("what was not taken does not count", func(t *testing.T) {
		below := &recorder{}
		c := newConn(below, Options{}, nil)
		c.try = func([]byte) (int, error) { return 0, nil }
		n, err := (&tryConn{c}).TryWrite(stream[:3])
		require.NoError(t, err)
		require.Zero(t, n)
		_, err = c.Write(stream)
		require.NoError(t, err)
		require.Equal(t, [][]byte{want}, below.calls)
	})
	t.Run("a packet that is larger than a piece", func(t *testing.T) {
		below := &recorder{}
		_, err := newConn(below, Options{}, nil).Write(join(onePacket(2*maxPiece+10), small[0]))
		require.NoError(t, err)
		payloads := payloadsOf(t, join(below.calls...))
		require.Len(t, payloads, 4)
		require.Equal(t, small[0], payloads[3])
	})
}

// A recorder keeps what is written to it.
type recorder struct {
	scripted
	calls [][]byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.calls = append(r.calls, bytes.Clone(b))
	return len(b), nil
}

// payloadsOf takes frames of a server apart.
func payloadsOf(t *testing.T, b []byte) (payloads [][]byte) {
	for len(b) > 0 {
		require.Equal(t, byte(0x80|opBinary), b[0])
		n, at := int(b[1]), 2
		switch n {
		case 126:
			n, at = int(binary.BigEndian.Uint16(b[2:])), 4
		case 127:
			n, at = int(binary.BigEndian.Uint64(b[2:])), 10
		}
		payloads = append(payloads, b[at:at+n])
		b = b[at+n:]
	}
	return payloads
}

// The answer to a ping does not wait for a client that reads nothing: the last one is kept for
// later.
func TestPongsBehindAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pair(t, Options{})
		big := onePacket(maxPiece + 1000) // more than the memory connection holds
		go c.Write(big)
		synctest.Wait()
		peer.Write(join(frame(fin|opPing, []byte("1")), frame(fin|opPing, []byte("2")),
			frame(binFin, []byte("x"))))
		b := make([]byte, 100)
		n, err := c.Read(b)
		require.NoError(t, err, "reading goes on")
		require.Equal(t, "x", string(b[:n]))
		got := make([]byte, 10+maxPiece+4+1000+3)
		_, err = io.ReadFull(peer, got)
		require.NoError(t, err)
		require.Equal(t, "\x8a\x012", string(got[len(got)-3:]))
	})
}

func BenchmarkTryWrite(b *testing.B) {
	l := New(Options{})
	srv := httptest.NewServer(l)
	defer srv.Close()
	client, _, err := websocket.Dial(b.Context(), srv.URL,
		&websocket.DialOptions{Subprotocols: subprotocols})
	require.NoError(b, err)
	defer client.CloseNow()
	nc, err := l.Accept()
	require.NoError(b, err)
	defer nc.Close()
	go io.Copy(io.Discard, websocket.NetConn(b.Context(), client, websocket.MessageBinary))
	b.ReportAllocs()
	p := make([]byte, 100)
	for b.Loop() {
		for {
			n, err := nc.(*tryConn).TryWrite(p)
			if n > 0 || err != nil {
				break
			}
			runtime.Gosched()
		}
	}
}

// Close waits for the client's Close frame, but not for long, and not for a client that has said
// goodbye already.
func TestCloseWaitsForTheClient(t *testing.T) {
	for _, tt := range []struct {
		name string
		peer func(nc net.Conn)
		want time.Duration
	}{
		{"a client that answers", func(nc net.Conn) {
			io.ReadFull(nc, make([]byte, 4))
			time.Sleep(100 * time.Millisecond)
			nc.Write(join(frame(binFin, []byte("late")), frame(fin|opClose, []byte{3, 232})))
		}, 100 * time.Millisecond},
		{"a client that goes", func(nc net.Conn) { nc.Close() }, 0},
		{"a client that does nothing", func(net.Conn) {}, time.Second},
		{"a client that never stops", func(nc net.Conn) {
			for err := error(nil); err == nil; {
				time.Sleep(10 * time.Millisecond)
				_, err = nc.Write(frame(binFin, []byte("more")))
			}
		}, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, peer := pair(t, Options{})
				var ended sync.WaitGroup
				defer ended.Wait()
				ended.Go(func() { tt.peer(peer) })
				start := time.Now()
				require.NoError(t, c.Close())
				require.Equal(t, tt.want, time.Since(start))
				_, err := c.Read(make([]byte, 1))
				require.ErrorIs(t, err, net.ErrClosed)
				require.ErrorIs(t, c.Close(), net.ErrClosed)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c, _ := pair(t, Options{})
		ended := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			ended <- err
		}()
		synctest.Wait()
		start := time.Now()
		require.NoError(t, c.Close())
		require.Error(t, <-ended)
		require.Zero(t, time.Since(start), "a Read that waits is ended at once")
	})
}

// A client is not closed for want of an answer to a ping that nobody could send: it is asked when
// that is possible.
func TestAPingThatCouldNotBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pair(t, Options{PingInterval: 10 * time.Second})
		c.startPings()
		ended := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 10))
			ended <- err
		}()
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write(onePacket(maxPiece + 1000)) // more than the memory connection holds
			wrote <- err
		}()
		time.Sleep(15 * time.Second)
		io.ReadFull(peer, make([]byte, 10+maxPiece+4+1000)) // it comes back from behind a tunnel
		require.NoError(t, <-wrote)
		var b [2]byte
		_, err := io.ReadFull(peer, b[:])
		require.NoError(t, err)
		require.Equal(t, "\x89\x00", string(b[:]), "it is asked before it is closed")
		peer.Write(frame(fin|opPong, nil))
		time.Sleep(8 * time.Second)
		require.Empty(t, ended)
	})
}

// TryWrite does not wait for the Pong that was left to it, nor for the rest of its frame.
func TestTryWriteWithAPongToCome(t *testing.T) {
	c, peer := pair(t, Options{})
	try := c.try
	c.try = func(b []byte) (int, error) {
		c.answer([]byte("1")) // as a Read does that goes on meanwhile
		return try(b)
	}
	tried := make(chan int, 1)
	go func() {
		n, _ := (&tryConn{c}).
			TryWrite(onePacket(maxPiece)) // with the header more than the memory connection holds
		tried <- n
	}()
	select {
	case n := <-tried:
		require.Equal(t, maxPiece, n)
	case <-time.After(3 * time.Second):
		t.Error("TryWrite waits for the client")
	}
	peer.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 10+maxPiece+3)
	_, err := io.ReadFull(peer, got)
	require.NoError(t, err)
	require.Equal(t, "\x8a\x011", string(got[len(got)-3:]))
}

// Once Close has begun, nobody can make it wait for longer than it says.
func TestDeadlinesDuringClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := pair(t, Options{})
		closed := make(chan error, 1)
		go func() { closed <- c.Close() }()
		synctest.Wait() // it waits for the client's Close frame, which does not come
		require.ErrorIs(t, c.SetReadDeadline(time.Time{}), net.ErrClosed)
		time.Sleep(2 * lingering)
		require.Len(t, closed, 1, "Close has returned")
	})
}
