//go:build linux

package loop

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience bounds each wait of a test. Nothing waits so long while all is well.
const patience = 30 * time.Second

// await receives from c.
func await[T any](t *testing.T, c <-chan T, what string) (x T) {
	t.Helper()
	timer := time.AfterFunc(patience, func() { panic(what + " does not come") })
	defer timer.Stop()
	return <-c
}

// A caller is a User that calls a function.
type caller func(w *Worker, why Event) Event

func (f caller) Ready(w *Worker, why Event) Event { return f(w, why) }

// pair returns two ends of a TCP connection.
func pair(t *testing.T, network string) (here, there net.Conn) {
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, addr)
	require.NoError(t, err)
	defer l.Close()
	there, err = net.Dial(network, l.Addr().String())
	require.NoError(t, err)
	here, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

func rawOf(t *testing.T, nc net.Conn) syscall.RawConn {
	raw, err := nc.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	return raw
}

// newLoops returns n loops, which end with the test, after their sockets.
func newLoops(t *testing.T, n int) *Loops {
	ls, err := New(n)
	require.NoError(t, err)
	t.Cleanup(ls.Close)
	return ls
}

// A reader counts what it reads, a piece at a time.
type reader struct {
	Seat
	nc     net.Conn
	raw    syscall.RawConn
	piece  int
	sum    []byte
	ended  chan []byte // what was read until the end
	inside sync.Mutex  // locked within Ready: only one goroutine at a time calls it
}

func (r *reader) Ready(_ *Worker, why Event) (again Event) {
	if !r.inside.TryLock() {
		panic("Ready is called by two goroutines at a time")
	}
	defer r.inside.Unlock()
	b := make([]byte, r.piece)
	var n int
	var err error
	if cerr := r.raw.Control(func(fd uintptr) { n, err = syscall.Read(int(fd), b) }); cerr != nil {
		err = cerr
	}
	switch {
	case err == syscall.EAGAIN, err == syscall.EINTR:
		return 0
	case err != nil || n == 0:
		r.nc.Close()
		r.Leave()
		r.ended <- r.sum
		return 0
	}
	r.sum = append(r.sum, b[:n]...)
	if n == len(b) || why&Drain != 0 {
		return Readable | why&Drain
	}
	return 0
}

// Whatever is sent is read, in whatever pieces and at whatever moments, and so is the end, also
// that of one direction.
func TestWhatIsSentIsReadToTheEnd(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	ls := newLoops(t, 2)
	var all sync.WaitGroup
	for i := range 100 {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		here, there := pair(t, "tcp")
		r := &reader{nc: here, raw: rawOf(t, here), piece: 1 + rnd.IntN(300),
			ended: make(chan []byte, 1)}
		sent := make([]byte, rnd.IntN(20_000))
		for k := range sent {
			sent[k] = byte(rnd.Uint32())
		}
		early := rnd.IntN(2) == 0 // something is there before the loop knows of it
		if early {
			there.Write([]byte("before"))
		}
		require.NoError(t, ls.Add(&r.Seat, r.raw, r, time.Time{}))
		all.Go(func() {
			for rest := sent; len(rest) > 0; {
				n := min(1+rnd.IntN(500), len(rest))
				if _, err := there.Write(rest[:n]); err != nil {
					t.Error(err)
				}
				rest = rest[n:]
				if rnd.IntN(4) == 0 {
					runtime.Gosched()
				}
			}
			if i%2 == 0 {
				there.Close()
			} else {
				there.(*net.TCPConn).CloseWrite()
			}
			got := await(t, r.ended, "the end")
			if early {
				got = bytes.TrimPrefix(got, []byte("before"))
			}
			if !bytes.Equal(sent, got) {
				t.Errorf("%d bytes were sent, %d others were read", len(sent), len(got))
			}
		})
	}
	all.Wait()
}

