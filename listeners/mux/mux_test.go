package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// mqttOver connects a client over nc and wants it to be accepted.
func mqttOver(t *testing.T, nc net.Conn) {
	t.Helper()
	defer nc.Close()
	raw, err := (&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c1"}).
		Append(nil, packets.V5)
	require.NoError(t, err)
	_, err = nc.Write(raw)
	require.NoError(t, err)
	r := packets.NewReader(nc, packets.Limits{})
	r.SetVersion(packets.V5)
	p, err := r.ReadPacket()
	require.NoError(t, err)
	require.Equal(t, packets.Success, p.(*packets.Connack).Code)
}

// One port, four protocols: MQTT and HTTP, each of them plain and inside of TLS.
func TestOnePort(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			l, err := net.Listen(network, address)
			require.NoError(t, err)
			m := New(l, Options{})
			inner := New(tls.NewListener(m.TLS(), cert.TLS), Options{})
			b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
				Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter,
				r *http.Request) {
				fmt.Fprint(w, r.TLS != nil)
			})}
			served := make(chan error, 6)
			for _, x := range []*Mux{m,
				// before Serve: connections for a listener that nobody has asked for are closed
				inner} {
				x.MQTT()
				x.HTTP()
			}
			for _, f := range []func() error{
				m.Serve, inner.Serve,
				func() error { return b.Serve(m.MQTT()) },
				func() error { return b.Serve(inner.MQTT()) },
				func() error { return web.Serve(m.HTTP()) },
				func() error { return web.Serve(inner.HTTP()) },
			} {
				go func() { served <- f() }()
			}
			dial := func(context.Context, string, string) (net.Conn, error) {
				return net.Dial(network, l.Addr().String())
			}
			client := &http.Client{Transport: &http.Transport{DialContext: dial,
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			for url, want := range map[string]string{"http://host/": "false",
				"https://host/": "true"} {
				resp, err := client.Get(url)
				require.NoError(t, err)
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				require.Equal(t, want, string(body), url)
			}
			client.CloseIdleConnections()
			nc, err := dial(t.Context(), "", "")
			require.NoError(t, err)
			mqttOver(t, nc)
			nc, err = dial(t.Context(), "", "")
			require.NoError(t, err)
			mqttOver(t, tls.Client(nc, &tls.Config{InsecureSkipVerify: true}))

			nc, err = dial(t.Context(), "", "")
			require.NoError(t, err)
			nc.Write([]byte{0x7F, 1, 2, 3})
			_, err = nc.Read(make([]byte, 1))
			require.Error(t, err, "what is none of these is closed")

			require.NoError(t, b.Close())
			require.NoError(t, web.Close())
			require.NoError(t, inner.Close())
			require.NoError(t, m.Close())
			require.ErrorIs(t, m.Close(), net.ErrClosed)
			for range cap(served) {
				require.Error(t, <-served)
			}
		})
	}
}

