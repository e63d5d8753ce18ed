// Package link is the bytes of one Network Connection: how they are read and written, the buffers
// that they lie in, and what of the output is held until it may leave.
package link

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// A Socket is a net.Conn with what it can do besides.
type Socket struct {
	conn
	Raw syscall.RawConn // nil: no readiness, reads go through a buffer of the reader's

	write   func(fd uintptr) bool // for RawConn.Write, or instead of it; nil: a write may wait
	writing *Buffer               // by TryWrite
}

// A waiter is a connection that waits for something to read without a buffer of its reader's.
type waiter interface{ AwaitRead() error }

// A tryWriter is a connection without a file descriptor that can take bytes without waiting.
type tryWriter interface {
	TryWrite(b []byte) (n int, err error)
}

// Init makes s the socket of nc. s must not move afterwards.
func (s *Socket) Init(nc net.Conn) {
	s.conn = conn{nc}
	switch x := nc.(type) {
	case *net.TCPConn, *net.UnixConn, interface{ light() }:
		if raw, err := x.(syscall.Conn).SyscallConn(); RawIO && err == nil {
			s.Raw, s.write = raw, s.writeSome
		}
	case tryWriter:
		s.write = func(uintptr) bool {
			s.writePieces(x, 0)
			return true
		}
	}
}

// NetConn returns the net.Conn that s was made of, whose methods may be called with no lock held.
func (s *Socket) NetConn() net.Conn { return s.conn.Conn }

// CanAwait says whether there is Await.
func (s *Socket) CanAwait() bool {
	switch s.conn.Conn.(type) {
	case waiter, *tls.Conn:
		return true
	}
	return false
}

// Await waits until there is something to read, so that the reader need not have a buffer
// meanwhile. Then Read does not wait. Or it reads the first byte of what has come, into the byte
// that first has room for: one byte of a TLS record is decrypted with all others.
func (s *Socket) Await(first []byte) (n int, err error) {
	if x, ok := s.conn.Conn.(waiter); ok {
		lock.NoneHeld("a wait")
		return 0, x.AwaitRead()
	}
	if n, err = s.conn.Read(first[:1]); n > 0 {
		err = nil // Read will return it
	}
	return n, err
}

// Waits says whether a write always may wait, so that there is no TryWrite.
func (s *Socket) Waits() bool { return s.write == nil }

// Peek returns how much is there to read, 0 or 1, and takes nothing. The error is syscall.EAGAIN if
// nothing is there. The socket has a Raw.
func (s *Socket) Peek() (n int, err error) {
	lock.Brief("a call of a net.Conn")
	if cerr := s.Raw.Control(func(fd uintptr) { n, err = PeekFD(fd) }); cerr != nil {
		return n, cerr
	}
	return n, err
}

// A Reader reads from sockets without waiting, one after the other.
type Reader struct {
	into *Buffer
	n    int
	err  error
	read func(fd uintptr) // made once
}

// Read appends to x what there is to read, as far as x has room, and returns how much that was. The
// error is syscall.EAGAIN if there is nothing, io.EOF at the end.
func (r *Reader) Read(raw syscall.RawConn, x *Buffer) (n int, err error) {
	lock.Brief("Read of a net.Conn")
	if r.read == nil {
		r.read = r.readFD
	}
	r.into = x
	err = raw.Control(r.read)
	if r.into = nil; err != nil {
		return 0, err
	}
	return r.n, r.err
}

func (r *Reader) readFD(fd uintptr) {
	defer lock.Inside[descriptorLock]()()
	x := r.into
	for {
		r.n, r.err = ReadFD(fd, x.B[len(x.B):cap(x.B)])
		switch {
		case r.err == syscall.EINTR:
			continue
		case r.err != nil:
			r.n = 0
		case r.n <= 0:
			r.n, r.err = 0, io.EOF
		default:
			x.B = x.B[:len(x.B)+r.n]
		}
		return
	}
}

// ErrWrite says that nothing more can be written.
var ErrWrite = errors.New("a write to the client failed or took longer than WriteTimeout")

// TryWrite writes what the socket takes of x without waiting, in pieces of the given size. One
// goroutine at a time calls it.
func (s *Socket) TryWrite(x *Buffer, piece int) error {
	lock.Brief("Write of a net.Conn")
	x.piece = int32(min(piece, largestPiece))
	s.writing = x
	var err error
	if s.Raw == nil {
		s.write(0)
	} else {
		err = s.Raw.Write(s.write)
	}
	if s.writing = nil; err != nil {
		return err
	}
	if x.failed {
		return ErrWrite
	}
	return nil
}

