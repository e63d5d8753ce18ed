package quic

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/stretchr/testify/require"
)

// dialFrom connects from a loopback address. Those that are not 127.0.0.1 exist on Linux without
// more.
func dialFrom(t *testing.T, l *Listener, ip string) (*quic.Conn, error) {
	t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		t.Skipf("there is no second loopback address here: %v", err)
	}
	t.Cleanup(func() { socket.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	qc, err := quic.Dial(ctx, socket, l.Addr(),
		&tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPN}}, nil)
	if err == nil {
		t.Cleanup(func() { qc.CloseWithError(0, "") })
	}
	return qc, err
}

// waitFor waits until n connections are pending.
func waitFor(t *testing.T, l *Listener, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return l.pending.Len() == n
	}, 10*time.Second, time.Millisecond)
}

// ended returns why a connection has ended, and fails if it does not end.
func ended(t *testing.T, qc *quic.Conn) error {
	t.Helper()
	select {
	case <-qc.Context().Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the connection is not closed")
	}
	return context.Cause(qc.Context())
}

// served opens a stream and wants it to be accepted.
func served(t *testing.T, l *Listener, qc *quic.Conn) net.Conn {
	t.Helper()
	s, err := qc.OpenStreamSync(t.Context())
	require.NoError(t, err)
	_, err = s.Write([]byte("x"))
	require.NoError(t, err)
	c, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestConnectionsWithoutAStreamDoNotShutThePort(t *testing.T) {
	l := listen(t, Options{Backlog: 6, StreamTimeout: time.Hour})
	var silent []*quic.Conn
	for i := range 6 {
		qc, err := dialFrom(t, l, "127.0.0.1")
		require.NoError(t, err)
		silent = append(silent, qc)
		waitFor(t, l, min(i+1, 3))
		if i >= 3 {
			require.ErrorContains(t, ended(t, silent[i-3]), "too many connections",
				"the oldest goes first")
		}
	}
	other, err := dialFrom(t, l, "127.0.0.2")
	require.NoError(t, err)
	require.Equal(t, "127.0.0.2", served(t, l, other).RemoteAddr().(*net.UDPAddr).IP.String())
	require.Equal(t, "127.0.0.1", served(t, l, silent[5]).RemoteAddr().(*net.UDPAddr).IP.String())
	waitFor(t, l, 2)
}

func TestAConnectionThatWaitsForAcceptMakesNoRoom(t *testing.T) {
	l := listen(t, Options{Backlog: 2, StreamTimeout: time.Hour})
	first, err := dial(t, l, ALPN)
	require.NoError(t, err)
	s, err := first.OpenStreamSync(t.Context())
	require.NoError(t, err)
	_, err = s.Write([]byte("x"))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		for _, goroutine := range strings.Split(stacks(), "\n\n") {
			if strings.Contains(goroutine, "(*Listener).open(") &&
				!strings.Contains(goroutine, "AcceptStream") {
				return true
			}
		}
		return false
	}, 10*time.Second, time.Millisecond, "the stream has come")
	second, err := dial(t, l, ALPN)
	if err == nil {
		err = ended(t, second)
	}
	require.ErrorContains(t, err, "too many connections")
	_, err = l.Accept()
	require.NoError(t, err)
}

func TestAdmitIsAskedBeforeTheHandshake(t *testing.T) {
	var refuse atomic.Bool
	l := listen(t, Options{Admit: func(from net.Addr) error {
		if refuse.Load() && from.(*net.UDPAddr).IP.IsLoopback() {
			return errors.New("banned")
		}
		return nil
	}})
	_, err := dial(t, l, ALPN)
	require.NoError(t, err)
	waitFor(t, l, 1)
	require.Zero(t, l.handshakes.Len())
	refuse.Store(true)
	_, err = dial(t, l, ALPN)
	var refused *quic.TransportError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, quic.ConnectionRefused, refused.ErrorCode)
	require.Zero(t, l.handshakes.Len())
}

// A client that begins handshakes and does not go on with them has its share of the handshakes,
// too.
func TestHandshakesThatDoNotEndDoNotShutThePort(t *testing.T) {
	l := listen(t, Options{MaxHandshakes: 8})
	pretend := func(ip string) error {
		_, err := l.admit(t.Context(),
			&quic.ClientInfo{RemoteAddr: &net.UDPAddr{IP: net.ParseIP(ip), Port: 1}})
		return err
	}
	require.False(t, l.doubtful(nil))
	for i := range 8 {
		err := pretend("192.0.2.1")
		require.Equal(t, i >= 4, err != nil, "handshake %d", i)
	}
	require.True(t, l.doubtful(nil), "addresses have to be shown")
	qc, err := dial(t, l, ALPN)
	require.NoError(t, err)
	served(t, l, qc)
	require.Equal(t, 4, l.handshakes.Len(),
		"a handshake that has come to its end gives its place back")
}

func TestAHandshakeThatFailsGivesItsPlaceBack(t *testing.T) {
	l := listen(t, Options{})
	_, err := dial(t, l, "h3")
	require.Error(t, err)
	require.Eventually(t, func() bool {
		return l.handshakes.Len() == 0
	}, 10*time.Second, time.Millisecond)
}

// A client cannot make the Listener keep more of what is not read than the window.
func TestTheReceiveWindowBoundsWhatIsNotRead(t *testing.T) {
	l := listen(t, Options{ReceiveWindow: 8 << 10})
	_, _, s := pair(t, l)
	s.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	n, err := s.Write(make([]byte, 1<<20))
	require.Error(t, err)
	require.LessOrEqual(t, n, 8<<10+2<<10, "the client's own buffer included")
}