// The connection below is handed on as it is where its first byte can be looked at, and otherwise
// with the methods that a broker looks for.
func TestWhatAcceptReturns(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	m := New(l, Options{})
	listener := m.MQTT()
	go m.Serve()
	defer m.Close()
	require.Equal(t, l.Addr(), listener.Addr())
	peer, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer peer.Close()
	peer.Write([]byte("\x10abc"))
	nc, err := listener.Accept()
	require.NoError(t, err)
	defer nc.Close()
	require.IsType(t, &net.TCPConn{}, nc)
	b := make([]byte, 4)
	_, err = io.ReadFull(nc, b)
	require.NoError(t, err)
	require.Equal(t, "\x10abc", string(b))

	mem := listeners.NewMemory()
	m2 := New(mem, Options{})
	listener = m2.MQTT()
	go m2.Serve()
	defer m2.Close()
	peer, err = mem.Dial()
	require.NoError(t, err)
	peer.Write([]byte("\x10abc"))
	nc, err = listener.Accept()
	require.NoError(t, err)
	_, err = io.ReadFull(nc, b)
	require.NoError(t, err)
	require.Equal(t, "\x10abc", string(b))
	n, err := nc.(interface{ TryWrite([]byte) (int, error) }).TryWrite([]byte("x"))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.NoError(t, nc.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(peer)
	require.NoError(t, err)
	require.Equal(t, "x", string(got))

	pipe, other := net.Pipe()
	go other.Write([]byte("G"))
	first, whole, err := readFirst(pipe)
	require.NoError(t, err)
	require.Equal(t, byte('G'), first)
	require.ErrorIs(t, whole.(*begun).CloseWrite(), errors.ErrUnsupported)
	other.Close()
	_, err = io.ReadAll(whole)
	require.NoError(t, err)
	_, _, err = readFirst(pipe)
	require.ErrorIs(t, err, io.EOF)
}

// A client that says nothing is closed in time, and the oldest at once where there is no room for
// the newest; a deadline is not left behind.
func TestClientsThatSayNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := listeners.NewMemory()
		m := New(mem, Options{FirstByte: time.Minute, MaxPending: 4}) // two of one address
		l := m.MQTT()
		served := make(chan error, 1)
		go func() { served <- m.Serve() }()
		dial := func() net.Conn {
			nc, err := mem.Dial()
			require.NoError(t, err)
			synctest.Wait()
			return nc
		}
		start := time.Now()
		oldest, two, one := dial(), dial(), dial()
		_, err := oldest.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Zero(t, time.Since(start), "there is no room for three")
		time.Sleep(30 * time.Second)
		one.Write([]byte{0x10})
		nc, err := l.Accept()
		require.NoError(t, err)
		_, err = two.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, time.Minute, time.Since(start))
		go func() {
			time.Sleep(time.Hour)
			one.Write([]byte("x"))
		}()
		b := make([]byte, 2)
		_, err = io.ReadFull(nc, b)
		require.NoError(t, err, "one that was accepted has no deadline")

		four := dial()
		four.Write([]byte{0x16})
		_, err = four.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF, "nobody has asked for TLS")
		five, six := dial(), dial()
		six.Write([]byte{0x10})
		synctest.Wait()
		accepted := make(chan error, 1)
		http := m.HTTP()
		go func() {
			_, err := http.Accept()
			accepted <- err
		}()
		synctest.Wait()
		require.NoError(t, m.Close())
		require.ErrorIs(t, <-served, net.ErrClosed)
		require.ErrorIs(t, <-accepted, net.ErrClosed)
		for _, c := range []net.Conn{five, six} {
			_, err := c.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF, "who waits is closed")
		}
		nc.Close()
	})
}

// One listener may end without the others.
func TestAListenerThatIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := listeners.NewMemory()
		m := New(mem, Options{})
		l, h := m.MQTT(), m.HTTP()
		go m.Serve()
		require.NoError(t, l.Close())
		require.ErrorIs(t, l.Close(), net.ErrClosed)
		_, err := l.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
		nc, err := mem.Dial()
		require.NoError(t, err)
		nc.Write([]byte{0x10})
		_, err = nc.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		nc, err = mem.Dial()
		require.NoError(t, err)
		nc.Write([]byte("GET"))
		got, err := h.Accept()
		require.NoError(t, err)
		got.Close()
		require.NoError(t, m.Close())
	})
}

type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, err
}

type temporary struct{ error }

func (temporary) Temporary() bool { return true }

func TestErrorsOfTheListenerBelow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lasting := errors.New("out of order")
		m := New(&failing{listeners.NewMemory(), []error{temporary{os.ErrDeadlineExceeded},
			temporary{os.ErrDeadlineExceeded}, lasting}}, Options{})
		start := time.Now()
		require.ErrorIs(t, m.Serve(), lasting)
		require.Equal(t, 15*time.Millisecond, time.Since(start), "it has waited between attempts")
		_, err := m.MQTT().Accept()
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

// What has been accepted goes on when the Mux is closed, however soon after.
func TestCloseRightAfterAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			mem := listeners.NewMemory()
			m := New(mem, Options{})
			l := m.MQTT()
			served := make(chan error, 1)
			go func() { served <- m.Serve() }()
			nc, err := mem.Dial()
			require.NoError(t, err)
			nc.Write([]byte{0x10})
			synctest.Wait() // it waits for Accept
			got, err := l.Accept()
			require.NoError(t, err)
			require.NoError(t, m.Close())
			_, err = got.Write([]byte("x"))
			require.NoError(t, err, "one that was accepted goes on")
			require.ErrorIs(t, <-served, net.ErrClosed)
			got.Close()
			nc.Close()
		}
	})
}