// largestPiece is how much is written at a time: what the socket has taken of a large buffer must
// not count as backlog until all of the buffer is written, because meanwhile others drop QoS 0
// messages. Each system call has its cost, so a piece is not small.
const largestPiece = 256 << 10

type descriptorLock struct{}

func (descriptorLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "a descriptor"} }

// InsideDescriptor notes that the lock of a descriptor is held, as in the functions that RawConn
// calls, until the function that it returns is called.
func InsideDescriptor() func() { return lock.Inside[descriptorLock]() }

// writeSome is the function for RawConn.Write: it never asks to wait.
func (s *Socket) writeSome(fd uintptr) bool {
	defer lock.Inside[descriptorLock]()()
	s.writePieces(nil, fd)
	return true
}

// writePieces writes what the connection takes of the buffer that is being written, without
// waiting. It goes to w, or, if that is nil, to the descriptor fd of Raw.
func (s *Socket) writePieces(w tryWriter, fd uintptr) {
	x := s.writing
	for b := x.B; len(b) > 0; {
		p := b[:min(len(b), int(x.piece))]
		n, err := writePiece(w, fd, p)
		if b = b[max(n, 0):]; len(b) == 0 {
			x.whole = true
			return
		}
		if n > 0 {
			x.n.Add(int64(n))
		}
		switch {
		case err == syscall.EINTR, err == nil && n == len(p):
		case err == nil, err == syscall.EAGAIN:
			return // a short write: the socket is full
		default:
			x.failed = true
			return
		}
	}
}

func writePiece(w tryWriter, fd uintptr, b []byte) (int, error) {
	if w != nil {
		return w.TryWrite(b)
	}
	return WriteFD(fd, b)
}

// WriteBy writes b, and waits until the deadline if the socket does not take it at once.
func (s *Socket) WriteBy(b []byte, deadline time.Time) error {
	if s.Raw != nil {
		lock.Brief("Write of a net.Conn")
		err := s.Raw.Write(func(fd uintptr) bool {
			defer InsideDescriptor()()
			if n, err := WriteFD(fd, b); err == nil {
				b = b[n:]
			}
			return true // Write finds out why it took not all
		})
		if err != nil || len(b) == 0 {
			return err
		}
	}
	s.SetWriteDeadline(deadline)
	_, err := s.Write(b)
	s.SetWriteDeadline(time.Time{})
	return err
}

// lookTime is how much longer the client has if the deadline was noticed late.
const lookTime = 100 * time.Millisecond

// WriteAll writes what is left of x and waits as long as the client takes something within timeout;
// 0: for ever. It calls wrote for each piece that was taken.
func (s *Socket) WriteAll(x *Buffer, timeout time.Duration, wrote func(n int)) error {
	const piece = 64 << 10 // so that progress is seen
	// the deadline was noticed late, as by a process that was stopped: the client has a moment more
	var again bool
	for b := x.B[x.n.Load():]; len(b) > 0; {
		t := timeout
		if again {
			t = lookTime
		}
		deadline := time.Now().Add(t)
		if t > 0 {
			s.SetWriteDeadline(deadline)
		}
		n, err := s.Write(b[:min(len(b), piece)])
		b = b[n:]
		if n > 0 {
			x.n.Add(int64(n))
			wrote(n)
			if again = false; errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !again && time.Now().After(deadline) {
			again = true
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// EndWriting tells the client that nothing more comes, and says whether it was told.
func (s *Socket) EndWriting() bool {
	x, ok := s.conn.Conn.(interface{ CloseWrite() error })
	if !ok {
		return false
	}
	lock.NoneHeld("CloseWrite of a net.Conn")
	return x.CloseWrite() == nil
}

// Drain reads what the client still sends, at most 1 MiB, until it closes or the deadline. Nothing
// depends on it.
func (s *Socket) Drain(deadline time.Time) {
	for range 2 { // again, if a deadline that rouses the reader has come in between
		s.SetReadDeadline(deadline)
		_, err := io.CopyN(io.Discard, s, 1<<20)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline) {
			return
		}
	}
}
