package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// lightPair returns a TCPConn, what its client has, and the net.TCPConn that it was.
func lightPair(t *testing.T, network, address string) (*TCPConn, *net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if network == "tcp6" && err != nil {
		t.Skip("this machine has no IPv6: ", err)
	}
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial(network, l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	was, err := l.Accept()
	require.NoError(t, err)
	c, ok := new(Lightener).Lighten(was).(*TCPConn)
	require.True(t, ok, "a TCP connection becomes a TCPConn")
	t.Cleanup(func() { c.Close() })
	return c, client.(*net.TCPConn), was.(*net.TCPConn)
}

func option(t *testing.T, x syscall.Conn, level, name int) (n int) {
	t.Helper()
	raw, err := x.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		n, err = syscall.GetsockoptInt(int(fd), level, name)
	}))
	require.NoError(t, err)
	return n
}

func TestATCPConnHasTheAddressesOfItsConnection(t *testing.T) {
	for _, at := range [][2]string{
		{"tcp4", "127.0.0.1:0"}, {"tcp", ":0"}, {"tcp6", "[::1]:0"},
	} {
		c, client, was := lightPair(t, at[0], at[1])
		require.Equal(t, was.RemoteAddr(), c.RemoteAddr(), at)
		require.Equal(t, was.LocalAddr(), c.LocalAddr(), at)
		require.Equal(t, client.LocalAddr().String(), c.RemoteAddr().String(), at)
		require.NoError(t, c.Close())
		require.Equal(t, client.LocalAddr().String(), c.RemoteAddr().String(), "after Close")
	}
}

func TestATCPConnKeepsTheOptionsOfItsConnection(t *testing.T) {
	c, _, was := lightPair(t, "tcp", "127.0.0.1:0")
	require.ErrorIs(t, was.SetNoDelay(true), net.ErrClosed, "nobody else has the connection")
	require.NotZero(t, option(t, c, syscall.IPPROTO_TCP, syscall.TCP_NODELAY))
	require.NotZero(t, option(t, c, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE))
	require.Equal(t, 15, option(t, c, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE))
}

func TestATCPConnCanBeProbed(t *testing.T) {
	c, client, _ := lightPair(t, "tcp", "127.0.0.1:0")
	require.NoError(t, c.Probe())
	require.NoError(t, client.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true}))
	for _, name := range []int{
		syscall.TCP_KEEPIDLE, syscall.TCP_KEEPINTVL, syscall.TCP_KEEPCNT,
	} {
		require.Equal(t, option(t, client, syscall.IPPROTO_TCP, name),
			option(t, c, syscall.IPPROTO_TCP, name))
	}
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.Probe(), net.ErrClosed)
}

func TestATCPConnThatNobodyWaitsForHasNoFile(t *testing.T) {
	c, client, _ := lightPair(t, "tcp", "127.0.0.1:0")
	var s Socket
	s.Init(c)
	require.NotNil(t, s.Raw)
	require.False(t, s.Waits())
	x := NewBuffer(100)
	x.B = append(x.B, "hello"...)
	require.NoError(t, s.TryWrite(x, 1<<10))
	require.NoError(t, s.WriteBy([]byte(" you"), time.Now().Add(time.Second)))
	got := make([]byte, 9)
	_, err := io.ReadFull(client, got)
	require.NoError(t, err)
	require.Equal(t, "hello you", string(got))
	require.True(t, s.EndWriting())
	_, err = client.Read(got)
	require.Equal(t, io.EOF, err)
	require.Nil(t, c.file)
}

