package mux

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/stretchr/testify/require"
)

// from is a listener in memory whose connections come from the addresses that they are dialed with.
type from struct {
	*listeners.Memory
	addrs chan net.Addr
}

func newFrom() *from { return &from{listeners.NewMemory(), make(chan net.Addr, 1)} }

func (l *from) dial(t *testing.T, ip string) net.Conn {
	t.Helper()
	l.addrs <- &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}
	nc, err := l.Dial()
	require.NoError(t, err)
	synctest.Wait()
	return nc
}

func (l *from) Accept() (net.Conn, error) {
	nc, err := l.Memory.Accept()
	if err != nil {
		return nil, err
	}
	return &fromConn{nc, <-l.addrs}, nil
}

type fromConn struct {
	net.Conn
	addr net.Addr
}

func (c *fromConn) RemoteAddr() net.Addr { return c.addr }

// closedNow says whether the Mux has closed a connection.
func closedNow(nc net.Conn) bool {
	nc.SetReadDeadline(time.Now().Add(1))
	defer nc.SetReadDeadline(time.Time{})
	_, err := nc.Read(make([]byte, 1))
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

func TestSilentConnectionsOfOneAddressDoNotShutThePort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFrom()
		m := New(l, Options{})
		ready := m.MQTT()
		go m.Serve()
		silent := make([]net.Conn, 2000)
		for i := range silent {
			silent[i] = l.dial(t, "192.0.2.1")
		}
		require.True(t, closedNow(silent[0]), "the oldest has made room")
		require.False(t, closedNow(silent[len(silent)-1]))

		for _, ip := range []string{"192.0.2.2", "192.0.2.1"} {
			nc := l.dial(t, ip)
			require.False(t, closedNow(nc), "%s is served", ip)
			nc.Write([]byte{0x10})
			got, err := ready.Accept()
			require.NoError(t, err)
			require.Equal(t, ip, got.RemoteAddr().(*net.TCPAddr).IP.String())
			got.Close()
		}
		require.NoError(t, m.Close())
	})
}

// Whoever is evicted in the moment in which its first byte comes is either closed or handed on
// whole.
func TestAnEvictionLeavesNoDeadlineOnAnAcceptedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFrom()
		m := New(l, Options{MaxPending: 2, FirstByte: time.Minute})
		ready := m.MQTT()
		go m.Serve()
		for range 200 {
			first := l.dial(t, "192.0.2.1")
			first.Write([]byte{0x10})
			second := l.dial(t, "192.0.2.1") // evicts the first one, which waits for Accept
			require.True(t, closedNow(first))
			second.Write([]byte{0x10})
			nc, err := ready.Accept()
			require.NoError(t, err)
			third := l.dial(t, "192.0.2.1")
			time.Sleep(time.Hour) // the third one ends by its deadline
			_, err = nc.Write([]byte("x"))
			require.NoError(t, err)
			second.Write([]byte("y"))
			_, err = io.ReadFull(nc, make([]byte, 2))
			require.NoError(t, err)
			for _, c := range []net.Conn{nc, first, second, third} {
				c.Close()
			}
			synctest.Wait()
		}
		require.NoError(t, m.Close())
	})
}

func TestAConnectionThatNobodyAcceptsIsClosedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFrom()
		m := New(l, Options{FirstByte: time.Minute})
		m.HTTP() // and nobody serves it
		go m.Serve()
		nc := l.dial(t, "192.0.2.1")
		start := time.Now()
		nc.Write([]byte("GET"))
		_, err := nc.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, time.Minute, time.Since(start))
		require.NoError(t, m.Close())
	})
}

func TestTheBrokersBansAndRatesAreAskedBeforeAConnectionMayWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := dunlin.New(dunlin.Config{
			Authenticator: hooks.AllowAll, Logger: slog.New(slog.DiscardHandler),
			MaxConnectionsPerIP: 1, ConnectRatePerIP: 2,
		})
		require.NoError(t, err)
		defer b.Close()
		l := newFrom()
		m := New(l, Options{Admit: b.Admits})
		defer m.Close()
		ready := m.MQTT()
		go b.Serve(ready)
		go m.Serve()
		require.NoError(t, b.Ban(dunlin.Ban{Kind: dunlin.BanAddress, Value: "192.0.2.0/24"}))
		require.True(t, closedNow(l.dial(t, "192.0.2.1")), "the address is banned")

		one := l.dial(t, "198.51.100.1")
		for range 100 { // asking takes no token
			require.NoError(t, b.Admits(&net.TCPAddr{IP: net.IPv4(198, 51, 100, 1)}))
		}
		one.Write([]byte{0x10})
		synctest.Wait()
		require.False(t, closedNow(one))
		require.True(t, closedNow(l.dial(t, "198.51.100.1")),
			"the Broker takes one connection from an address")
		one.Close()
		synctest.Wait()
		two := l.dial(t, "198.51.100.1")
		two.Write([]byte{0x10})
		synctest.Wait()
		require.False(t, closedNow(two))
		two.Close()
		synctest.Wait()
		require.True(t, closedNow(l.dial(t, "198.51.100.1")),
			"the Broker takes two connections a second from an address")
		require.False(t, closedNow(l.dial(t, "198.51.100.2")))
	})
}
