package listeners

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Dial and DialContext fit where dialer functions are wanted.
var _ func(context.Context, string, string) (net.Conn, error) = (*Memory)(nil).DialContext

// pair returns both ends of a connection whose directions hold size bytes each.
func pair(t *testing.T, size int) (client, server *conn) {
	t.Helper()
	m := NewMemory()
	m.Buffer = size
	c, err := m.Dial()
	require.NoError(t, err)
	s, err := m.Accept()
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Close()
		s.Close()
		m.Close()
	})
	return c.(*conn), s.(*conn)
}

// bubble runs f in a synctest bubble with a connection whose directions hold 8 bytes each.
func bubble(t *testing.T, f func(t *testing.T, c, s *conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t, 8)
		f(t, c, s)
	})
}

type result struct {
	n   int
	err error
}

// start runs f and returns its result later: after synctest.Wait, an empty channel means that f
// waits.
func start(f func(b []byte) (int, error), b []byte) chan result {
	ch := make(chan result, 1)
	go func() {
		n, err := f(b)
		ch <- result{n, err}
	}()
	return ch
}

func isTimeout(t *testing.T, err error) {
	t.Helper()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	require.True(t, ne.Timeout(), "a passed deadline is a timeout for net.Error")
}

func TestConn(t *testing.T) {
	past := time.Unix(1, 0)
	eight := []byte("12345678")
	tests := []struct {
		name string
		run  func(t *testing.T, c, s *conn)
	}{
		{"what is written at one end is read at the other, in both directions at once",
			func(t *testing.T, c, s *conn) {
				for _, x := range []struct{ from, to *conn }{{c, s}, {s, c}} {
					n, err := x.from.Write([]byte("hello"))
					require.NoError(t, err)
					require.Equal(t, 5, n)
				}
				for _, x := range []*conn{c, s} {
					b := make([]byte, 20)
					n, err := x.Read(b)
					require.NoError(t, err)
					require.Equal(t, "hello", string(b[:n]))
				}
			}},
		{"a Read of no bytes returns at once", func(t *testing.T, c, s *conn) {
			n, err := c.Read(nil)
			require.NoError(t, err)
			require.Zero(t, n)
		}},
		{"a Write larger than the buffer waits until all of it was read",
			func(t *testing.T, c, s *conn) {
				w := start(c.Write, []byte("0123456789abcdefghij"))
				synctest.Wait()
				require.Empty(t, w, "the Write waits for room")
				b := make([]byte, 20)
				_, err := io.ReadFull(s, b)
				require.NoError(t, err)
				require.Equal(t, "0123456789abcdefghij", string(b))
				require.Equal(t, result{20, nil}, <-w)
			}},
		{"a Read waits for data", func(t *testing.T, c, s *conn) {
			b := make([]byte, 4)
			r := start(s.Read, b)
			synctest.Wait()
			require.Empty(t, r, "the Read waits")
			c.Write([]byte("ab"))
			require.Equal(t, result{2, nil}, <-r)
			require.Equal(t, "ab", string(b[:2]))
		}},
		{"TryWrite takes what fits and never waits", func(t *testing.T, c, s *conn) {
			n, err := c.TryWrite([]byte("12345"))
			require.NoError(t, err)
			require.Equal(t, 5, n)
			n, err = c.TryWrite([]byte("67890"))
			require.NoError(t, err)
			require.Equal(t, 3, n)
			n, err = c.TryWrite([]byte("90"))
			require.NoError(t, err)
			require.Zero(t, n)
			b := make([]byte, 20)
			n, err = s.Read(b)
			require.NoError(t, err)
			require.Equal(t, "12345678", string(b[:n]))
		}},
		{"TryWrite puts nothing between the parts of a Write that waits",
			func(t *testing.T, c, s *conn) {
				w := start(c.Write, []byte("aaaaaaaaaaaa"))
				synctest.Wait()
				s.in.mu.Lock() // the Write must not run on before TryWrite has seen the room
				s.in.take(make([]byte, 2))
				s.in.mu.Unlock()
				n, err := c.TryWrite([]byte("b"))
				require.NoError(t, err)
				require.Zero(t, n)
				b, err := io.ReadAll(io.LimitReader(s, 10))
				require.NoError(t, err)
				require.Equal(t, "aaaaaaaaaa", string(b))
				require.Equal(t, result{12, nil}, <-w)
			}},
		{"a deadline in the past fails reads and writes at once, data or not",
			func(t *testing.T, c, s *conn) {
				s.Write([]byte("x"))
				require.NoError(t, c.SetDeadline(past))
				n, err := c.Read(make([]byte, 1))
				require.Zero(t, n)
				isTimeout(t, err)
				n, err = c.Write([]byte("x"))
				require.Zero(t, n)
				isTimeout(t, err)
				_, err = c.TryWrite([]byte("x"))
				isTimeout(t, err)
			}},
		{"a deadline that is taken back restores the connection", func(t *testing.T, c, s *conn) {
			require.NoError(t, c.SetDeadline(past))
			require.NoError(t, c.SetDeadline(time.Time{}))
			_, err := c.Write([]byte("x"))
			require.NoError(t, err)
			_, err = io.ReadFull(s, make([]byte, 1))
			require.NoError(t, err)
		}},
		{"a Read that waits ends at its deadline", func(t *testing.T, c, s *conn) {
			begin := time.Now()
			c.SetReadDeadline(begin.Add(time.Minute))
			_, err := c.Read(make([]byte, 1))
			isTimeout(t, err)
			require.Equal(t, time.Minute, time.Since(begin))
		}},
		{"a Write that waits ends at its deadline and says how much went",
			func(t *testing.T, c, s *conn) {
				begin := time.Now()
				c.SetWriteDeadline(begin.Add(time.Minute))
				n, err := c.Write([]byte("0123456789"))
				isTimeout(t, err)
				require.Equal(t, 8, n)
				require.Equal(t, time.Minute, time.Since(begin))
			}},
		{"a past deadline wakes a Read that waits already", func(t *testing.T, c, s *conn) {
			r := start(c.Read, make([]byte, 1))
			synctest.Wait()
			c.SetReadDeadline(past)
			isTimeout(t, (<-r).err)
		}},
		{"a past deadline wakes a Write that waits already", func(t *testing.T, c, s *conn) {
			c.Write(eight)
			w := start(c.Write, eight)
			synctest.Wait()
			c.SetWriteDeadline(past)
			isTimeout(t, (<-w).err)
		}},
		{"a deadline that was moved back does not fire at its old time",
			func(t *testing.T, c, s *conn) {
				begin := time.Now()
				c.SetReadDeadline(begin.Add(time.Second))
				r := start(c.Read, make([]byte, 1))
				synctest.Wait()
				c.SetReadDeadline(begin.Add(time.Hour))
				isTimeout(t, (<-r).err)
				require.Equal(t, time.Hour, time.Since(begin))
			}},
		{"the read deadline leaves writes alone, and the other way round",
			func(t *testing.T, c, s *conn) {
				c.SetReadDeadline(past)
				_, err := c.Write([]byte("x"))
				require.NoError(t, err)
				s.SetWriteDeadline(past)
				_, err = s.Read(make([]byte, 1))
				require.NoError(t, err)
			}},
		{"after Close the peer reads what was sent, then io.EOF", func(t *testing.T, c, s *conn) {
			c.Write([]byte("last"))
			require.NoError(t, c.Close())
			b, err := io.ReadAll(s)
			require.NoError(t, err)
			require.Equal(t, "last", string(b))
			_, err = s.Read(make([]byte, 1))
			require.Equal(t, io.EOF, err, "io.EOF comes bare, for those who compare with ==")
		}},
		{"after Close the peer cannot write", func(t *testing.T, c, s *conn) {
			c.Close()
			_, err := s.Write([]byte("x"))
			require.ErrorIs(t, err, io.ErrClosedPipe)
			_, err = s.TryWrite([]byte("x"))
			require.ErrorIs(t, err, io.ErrClosedPipe)
		}},
		{"after Close every own call says net.ErrClosed", func(t *testing.T, c, s *conn) {
			s.Write([]byte("x"))
			c.Close()
			_, err := c.Read(make([]byte, 1))
			require.ErrorIs(t, err, net.ErrClosed)
			_, err = c.Write([]byte("x"))
			require.ErrorIs(t, err, net.ErrClosed)
			_, err = c.TryWrite([]byte("x"))
			require.ErrorIs(t, err, net.ErrClosed)
			require.ErrorIs(t, c.CloseWrite(), net.ErrClosed)
			require.ErrorIs(t, c.SetDeadline(past), net.ErrClosed)
			require.ErrorIs(t, c.SetWriteDeadline(past), net.ErrClosed)
			require.ErrorIs(t, c.Close(), net.ErrClosed)
		}},
		{"Close wakes own and foreign reads and writes", func(t *testing.T, c, s *conn) {
			c.Write(eight)
			s.Write(eight)
			io.ReadFull(c, make([]byte, 8))
			own := start(c.Write, eight)
			ownRead := start(c.Read, make([]byte, 1))
			synctest.Wait()
			c.Close()
			require.ErrorIs(t, (<-own).err, net.ErrClosed)
			require.ErrorIs(t, (<-ownRead).err, net.ErrClosed)

			c, s = pair(t, 8)
			s.Write(eight)
			foreign := start(s.Write, eight)
			foreignRead := start(s.Read, make([]byte, 1))
			synctest.Wait()
			c.Close()
			require.ErrorIs(t, (<-foreign).err, io.ErrClosedPipe)
			require.ErrorIs(t, (<-foreignRead).err, io.EOF)
		}},
		{"CloseWrite ends one direction only", func(t *testing.T, c, s *conn) {
			c.Write([]byte("ask"))
			require.NoError(t, c.CloseWrite())
			require.NoError(t, c.CloseWrite(), "again changes nothing")
			_, err := c.Write([]byte("x"))
			require.ErrorIs(t, err, io.ErrClosedPipe)
			b, err := io.ReadAll(s)
			require.NoError(t, err)
			require.Equal(t, "ask", string(b))
			s.Write([]byte("answer"))
			s.Close()
			b, err = io.ReadAll(c)
			require.NoError(t, err)
			require.Equal(t, "answer", string(b))
		}},
		{"CloseWrite wakes a peer that waits in Read", func(t *testing.T, c, s *conn) {
			r := start(s.Read, make([]byte, 1))
			synctest.Wait()
			c.CloseWrite()
			require.Equal(t, io.EOF, (<-r).err)
		}},
		{"both ends know each other's address", func(t *testing.T, c, s *conn) {
			require.Equal(t, c.LocalAddr(), s.RemoteAddr())
			require.Equal(t, s.LocalAddr(), c.RemoteAddr())
			require.NotEqual(t, c.LocalAddr(), c.RemoteAddr())
			require.Equal(t, "memory", c.LocalAddr().Network())
		}},
		{"errors name the operation and the addresses", func(t *testing.T, c, s *conn) {
			c.Close()
			_, err := c.Read(make([]byte, 1))
			require.EqualError(t, err,
				"read memory client-1->memory: use of closed network connection")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { bubble(t, tt.run) })
	}
}

func TestListener(t *testing.T) {
	tests := []struct {
		name string
		run  func(t *testing.T, m *Memory)
	}{
		{"Accept waits for Dial", func(t *testing.T, m *Memory) {
			got := make(chan net.Conn, 1)
			go func() {
				c, _ := m.Accept()
				got <- c
			}()
			synctest.Wait()
			require.Empty(t, got)
			c, err := m.Dial()
			require.NoError(t, err)
			require.Equal(t, c.LocalAddr(), (<-got).RemoteAddr())
		}},
		{"connections are accepted in the order they were dialed", func(t *testing.T, m *Memory) {
			for range 3 {
				_, err := m.Dial()
				require.NoError(t, err)
			}
			for _, want := range []string{"client-1", "client-2", "client-3"} {
				c, err := m.Accept()
				require.NoError(t, err)
				require.Equal(t, want, c.RemoteAddr().String())
			}
		}},
		{"Close wakes Accept, and a second Close is told so", func(t *testing.T, m *Memory) {
			got := make(chan error, 1)
			go func() {
				_, err := m.Accept()
				got <- err
			}()
			synctest.Wait()
			require.NoError(t, m.Close())
			require.ErrorIs(t, <-got, net.ErrClosed)
			require.ErrorIs(t, m.Close(), net.ErrClosed)
		}},
		{"Close closes what was not accepted and leaves what was", func(t *testing.T, m *Memory) {
			taken, _ := m.Dial()
			server, err := m.Accept()
			require.NoError(t, err)
			left, _ := m.Dial()
			require.NoError(t, m.Close())
			_, err = left.Read(make([]byte, 1))
			require.Equal(t, io.EOF, err)
			server.Write([]byte("x"))
			_, err = taken.Read(make([]byte, 1))
			require.NoError(t, err)
			_, err = m.Dial()
			require.ErrorIs(t, err, net.ErrClosed)
		}},
		{"Dial waits while 128 connections wait for Accept, as long as its context allows",
			func(t *testing.T, m *Memory) {
				for range backlog {
					_, err := m.Dial()
					require.NoError(t, err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := m.DialContext(ctx, "tcp", "ignored:1883")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				got := make(chan error, 1)
				go func() {
					_, err := m.Dial()
					got <- err
				}()
				synctest.Wait()
				require.Empty(t, got)
				_, err = m.Accept()
				require.NoError(t, err)
				require.NoError(t, <-got)
			}},
		{"a context that has ended already dials nothing", func(t *testing.T, m *Memory) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := m.DialContext(ctx, "", "")
			require.ErrorIs(t, err, context.Canceled)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { tt.run(t, NewMemory()) })
		})
	}
}

// Random writes of several kinds through small buffers arrive complete and in order, in both
// directions at once.
func TestConnRandomTraffic(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, size := range []int{1, 7, 512, 1000, DefaultBuffer} {
		c, s := pair(t, size)
		var wg sync.WaitGroup
		for i, x := range []struct{ from, to *conn }{{c, s}, {s, c}} {
			want := make([]byte, 200*min(size, 1000))
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for i := range want {
				want[i] = byte(r.Uint32())
			}
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, 2))
				for b := want; len(b) > 0; {
					f := x.from.Write
					if r.IntN(2) == 0 {
						f = x.from.TryWrite
					}
					n, err := f(b[:min(len(b), r.IntN(3*size))])
					if err != nil {
						t.Error(err)
						return
					}
					b = b[n:]
				}
				x.from.CloseWrite()
			})
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, 3))
				var got []byte
				b := make([]byte, 3*size)
				for {
					n, err := x.to.Read(b[:1+r.IntN(len(b)-1)])
					got = append(got, b[:n]...)
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
				if !bytes.Equal(want, got) {
					t.Errorf("buffer of %d bytes: what arrived is not what was sent", size)
				}
			})
		}
		wg.Wait()
	}
}

