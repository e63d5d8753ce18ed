package link

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bursts opens n connections before any is accepted, then accepts them, and does the same again
// with the same Acceptor. It returns what is accepted.
func bursts(t *testing.T, l net.Listener, n int, multi bool) (accepted []*TCPConn) {
	a := NewAcceptor(l)
	for range 2 {
		accepted = append(accepted, burst(t, a, l.Addr(), n, multi)...)
	}
	return accepted
}

func burst(t *testing.T, a *Acceptor, at net.Addr, n int, multi bool) (accepted []*TCPConn) {
	var dialer net.Dialer
	dialer.SetMultipathTCP(multi)
	clients := map[string]net.Conn{}
	for range n {
		client, err := dialer.Dial("tcp", at.String())
		require.NoError(t, err)
		t.Cleanup(func() { client.Close() })
		clients[client.LocalAddr().String()] = client
	}
	for range n {
		nc, err := a.Accept()
		require.NoError(t, err)
		t.Cleanup(func() { nc.Close() })
		c, ok := nc.(*TCPConn)
		require.True(t, ok, "a TCP connection becomes a TCPConn")
		client := clients[c.RemoteAddr().String()]
		require.NotNil(t, client, "%v is the address of a client", c.RemoteAddr())
		delete(clients, c.RemoteAddr().String())
		require.Equal(t, client.RemoteAddr().String(), c.LocalAddr().String())
		_, err = client.Write([]byte("x"))
		require.NoError(t, err)
		var b [1]byte
		_, err = c.Read(b[:])
		require.NoError(t, err)
		require.Equal(t, "x", string(b[:]))
		accepted = append(accepted, c)
	}
	require.True(t, a.more, "the last came without package net")
	return accepted
}

// All connections of a burst have the options that package net gives the first one.
func TestConnectionsOfABurstAreLikeTheFirst(t *testing.T) {
	for name, config := range map[string]net.ListenConfig{
		"as usual":     {},
		"no probes":    {KeepAlive: -1},
		"other probes": {KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 77 * time.Second}},
	} {
		for _, there := range []bool{false, true} {
			for _, here := range []bool{false, true} {
				config.SetMultipathTCP(there)
				l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
				require.NoError(t, err)
				all := bursts(t, l, 4, here)
				for _, o := range inherited {
					want := option(t, all[0], o.level, o.name)
					if o.name == syscall.TCP_NODELAY {
						require.NotZero(t, want)
					}
					for _, c := range all[1:] {
						require.Equal(t, want, option(t, c, o.level, o.name), "%s, %v, %v, %v", name,
							there, here, o)
					}
				}
				on := option(t, all[3], syscall.SOL_SOCKET, syscall.SO_KEEPALIVE) != 0
				require.Equal(t, name != "no probes", on, name)
				require.NoError(t, l.Close())
			}
		}
	}
}

func TestConnectionsOfABurstHaveTheirAddresses(t *testing.T) {
	for _, at := range [][2]string{
		{"tcp4", "127.0.0.1:0"}, {"tcp4", ":0"}, {"tcp", ":0"}, {"tcp6", "[::1]:0"},
	} {
		l, err := net.Listen(at[0], at[1])
		if at[0] == "tcp6" && err != nil {
			t.Log("this machine has no IPv6: ", err)
			continue
		}
		require.NoError(t, err)
		all := bursts(t, l, 3, false)
		for _, c := range all {
			require.Len(t, c.remote.IP, len(all[0].remote.IP), "%v: as package net has it", at)
			require.Len(t, c.local.IP, len(all[0].local.IP), "%v: as package net has it", at)
		}
		require.NoError(t, l.Close())
	}
}

// The Acceptor of a listener that is closed says so, also while connections wait.
func TestAnAcceptorEndsWithItsListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := NewAcceptor(l)
	for range 3 {
		client, err := net.DialTimeout("tcp", l.Addr().String(), time.Minute)
		require.NoError(t, err)
		defer client.Close()
	}
	nc, err := a.Accept()
	require.NoError(t, err)
	defer nc.Close()
	require.True(t, a.more)
	require.NoError(t, l.Close())
	_, err = a.Accept()
	require.ErrorIs(t, err, net.ErrClosed)

	l, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a = NewAcceptor(l)
	ended := make(chan error, 1)
	go func() {
		_, err := a.Accept()
		ended <- err
	}()
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
}

// A listener that is no *net.TCPListener is asked for its connections.
func TestAnAcceptorLeavesOtherListenersAlone(t *testing.T) {
	dir := t.TempDir()
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", dir+"/s")
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial("unix", dir+"/s")
	require.NoError(t, err)
	defer client.Close()
	nc, err := NewAcceptor(l).Accept()
	require.NoError(t, err)
	defer nc.Close()
	require.IsType(t, &net.UnixConn{}, nc)
}
