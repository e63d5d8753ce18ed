package link

import (
	"bytes"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A modelPacket is a packet of an Output that is kept the simple way.
type modelPacket struct {
	b      []byte
	ticket uint64
	id     uint16
	kind   HoldKind
	gone   bool
}

// An Output does what a list of packets does.
func TestAnOutputKeepsItsOrder(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var o Output
		var held []modelPacket
		var free, wrote, want []byte // not held; what has left
		ticket, next := uint64(1), byte(1)
		for range 200 {
			switch rnd.IntN(8) {
			case 0, 1, 2: // a packet, held or not
				p := bytes.Repeat([]byte{next}, 1+rnd.IntN(40))
				next = next%250 + 1
				var payload []byte
				if rnd.IntN(8) == 0 {
					payload = bytes.Repeat([]byte{next}, ShareMuch-1+rnd.IntN(3))
					p = append(p, payload...)
				}
				at := o.End()
				x := o.Reserve(len(p))
				x.B = append(x.B, p...)
				x.EndsWith(payload)
				if rnd.IntN(3) == 0 {
					free = append(free, p...)
					break
				}
				m := Mark{Ticket: ticket, ID: uint16(rnd.IntN(5)), Kind: HoldKind(rnd.IntN(4))}
				o.Hold(at, m)
				held = append(held, modelPacket{p, m.Ticket, m.ID, m.Kind, false})
				ticket += uint64(rnd.IntN(2))
			case 3: // tickets are decided
				upto := ticket - min(ticket, uint64(rnd.IntN(4)))
				left := 0
				o.Release(upto, func(*Mark) { left++ })
				for len(held) > 0 && held[0].ticket <= upto {
					if !held[0].gone {
						free = append(free, held[0].b...)
					}
					held, left = held[1:], left-1
				}
				require.Zero(t, left)
			case 4:
				id := uint16(rnd.IntN(5))
				holds := o.HoldsMessage(id)
				got := o.Withdraw(id, func(m *Mark, first byte) bool { return m.Kind == Message })
				found := false
				for i := range held {
					if p := &held[i]; !found && !p.gone && p.id == id && p.kind == Message {
						p.gone, found = true, true
					}
				}
				require.Equal(t, found, got)
				require.Equal(t, found, holds)
			case 5:
				if !o.Held() {
					break
				}
				var rest []modelPacket
				i := 0
				o.Sort(func(m *Mark, first byte) Fate {
					p := held[i]
					i++
					require.Equal(t, p.gone, first == 0)
					switch {
					case p.gone || m.ID == 0:
						return Falls
					case m.ID == 1:
						free = append(free, p.b...)
						return Leaves
					}
					rest = append(rest, p)
					return Stays
				})
				require.Len(t, held, i)
				held = rest
			case 6:
				o.WithdrawMessages(func(id uint16, first byte) {
					require.True(t, slices.ContainsFunc(held, func(p modelPacket) bool {
						return p.kind == Message && !p.gone && p.id == id && p.b[0] == first
					}))
				})
				for i := range held {
					held[i].gone = held[i].gone || held[i].kind == Message
				}
			default:
				if o.Empty() {
					break
				}
				x := o.Take()
				wrote = append(wrote, x.B...)
				o.Wrote(x)
				want, free = append(want, free...), nil
			}
			bytesHeld := 0
			for _, p := range held {
				if !p.gone {
					bytesHeld += len(p.b)
				}
			}
			require.Equal(t, len(free)+bytesHeld+MarkSize*len(held), o.Size(), "seed %d", seed)
			if o.held != nil && o.held.buf != nil { // a payload is a copy only if it is short
				require.Equal(t, bytesHeld-o.held.shared, len(o.held.buf.B), "seed %d", seed)
			}
		}
		require.True(t, bytes.Equal(want, wrote), "seed %d", seed)
	}
}

// A turn may hold a packet for an older ticket than another turn has before it. What keeps its place
// behind both waits for both.
func TestWhatKeepsItsPlaceWaitsForAllBeforeIt(t *testing.T) {
	var o Output
	hold := func(p string, ticket uint64) {
		at := o.End()
		x := o.Reserve(len(p))
		x.B = append(x.B, p...)
		o.Hold(at, Mark{Ticket: ticket, Kind: Message})
	}
	taken := func() string {
		if o.buf == nil {
			return ""
		}
		x := o.Take()
		defer o.Wrote(x)
		return string(x.B)
	}
	hold("A", 6)
	hold("1", 0)
	hold("B", 5)
	hold("2", 0)
	o.Sort(func(m *Mark, _ byte) Fate { // 5 has failed
		switch {
		case m.Ticket > 5:
			return Stays
		case m.Kind == Message:
			return Falls
		}
		return Leaves
	})
	hold("3", 0)
	require.Empty(t, taken(), "1 and 2 wait behind A")
	o.Release(6, func(*Mark) {})
	require.Equal(t, "A123", taken())
}

