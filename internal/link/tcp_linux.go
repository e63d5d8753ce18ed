package link

import (
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// A Lightener makes TCPConns. One goroutine at a time uses it.
type Lightener struct{ local *net.TCPAddr }

// Lighten returns nc as a TCPConn, which takes a third of the memory, if it is a *net.TCPConn. nc
// must not be used afterwards. Otherwise it returns nc.
func (l *Lightener) Lighten(nc net.Conn) net.Conn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nc
	}
	remote, ok := tcp.RemoteAddr().(*net.TCPAddr)
	local, too := tcp.LocalAddr().(*net.TCPAddr)
	raw, err := tcp.SyscallConn()
	if !ok || !too || err != nil {
		return nc
	}
	fd := -1
	err = raw.Control(func(old uintptr) { fd = duplicate(old) })
	if err != nil || fd < 0 {
		return nc // there is no other descriptor, for example
	}
	if last := l.local; last == nil || last.Port != local.Port || last.Zone != local.Zone ||
		string(last.IP) != string(local.IP) {
		l.local = &net.TCPAddr{IP: append(net.IP(nil), local.IP...), Port: local.Port,
			Zone: local.Zone}
	}
	c := &TCPConn{fd: int32(fd), local: l.local}
	c.remote = *remote
	c.remote.IP = append(c.ip[:0], remote.IP...)
	lock.Brief("Close of a net.Conn")
	tcp.Close() // the connection goes on with the other descriptor
	return c
}

// duplicate returns another descriptor of the same file, -1 if it cannot. It is never 0, 1 or 2,
// even if the program has closed its standard output: package os ends the program if a write to 1
// or 2 fails because the other side has closed.
func duplicate(fd uintptr) int {
	n, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 3)
	if e != 0 {
		return -1
	}
	return int(n)
}

// A TCPConn is a TCP connection that the poller of Go does not know until somebody has to wait for
// it. Its methods never use the descriptor after Close.
type TCPConn struct {
	uses   atomic.Uint32 // of fd, by who does not wait; and closed
	fd     int32
	local  *net.TCPAddr // shared
	remote net.TCPAddr
	ip     [net.IPv6len]byte // of remote

	mu   lock.Mutex[waitingLock]
	file *os.File // has fd, for who has to wait; nil: nobody had to. Guarded by mu
}

type waitingLock struct{}

func (waitingLock) Rank() lock.Rank { return lock.Rank{Order: lock.Leaf, Name: "TCPConn.mu"} }

const closed = 1 << 31 // of TCPConn.uses

// acquire keeps the descriptor open until release, and says whether it is open.
func (c *TCPConn) acquire() bool {
	for {
		n := c.uses.Load()
		if n&closed != 0 {
			return false
		}
		if c.uses.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *TCPConn) release() {
	if c.uses.Add(^uint32(0)) == closed {
		c.closeFD()
	}
}

// Close closes the connection. Who waits for it returns.
func (c *TCPConn) Close() error {
	switch c.uses.Or(closed) {
	case 0:
		return c.closeFD()
	default: // the last user closes it, or it was closed before
		return nil
	}
}

// closeFD is called once.
func (c *TCPConn) closeFD() error {
	c.mu.Lock()
	file := c.file
	c.mu.Unlock()
	if file != nil {
		return file.Close()
	}
	return os.NewSyscallError("close", syscall.Close(int(c.fd)))
}

// waiting returns what waits for the connection.
func (c *TCPConn) waiting() (*os.File, error) {
	if !c.acquire() {
		return nil, net.ErrClosed
	}
	defer c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		c.file = os.NewFile(uintptr(c.fd), "tcp")
	}
	return c.file, nil
}

// Read reads, and waits for something to read.
func (c *TCPConn) Read(b []byte) (int, error) {
	f, err := c.waiting()
	if err != nil {
		return 0, err
	}
	return f.Read(b)
}

// Write writes all of b, and waits until that is done.
func (c *TCPConn) Write(b []byte) (int, error) {
	f, err := c.waiting()
	if err != nil {
		return 0, err
	}
	return f.Write(b)
}

// CloseWrite tells the client that nothing more comes.
func (c *TCPConn) CloseWrite() error {
	if !c.acquire() {
		return net.ErrClosed
	}
	defer c.release()
	return os.NewSyscallError("shutdown", syscall.Shutdown(int(c.fd), syscall.SHUT_WR))
}

// LocalAddr returns the address that the client has connected to. It must not be modified.
func (c *TCPConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the client. It must not be modified.
func (c *TCPConn) RemoteAddr() net.Addr { return &c.remote }

// SetDeadline is that of net.Conn.
func (c *TCPConn) SetDeadline(t time.Time) error {
	return c.wait(func(f *os.File) error { return f.SetDeadline(t) })
}

// SetReadDeadline is that of net.Conn.
func (c *TCPConn) SetReadDeadline(t time.Time) error {
	return c.wait(func(f *os.File) error { return f.SetReadDeadline(t) })
}

// SetWriteDeadline is that of net.Conn.
func (c *TCPConn) SetWriteDeadline(t time.Time) error {
	return c.wait(func(f *os.File) error { return f.SetWriteDeadline(t) })
}

func (c *TCPConn) wait(do func(f *os.File) error) error {
	f, err := c.waiting()
	if err != nil {
		return err
	}
	return do(f)
}

// Probe has the system find out whether the machine of the client is still there, as package net
// does for a connection that it makes.
func (c *TCPConn) Probe() error {
	if !c.acquire() {
		return net.ErrClosed
	}
	defer c.release()
	for _, x := range [...]struct{ level, option, value int }{
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 15}, // seconds
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 15},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 9},
		{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
	} {
		if err := syscall.SetsockoptInt(int(c.fd), x.level, x.option, x.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// light marks the connection as one that a Socket reads without a buffer.
func (c *TCPConn) light() {}

// SyscallConn returns what gives the descriptor.
func (c *TCPConn) SyscallConn() (syscall.RawConn, error) { return (*rawTCP)(c), nil }

// A rawTCP is the syscall.RawConn of a TCPConn.
type rawTCP TCPConn

// Control is that of syscall.RawConn.
func (r *rawTCP) Control(f func(fd uintptr)) error {
	c := (*TCPConn)(r)
	if !c.acquire() {
		return net.ErrClosed
	}
	defer c.release()
	f(uintptr(c.fd))
	return nil
}

// Read is that of syscall.RawConn.
func (r *rawTCP) Read(f func(fd uintptr) (done bool)) error {
	return r.await(f, syscall.RawConn.Read)
}

// Write is that of syscall.RawConn.
func (r *rawTCP) Write(f func(fd uintptr) (done bool)) error {
	return r.await(f, syscall.RawConn.Write)
}

// await calls f, and waits with wait if f asks for that.
func (r *rawTCP) await(
	f func(fd uintptr) bool, wait func(syscall.RawConn, func(uintptr) bool) error,
) error {
	c := (*TCPConn)(r)
	if !c.acquire() {
		return net.ErrClosed
	}
	done := f(uintptr(c.fd))
	c.release()
	if done {
		return nil
	}
	file, err := c.waiting()
	if err != nil {
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return wait(raw, f)
}