func TestATCPConnWaits(t *testing.T) {
	c, client, _ := lightPair(t, "tcp", "127.0.0.1:0")
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetReadDeadline(time.Time{}))

	// more than the socket takes at once
	b := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	var s Socket
	s.Init(c)
	wrote := make(chan error, 1)
	go func() { wrote <- s.WriteBy(b, time.Now().Add(time.Minute)) }()
	got, err := io.ReadAll(io.LimitReader(client, int64(len(b))))
	require.NoError(t, err)
	require.NoError(t, <-wrote)
	require.True(t, bytes.Equal(b, got))

	require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Millisecond)))
	_, err = c.Write(b)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetDeadline(time.Time{}))
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	read := make(chan string, 1)
	go func() {
		b := make([]byte, 8)
		n := -1
		raw.Read(func(fd uintptr) bool {
			n, _ = syscall.Read(int(fd), b)
			return n >= 0
		})
		read <- string(b[:max(n, 0)])
	}()
	_, err = client.Write([]byte("x"))
	require.NoError(t, err)
	require.Equal(t, "x", <-read)
}

// Whoever waits returns when the connection is closed, and whoever comes later is told.
func TestCloseOfATCPConnEndsWhoWaits(t *testing.T) {
	b := make([]byte, 16<<20)
	for _, wait := range []func(c *TCPConn) error{
		func(c *TCPConn) error { _, err := c.Read(make([]byte, 1)); return err },
		func(c *TCPConn) error { _, err := c.Write(b); return err },
		func(c *TCPConn) error {
			raw, _ := c.SyscallConn()
			return raw.Read(func(uintptr) bool { return false })
		},
	} {
		c, _, _ := lightPair(t, "tcp", "127.0.0.1:0")
		done := make(chan error, 1)
		go func() { done <- wait(c) }()
		for waits := false; !waits; runtime.Gosched() {
			c.mu.Lock()
			waits = c.file != nil
			c.mu.Unlock()
		}
		require.NoError(t, c.Close())
		require.Error(t, <-done)
		require.ErrorIs(t, wait(c), net.ErrClosed)
		require.NoError(t, c.Close(), "Close may come again")
	}
}

// The descriptor of a connection that was closed is soon that of another file. Nobody who still has
// the connection may reach it.
func TestNobodyUsesTheDescriptorOfAClosedTCPConn(t *testing.T) {
	for round := range 300 {
		c, client, _ := lightPair(t, "tcp", "127.0.0.1:0")
		raw, _ := c.SyscallConn()
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for {
					mine := false
					err := raw.Control(func(fd uintptr) {
						a, err := syscall.Getpeername(int(fd))
						in, ok := a.(*syscall.SockaddrInet4)
						mine = err == nil && ok && in.Port == c.remote.Port ||
							errors.Is(err, syscall.ENOTCONN) // the client has gone
					})
					if err != nil {
						return
					}
					if !mine {
						t.Error("another file")
						return
					}
				}
			})
		}
		if round%2 == 0 {
			all.Go(func() { c.Read(make([]byte, 1)) })
		}
		c.Close()
		var others []*os.File
		for range 4 { // they get descriptors that are free now
			r, w, err := os.Pipe()
			require.NoError(t, err)
			others = append(others, r, w)
		}
		all.Wait()
		for _, f := range others {
			f.Close()
		}
		client.Close()
	}
}

func TestATCPConnLeavesNoDescriptor(t *testing.T) {
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(all)
	}
	before := 0
	for i := range 20 {
		if i == 1 { // the poller has its own by now
			before = open()
		}
		c, client, _ := lightPair(t, "tcp", "127.0.0.1:0")
		if i%2 == 0 {
			require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
		}
		require.NoError(t, c.Close())
		require.NoError(t, client.Close())
	}
	require.Equal(t, before, open())
}

// Package os ends the program when a write to descriptor 1 or 2 fails because the other side has
// closed. A program may have closed these.
func TestATCPConnIsNeverStandardOutput(t *testing.T) {
	c, _, _ := lightPair(t, "tcp", "127.0.0.1:0")
	saved, err := syscall.Dup(0)
	require.NoError(t, err)
	require.NoError(t, syscall.Close(0))
	fd := duplicate(uintptr(c.fd))
	require.NoError(t, syscall.Dup3(saved, 0, 0))
	require.NoError(t, syscall.Close(saved))
	require.NoError(t, syscall.Close(fd))
	require.Greater(t, fd, 2)
}