// tcpPair returns both ends of a connection.
func tcpPair(t *testing.T) (a, b net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	b, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestTryWriteTakesWhatTheSocketTakes(t *testing.T) {
	a, b := tcpPair(t)
	var s Socket
	s.Init(a)
	require.Equal(t, !RawIO, s.Waits())
	if s.Waits() {
		t.Skip("this system has no readiness")
	}
	x := &Buffer{B: bytes.Repeat([]byte("0123456789abcdef"), 1<<20)}
	require.NoError(t, s.TryWrite(x, 64<<10))
	require.False(t, x.Whole(), "16 MiB are more than the kernel keeps")
	taken := x.Taken()
	require.Positive(t, taken)
	got := make(chan int, 1)
	go func() {
		n, all := 0, make([]byte, 1<<20)
		for n < len(x.B) {
			k, err := b.Read(all)
			if err != nil {
				break
			}
			n += k
		}
		got <- n
	}()
	rest := 0
	require.NoError(t, s.WriteAll(x, time.Minute, func(n int) { rest += n }))
	require.Equal(t, len(x.B), taken+rest)
	require.Equal(t, len(x.B), <-got)

	y := &Buffer{B: []byte("short")}
	require.NoError(t, s.TryWrite(y, 64<<10))
	require.True(t, y.Whole())
	require.Equal(t, 5, y.Taken())
}

func TestAClientThatTakesNothingEndsWriteAll(t *testing.T) {
	a, _ := tcpPair(t)
	var s Socket
	s.Init(a)
	x := &Buffer{B: make([]byte, 64<<20)}
	require.Error(t, s.WriteAll(x, 10*time.Millisecond, func(int) {}))
}

// What is left of a message that a client does not take is the same bytes, and the payload is not
// copied, wherever the client stopped.
func TestWhatIsLeftIsShared(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), ShareMuch/8)
	for _, before := range []int{0, 10, 40_000} {
		for _, taken := range []int{0, 5, 10, 15, 40_000, 40_020, 60_000} {
			var o Output
			x := o.Reserve(before + 5 + len(payload))
			x.B = append(x.B, bytes.Repeat([]byte("x"), before)...)
			x.B = append(append(x.B, "head:"...), payload...)
			x.EndsWith(payload)
			all := bytes.Clone(x.B)
			x = o.Take()
			taken = min(taken, len(all)-1)
			x.n.Store(int64(taken))
			x = o.Share(x, ShareSome)
			require.Equal(t, len(all)-taken, o.Backlog())
			got := bytes.Clone(x.B[x.n.Load():])
			if y := o.Follow(x); y != nil {
				x = y
				got = append(got, y.B[y.n.Load():]...)
			}
			require.Equal(t, all[taken:], got, "%d before, %d taken", before, taken)
			require.Same(t, &payload[0], &x.B[0])
			o.Wrote(x)
			require.Equal(t, "0123456789abcdef", string(payload[:16]))
			require.Zero(t, o.Size())
		}
	}
}

// What was taken back or is held does not end with the payload that was there.
func TestNothingElseIsShared(t *testing.T) {
	a, b := bytes.Repeat([]byte("a"), ShareMuch), bytes.Repeat([]byte("b"), ShareMuch)
	for name, replace := range map[string]func(o *Output){
		"taken back": func(o *Output) { o.Cut(1) },
		"withdrawn": func(o *Output) {
			o.Hold(1, Mark{Ticket: 1, ID: 1, Kind: Message})
			o.Reserve(len(b)).B = append(o.Reserve(len(b)).B, b...)
			o.Hold(1, Mark{Ticket: 1, ID: 2, Kind: Message})
			o.Withdraw(1, func(*Mark, byte) bool { return true })
			o.Release(1, func(*Mark) {})
		},
	} {
		var o Output
		x := o.Reserve(3 * ShareMuch)
		x.B = append(append(x.B, 'x'), a...)
		x.EndsWith(a)
		replace(&o)
		if name == "taken back" {
			o.Reserve(len(b)).B = append(o.Reserve(len(b)).B, b...)
		}
		y := o.Share(o.Take(), ShareSome)
		require.Equal(t, append([]byte("x"), b...), y.B, name)
	}
}

// A long payload that is held is not copied, and the memory of the copy is given back.
func TestAHeldPayloadIsNotCopied(t *testing.T) {
	var o Output
	payload := bytes.Repeat([]byte("p"), 1<<20)
	x := o.Reserve(1 << 20)
	x.B = append(append(x.B, "head:"...), payload...)
	x.EndsWith(payload)
	require.GreaterOrEqual(t, o.Memory(), 1<<20)
	o.Hold(0, Mark{Ticket: 1, ID: 1, Kind: Message})
	require.Greater(t, o.Size(), 1<<20)
	require.LessOrEqual(t, o.Memory(), minBuffer+2*MarkSize)
	o.Release(1, func(*Mark) {})
	x = o.Share(o.Take(), ShareSome)
	require.Equal(t, "head:", string(x.B))
	require.Same(t, &payload[0], &x.next.B[0])
	require.LessOrEqual(t, o.Memory(), 1<<20+minBuffer)
	o.Wrote(o.Follow(x))
	require.Zero(t, o.Memory())
}