// An event that was for a socket which has left reaches nobody, whoever has its slot and its
// descriptor now.
func TestAnEventReachesNobodyElse(t *testing.T) {
	ls := newLoops(t, 1)
	l := ls.loops[0]
	called := make(chan Event, 10)
	here, _ := pair(t, "tcp")
	var s Seat
	require.NoError(t, ls.Add(&s, rawOf(t, here), caller(func(_ *Worker, why Event) Event {
		called <- why
		return 0
	}), time.Time{}))
	old := told{Fd: s.slot, Pad: l.slots[s.slot].gen, Events: syscall.EPOLLIN}
	tell := func(e told) (served []*Seat) { // as the Worker does when epoll tells of e
		x := &loop{all: ls, slots: l.slots, got: 1}
		x.events[0] = e
		x.collect()
		return x.batch
	}
	require.Equal(t, []*Seat{&s}, tell(old), "it is meant")
	s.state.Store(in)
	s.Leave()
	require.Empty(t, tell(old), "it has left")
	var next Seat
	there, other := pair(t, "tcp")
	require.NoError(t, ls.Add(&next, rawOf(t, there), caller(func(_ *Worker, why Event) Event {
		called <- why
		return 0
	}), time.Time{}))
	require.Equal(t, old.Fd, next.slot, "it has the same slot")
	require.Empty(t, tell(old), "another one has its slot")
	s.Rouse()
	require.Empty(t, called, "who has left is not roused")
	other.Write([]byte("x"))
	require.Equal(t, Readable, await(t, called, "the event of the other one"))
}

// Sockets come and go, and each is told what is sent to it alone.
func TestDescriptorsAreUsedAgain(t *testing.T) {
	ls := newLoops(t, 2)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() { // ends with l
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			raw, _ := nc.(syscall.Conn).SyscallConn()
			r := &reader{nc: nc, raw: raw, piece: 64, ended: make(chan []byte, 1)}
			go func() { // ends with its client
				sum := <-r.ended
				if len(sum) != 8 || binary.BigEndian.Uint32(sum) != binary.BigEndian.Uint32(sum[4:]) {
					t.Errorf("a socket was told of % x", sum)
				}
			}()
			if err := ls.Add(&r.Seat, raw, r, time.Now().Add(time.Hour)); err != nil {
				t.Error(err)
			}
		}
	}()
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for k := range 200 {
				nc, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				var b [4]byte
				binary.BigEndian.PutUint32(b[:], uint32(i<<16|k))
				nc.Write(b[:])
				nc.Write(b[:])
				nc.(*net.TCPConn).CloseWrite()
				io.ReadAll(nc) // until the other side has closed
				nc.Close()
			}
		})
	}
	clients.Wait()
	for _, l := range ls.loops {
		l.mu.Lock()
		require.Empty(t, l.alarms)
		require.Len(t, l.free, len(l.slots))
		l.mu.Unlock()
	}
}

// One that waits has handed its loop over, and holds up nobody. What comes for it meanwhile it is
// told when it is done.
func TestAHandedOverLoopGoesOn(t *testing.T) {
	ls := newLoops(t, 1)
	const waiting = 50
	entered, goOn := make(chan Event, waiting), make(chan struct{})
	var seats [waiting]Seat
	var first net.Conn
	for i := range seats {
		here, there := pair(t, "tcp")
		if first == nil {
			first = there
		}
		raw := rawOf(t, here)
		require.NoError(t, ls.Add(&seats[i], raw, caller(func(w *Worker, why Event) Event {
			w.HandOver()
			w.HandOver() // once more does nothing
			entered <- why
			<-goOn
			return 0
		}), time.Time{}))
		there.Write([]byte("x"))
		require.Equal(t, Readable, await(t, entered, "the call"))
	}
	first.Write([]byte("y"))
	seats[0].Rouse()
	goOn <- struct{}{} // one of them; it may be any
	close(goOn)
	for got := Event(0); got != Readable|Roused; {
		got |= await(t, entered, "the call for what came meanwhile")
	}
	here, there := pair(t, "tcp")
	ready := make(chan Event, 1)
	var s Seat
	require.NoError(t, ls.Add(&s, rawOf(t, here), caller(func(_ *Worker, why Event) Event {
		ready <- why
		return 0
	}), time.Time{}))
	there.Write([]byte("x"))
	await(t, ready, "an event of another one")
	require.LessOrEqual(t, ls.spares.Load(), int32(maxSpares)+waiting)
}