// Writes of several goroutines through a buffer smaller than each of them are not mixed.
func TestConnConcurrentWrites(t *testing.T) {
	c, s := pair(t, 16)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				c.Write(bytes.Repeat([]byte{byte('a' + i)}, 100))
			}
		})
	}
	go func() {
		wg.Wait()
		c.Close()
	}()
	b := make([]byte, 100)
	for range 8 * 50 {
		_, err := io.ReadFull(s, b)
		require.NoError(t, err)
		require.Equal(t, 100, bytes.Count(b, b[:1]), "one Write is one piece")
	}
}

// All methods at once, for the race detector.
func TestConnAllMethodsAtOnce(t *testing.T) {
	m := NewMemory()
	m.Buffer = 32
	var wg sync.WaitGroup
	var accepted atomic.Int32
	wg.Go(func() {
		for {
			s, err := m.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			wg.Go(func() { io.Copy(s, s); s.Close() })
		}
	})
	for range 20 {
		nc, err := m.Dial()
		require.NoError(t, err)
		c := nc.(*conn)
		var users sync.WaitGroup
		for range 3 {
			users.Go(func() { c.Write(make([]byte, 100)) })
			users.Go(func() { c.TryWrite(make([]byte, 10)) })
			users.Go(func() { c.Read(make([]byte, 50)) })
			users.Go(func() {
				c.SetDeadline(time.Now().Add(time.Millisecond))
				c.SetReadDeadline(time.Now())
				c.SetWriteDeadline(time.Now().Add(time.Microsecond))
			})
			users.Go(func() { _, _ = c.LocalAddr(), c.RemoteAddr() })
		}
		users.Wait()
		c.CloseWrite()
		c.Close()
	}
	m.Close()
	wg.Wait()
	require.LessOrEqual(t, accepted.Load(), int32(20))
}

func BenchmarkConn(b *testing.B) {
	m := NewMemory()
	c, err := m.Dial()
	require.NoError(b, err)
	s, err := m.Accept()
	require.NoError(b, err)
	go io.Copy(io.Discard, s)
	msg := make([]byte, 100)
	b.ReportAllocs()
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		if _, err := c.Write(msg); err != nil && !errors.Is(err, net.ErrClosed) {
			b.Fatal(err)
		}
	}
	c.Close()
}
