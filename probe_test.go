//go:build unix

package dunlin

import (
	"crypto/tls"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// seenConn keeps the connection that it accepted last.
type seenConn struct {
	net.Listener
	last *net.TCPConn
}

func (l *seenConn) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		l.last = nc.(*net.TCPConn)
	}
	return nc, err
}

// A listener that leaves TCP's probes off is enough for clients with Keep Alive; the others have
// nothing else.
func TestOnlyClientsWithoutKeepAliveAreProbed(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, keepAlive := range []uint16{0, 60} {
			b := newTestBroker(t, nil)
			off := net.ListenConfig{KeepAlive: -1}
			l, err := off.Listen(t.Context(), "tcp", "127.0.0.1:0")
			require.NoError(t, err)
			addr := l.Addr().String()
			seen := &seenConn{Listener: l}
			l = seen
			dial := func() (net.Conn, error) { return net.Dial("tcp", addr) }
			if secure {
				l = tls.NewListener(l,
					&tls.Config{Certificates: []tls.Certificate{testCertificate(t)}})
				dial = func() (net.Conn, error) {
					return tls.Dial("tcp", addr,
						&tls.Config{InsecureSkipVerify: true})
				}
			}
			go b.Serve(l) // ends with b
			nc, err := dial()
			require.NoError(t, err)
			p := connect("c")
			p.KeepAlive = keepAlive
			client, _ := newTestClient(t, nc, p)
			raw, err := seen.last.SyscallConn()
			require.NoError(t, err)
			probed := func() (is bool) {
				require.NoError(t, raw.Control(func(fd uintptr) {
					on, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET,
						syscall.SO_KEEPALIVE)
					require.NoError(t, err)
					is = on != 0
				}))
				return is
			}
			client.send(&packets.Pingreq{}) // whose answer comes after what follows the CONNACK
			client.recv()
			require.Equal(t, keepAlive == 0, probed(), "TLS %v, Keep Alive %d", secure, keepAlive)
			b.Close()
		}
	}
}
