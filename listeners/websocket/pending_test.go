package websocket_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
)

// from is a listener in memory whose connections come from the addresses that they are dialed with.
type from struct {
	*listeners.Memory
	addrs chan net.Addr
}

func newFrom() *from {
	l := &from{listeners.NewMemory(), make(chan net.Addr, 1)}
	l.Buffer = 400
	return l
}

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

// closedNow says whether the server has closed a connection.
func closedNow(nc net.Conn) bool {
	nc.SetReadDeadline(time.Now().Add(1))
	defer nc.SetReadDeadline(time.Time{})
	_, err := nc.Read(make([]byte, 1))
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

const upgrade = "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " +
	"websocket\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n"

// shake sends a handshake, with more headers, and returns the status of the answer.
func shake(t *testing.T, nc net.Conn, headers string) int {
	t.Helper()
	_, err := io.WriteString(nc, upgrade+headers+"\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	require.NoError(t, err)
	return resp.StatusCode
}

// inBubble runs f with a server on l in virtual time.
func inBubble(t *testing.T, o websocket.Options,
	f func(t *testing.T, l *from, ws *websocket.Listener)) {
	synctest.Test(t, func(t *testing.T) {
		ws := websocket.New(o)
		mux := http.NewServeMux()
		mux.Handle("/mqtt", ws)
		l := newFrom()
		srv := &http.Server{Handler: mux, ConnState: ws.ConnState, ReadHeaderTimeout: time.Minute}
		ended := make(chan error, 1)
		go func() { ended <- srv.Serve(l) }()
		f(t, l, ws)
		ws.Close()
		srv.Close()
		<-ended
	})
}

func TestHTTPConnectionsOfOneAddressDoNotShutThePort(t *testing.T) {
	inBubble(t, websocket.Options{}, func(t *testing.T, l *from, ws *websocket.Listener) {
		var slow []net.Conn
		for range 2000 {
			nc := l.dial(t, "192.0.2.1")
			_, err := io.WriteString(nc, "GET /")
			require.NoError(t, err)
			slow = append(slow, nc)
		}
		open := 0
		for _, nc := range slow {
			if !closedNow(nc) {
				open++
			}
		}
		require.Equal(t, 512, open)
		require.False(t, closedNow(slow[len(slow)-1]), "the oldest go first")
		other := l.dial(t, "192.0.2.2")
		require.Equal(t, http.StatusSwitchingProtocols, shake(t, other, ""))
		nc, err := ws.Accept()
		require.NoError(t, err)
		for range 2000 {
			l.dial(t, "192.0.2.2").Close()
		}
		for range 2000 {
			l.dial(t, "192.0.2.2")
		}
		require.False(t, closedNow(other),
			"a WebSocket connection makes no room for HTTP connections")
		other.Close()
		nc.Close()
	})
}

// A client that does not read the answers to its requests would hold its place in the backlog for
// ever.
func TestHandshakesThatDoNotEndDoNotShutTheListener(t *testing.T) {
	inBubble(t, websocket.Options{Backlog: 8}, func(t *testing.T, l *from, ws *websocket.Listener) {
		stuck := func() {
			nc := l.dial(t, "192.0.2.1")
			go func() { // ends when the server closes the connection
				for range 2 {
					io.WriteString(nc, "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
				}
				io.WriteString(nc, upgrade+"\r\n")
			}()
			synctest.Wait()
		}
		for range 100 {
			stuck()
		}
		require.Equal(t, http.StatusSwitchingProtocols, shake(t, l.dial(t, "192.0.2.2"), ""))
		require.Equal(t, http.StatusSwitchingProtocols, shake(t, l.dial(t, "192.0.2.1"), ""),
			"the oldest handshake goes first")
		for range 2 {
			nc, err := ws.Accept()
			require.NoError(t, err)
			nc.Close()
		}
		for range 4 {
			stuck()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for range 4 { // those that cannot be evicted, as they wait for Accept
			require.Equal(t, http.StatusSwitchingProtocols, shake(t, l.dial(t, "192.0.2.1"), ""))
		}
	})
}

func TestABacklogHasAnEnd(t *testing.T) {
	inBubble(t, websocket.Options{Backlog: 3}, func(t *testing.T, l *from, ws *websocket.Listener) {
		one := l.dial(t, "192.0.2.1")
		require.Equal(t, http.StatusSwitchingProtocols, shake(t, one, ""))
		require.Equal(t, http.StatusSwitchingProtocols, shake(t, l.dial(t, "192.0.2.1"), ""))
		require.Equal(t, http.StatusServiceUnavailable, shake(t, l.dial(t, "192.0.2.1"), ""),
			"two of its own wait")
		require.Equal(t, http.StatusSwitchingProtocols, shake(t, l.dial(t, "192.0.2.2"), ""),
			"one place is for others")
		require.Equal(t, http.StatusServiceUnavailable, shake(t, l.dial(t, "192.0.2.3"), ""),
			"three wait")
		nc, err := ws.Accept()
		require.NoError(t, err)
		defer nc.Close()
		require.Equal(t, http.StatusSwitchingProtocols, shake(t, l.dial(t, "192.0.2.3"), ""))
	})
}

func TestAdmitIsAskedBeforeAConnectionMayWait(t *testing.T) {
	refuse := func(ip string) func(net.Addr) error {
		return func(a net.Addr) error {
			if a.(*net.TCPAddr).IP.String() == ip {
				return errors.New("banned")
			}
			return nil
		}
	}
	o := websocket.Options{Admit: refuse("192.0.2.1")}
	inBubble(t, o, func(t *testing.T, l *from, ws *websocket.Listener) {
		require.True(t, closedNow(l.dial(t, "192.0.2.1")))
		require.Equal(t, http.StatusSwitchingProtocols, shake(t, l.dial(t, "192.0.2.2"), ""))
		require.Equal(t, http.StatusSwitchingProtocols,
			shake(t, l.dial(t, "192.0.2.2"), "X-Forwarded-For: 192.0.2.1\r\n"))
	})
	o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/32")}
	inBubble(t, o, func(t *testing.T, l *from, ws *websocket.Listener) {
		require.Equal(t, http.StatusServiceUnavailable,
			shake(t, l.dial(t, "192.0.2.2"), "X-Forwarded-For: 192.0.2.1\r\n"))
		require.Equal(t, http.StatusSwitchingProtocols,
			shake(t, l.dial(t, "192.0.2.2"), "X-Forwarded-For: 192.0.2.3\r\n"))
	})
}