// A User that ends its goroutine takes the loop from nobody.
func TestALoopOutlivesGoexit(t *testing.T) {
	ls := newLoops(t, 1)
	for range 3 {
		here, there := pair(t, "tcp")
		ended := make(chan bool, 1)
		var s Seat
		require.NoError(t, ls.Add(&s, rawOf(t, here), caller(func(*Worker, Event) Event {
			defer func() { here.Close(); s.Leave(); ended <- true }()
			runtime.Goexit()
			return 0
		}), time.Time{}))
		there.Write([]byte("x"))
		await(t, ended, "the call")
	}
}

// One that always has something to do lets others have their turn.
func TestNobodyStarves(t *testing.T) {
	ls := newLoops(t, 1)
	var busy, other Seat
	here, _ := pair(t, "tcp")
	turns, quit := 0, make(chan struct{})
	require.NoError(t, ls.Add(&busy, rawOf(t, here), caller(func(_ *Worker, why Event) Event {
		turns++
		select {
		case <-quit:
			return 0
		default:
			return Readable
		}
	}), time.Time{}))
	busy.Rouse()
	here, there := pair(t, "tcp")
	called := make(chan Event, 1)
	require.NoError(t, ls.Add(&other, rawOf(t, here), caller(func(_ *Worker, why Event) Event {
		called <- why
		return 0
	}), time.Time{}))
	there.Write([]byte("x"))
	await(t, called, "the turn of the other one")
	close(quit)
}

// An alarm comes at its time or before, once, and not after its socket has left.
func TestAlarms(t *testing.T) {
	ls := newLoops(t, 1)
	called := make(chan int, 10)
	var seats [3]Seat
	for i := range seats {
		here, _ := pair(t, "tcp")
		require.NoError(t, ls.Add(&seats[i], rawOf(t, here), caller(func(_ *Worker, why Event) Event {
			if why != Alarm {
				t.Errorf("called with %b", why)
			}
			called <- i
			return 0
		}), time.Now().Add(time.Hour)))
	}
	l := ls.loops[0]
	seats[1].SetAlarm(time.Now().Add(2 * time.Hour))
	require.Len(t, l.alarms, 3)
	require.Less(t, seats[1].alarm, 90*time.Minute, "the one that was set is earlier")
	seats[2].SetAlarm(time.Time{})
	require.Len(t, l.alarms, 3, "the zero time changes nothing")
	seats[1].SetAlarm(time.Now())
	require.Equal(t, 1, await(t, called, "the alarm"))
	seats[0].SetAlarm(time.Now().Add(-time.Hour))
	require.Equal(t, 0, await(t, called, "the alarm that is over"))
	seats[0].SetAlarm(time.Now().Add(time.Hour))
	seats[0].Leave()
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Equal(t, alarms{&seats[2]}, l.alarms)
	require.Empty(t, called)
}

// A socket that was closed is not taken, and its User is not called.
func TestAClosedSocketIsNotTaken(t *testing.T) {
	ls := newLoops(t, 1)
	here, _ := pair(t, "tcp")
	raw := rawOf(t, here)
	here.Close()
	var s Seat
	require.ErrorIs(t, ls.Add(&s, raw, caller(func(*Worker, Event) Event {
		panic("called")
	}), time.Now()), net.ErrClosed)
	s.Rouse()
	require.Empty(t, ls.loops[0].alarms)
}

// After Close no goroutine is left, nor a descriptor, also none of those that had no loop.
func TestCloseLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		ls, err := New(3)
		require.NoError(t, err)
		var all sync.WaitGroup
		for range 10 {
			here, there := pair(t, "unix")
			s := new(Seat)
			all.Add(1)
			require.NoError(t, ls.Add(s, rawOf(t, here), caller(func(w *Worker, _ Event) Event {
				w.HandOver()
				here.Close()
				s.Leave()
				all.Done()
				return 0
			}), time.Now().Add(time.Hour)))
			there.Write([]byte("x"))
		}
		all.Wait()
		ls.Close()
		here, _ := pair(t, "unix")
		require.ErrorIs(t, ls.Add(new(Seat), rawOf(t, here), caller(nil), time.Time{}), ErrClosed)
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before)
}
