//go:build unix

package websocket

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// overTCP returns a conn over TCP, and the socket of its client.
func overTCP(t *testing.T, early []byte) (*conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { peer.Close() })
	nc, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	return newConn(nc, New(Options{}).o, early), peer
}

// AwaitRead waits for bytes, takes none, and leaves the stream as it is.
func TestAwaitReadWaitsAndTakesNothing(t *testing.T) {
	c, peer := overTCP(t, nil)
	waited := make(chan error, 1)
	go func() { waited <- c.AwaitRead() }()
	_, err := peer.Write(frame(0x82, []byte("hello")))
	require.NoError(t, err)
	require.NoError(t, <-waited)
	require.NoError(t, c.AwaitRead(), "it is still there")
	b := make([]byte, 64)
	n, err := c.Read(b)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b[:n]))

	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
	require.ErrorIs(t, c.AwaitRead(), os.ErrDeadlineExceeded)
	require.NoError(t, c.SetReadDeadline(time.Time{}))
	require.NoError(t, peer.Close())
	require.NoError(t, c.AwaitRead(), "Read tells of the end")
	_, err = c.Read(b)
	require.Error(t, err)
	require.NoError(t, c.AwaitRead(), "and tells it again")
}

func TestAwaitReadDoesNotWaitForWhatCameWithTheRequest(t *testing.T) {
	c, _ := overTCP(t, frame(0x82, []byte("early")))
	require.NoError(t, c.AwaitRead())
	b := make([]byte, 64)
	n, err := c.Read(b)
	require.NoError(t, err)
	require.Equal(t, "early", string(b[:n]))
}

func TestCloseEndsAwaitRead(t *testing.T) {
	c, peer := overTCP(t, nil)
	waited := make(chan error, 1)
	go func() { waited <- c.AwaitRead() }()
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	require.NoError(t, peer.Close())
	<-closed
	<-waited
	require.ErrorIs(t, c.AwaitRead(), net.ErrClosed)
}

// A client that sends nothing but control frames leaves its reader without a buffer.
func TestReadAfterAwaitReadDoesNotWait(t *testing.T) {
	c, peer := overTCP(t, nil)
	b := make([]byte, 64)
	for _, sent := range [][]byte{frame(0x8A, nil), frame(0x89, []byte("ping")), {0x82}} {
		_, err := peer.Write(sent)
		require.NoError(t, err)
		require.NoError(t, c.AwaitRead())
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := c.Read(b)
		require.NoError(t, err)
		require.Zero(t, n)
	}
	pong := make([]byte, 6)
	_, err := io.ReadFull(peer, pong)
	require.NoError(t, err)
	require.Equal(t, "\x8A\x04ping", string(pong))
	_, err = peer.Write(frame(0x82, []byte("hello"))[1:])
	require.NoError(t, err)
	n, err := c.Read(b)
	require.NoError(t, err, "a Read without AwaitRead waits for payload")
	require.Equal(t, "hello", string(b[:n]))
}
