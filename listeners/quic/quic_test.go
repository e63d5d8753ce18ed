package quic

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/quic-go/quic-go"
	"github.com/stretchr/testify/require"
)

// certificate is that of httptest.
func certificate(t *testing.T) *tls.Config {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	defer srv.Close()
	return &tls.Config{Certificates: srv.TLS.Certificates}
}

func listen(t *testing.T, o Options) *Listener {
	t.Helper()
	l, err := Listen("udp", "127.0.0.1:0", certificate(t), o)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, l *Listener, protos ...string) (*quic.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	qc, err := quic.DialAddr(ctx, l.Addr().String(),
		&tls.Config{InsecureSkipVerify: true, NextProtos: protos}, nil)
	if err == nil {
		t.Cleanup(func() { qc.CloseWithError(0, "") })
	}
	return qc, err
}

// pair returns both ends of a stream.
func pair(t *testing.T, l *Listener) (net.Conn, *quic.Conn, *quic.Stream) {
	t.Helper()
	qc, err := dial(t, l, ALPN)
	require.NoError(t, err)
	s, err := qc.OpenStreamSync(t.Context())
	require.NoError(t, err)
	_, err = s.Write([]byte("x")) // a stream shows at the other side with its first byte
	require.NoError(t, err)
	c, err := l.Accept()
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	return c, qc, s
}

func TestMQTTOverQUIC(t *testing.T) {
	l := listen(t, Options{})
	clients := make(chan *hooks.Client, 1)
	b, err := dunlin.New(dunlin.Config{
		Logger: slog.New(slog.DiscardHandler),
		Authenticator: hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			clients <- r.Client
			return nil
		}),
	})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()

	qc, err := dial(t, l, ALPN)
	require.NoError(t, err)
	s, err := qc.OpenStreamSync(t.Context())
	require.NoError(t, err)
	s.SetDeadline(time.Now().Add(10 * time.Second))
	send := func(p packets.Packet) {
		t.Helper()
		raw, err := p.Append(nil, packets.V5)
		require.NoError(t, err)
		_, err = s.Write(raw)
		require.NoError(t, err)
	}
	r := packets.NewReader(s, packets.Limits{})
	r.SetVersion(packets.V5)
	want := func(typ packets.Type) packets.Packet {
		t.Helper()
		p, err := r.ReadPacket()
		require.NoError(t, err)
		require.Equal(t, typ, p.Type())
		return p
	}
	send(&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c1"})
	want(packets.TypeConnack)
	seen := <-clients
	require.NotNil(t, seen.TLS)
	require.Equal(t, ALPN, seen.TLS.NegotiatedProtocol)
	require.Equal(t, "udp", seen.RemoteAddr.Network())
	send(&packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: "a/#", QoS: packets.QoS2}}})
	want(packets.TypeSuback)
	payload := make([]byte, 500_000)
	rand.Read(payload)
	send(&packets.Publish{QoS: packets.QoS1, PacketID: 1, Topic: []byte("a/b"), Payload: payload})
	for range 2 {
		switch p, err := r.ReadPacket(); x := p.(type) {
		case *packets.Publish:
			require.True(t, bytes.Equal(payload, x.Payload))
		default:
			require.NoError(t, err)
			require.Equal(t, packets.TypePuback, p.Type())
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	down := make(chan error, 1)
	go func() { down <- b.Shutdown(ctx) }()
	require.Equal(t, packets.ServerShuttingDown,
		want(packets.TypeDisconnect).(*packets.Disconnect).Code, "the last words arrive")
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "and the stream ends")
	require.NoError(t, s.Close())
	require.NoError(t, <-down)
	require.ErrorIs(t, <-served, dunlin.ErrBrokerClosed)
}

func TestOnlyTheNameOfMQTT(t *testing.T) {
	l := listen(t, Options{})
	_, err := dial(t, l, "h3")
	require.ErrorContains(t, err, "no application protocol")
	_, err = dial(t, l, "h3", ALPN)
	require.NoError(t, err)
}

func TestNoCertificate(t *testing.T) {
	for _, conf := range []*tls.Config{nil, {}} {
		_, err := Listen("udp", "127.0.0.1:0", conf, Options{})
		require.ErrorContains(t, err, "no certificate")
	}
	_, err := Listen("udp", "no such host.invalid:0", certificate(t), Options{})
	require.Error(t, err)
}

// Deadlines do no harm, and the ends of a stream are those of a net.Conn.
func TestDeadlinesAndEnds(t *testing.T) {
	l := listen(t, Options{})
	c, _, s := pair(t, l)
	b := make([]byte, 10)
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(b)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	c.SetReadDeadline(time.Time{})
	s.Write([]byte("hello"))
	n, err := c.Read(b)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b[:n]))

	c.Write([]byte("bye"))
	require.NoError(t, c.(*conn).CloseWrite())
	got, err := io.ReadAll(s)
	require.NoError(t, err)
	require.Equal(t, "bye", string(got))
	require.NoError(t, s.Close())
	_, err = c.Read(b)
	require.ErrorIs(t, err, io.EOF, "the client has closed its stream")
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.Close(), net.ErrClosed)
	_, err = c.Read(b)
	require.Error(t, err)

	c, qc, _ := pair(t, l)
	qc.CloseWithError(0, "")
	_, err = c.Read(b)
	require.ErrorIs(t, err, io.EOF, "the client has closed the connection")
	c.Close()
}

func TestAClientThatOpensNoStream(t *testing.T) {
	l := listen(t, Options{StreamTimeout: 20 * time.Millisecond})
	qc, err := dial(t, l, ALPN)
	if err == nil { // else it was thrown out before it knew that it was connected
		select {
		case <-qc.Context().Done():
		case <-time.After(10 * time.Second):
			t.Fatal("it is not thrown out")
		}
		err = context.Cause(qc.Context())
	}
	require.ErrorContains(t, err, "no stream was opened")
}

// After Close and the end of the last connection nothing is left: no goroutine, and the port is
// free.
func TestCloseLeavesNothing(t *testing.T) {
	l := listen(t, Options{})
	c, qc, s := pair(t, l)
	waits, err := dial(t, l, ALPN)
	require.NoError(t, err)
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	require.NoError(t, l.Close())
	require.ErrorIs(t, l.Close(), net.ErrClosed)
	require.ErrorIs(t, <-accepted, net.ErrClosed)
	<-waits.Context().Done()

	go s.Write([]byte("on"))
	b := make([]byte, 2)
	_, err = io.ReadFull(c, b)
	require.NoError(t, err, "one that was accepted goes on")
	require.NoError(t, c.Close())
	<-qc.Context().Done()
	addr := l.Addr().(*net.UDPAddr)
	require.Eventually(t, func() bool {
		again, err := net.ListenUDP("udp", addr)
		if err == nil {
			again.Close()
		}
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "the socket is closed")
	require.Eventually(t, func() bool {
		return !strings.Contains(stacks(), "listeners/quic.(*")
	}, 10*time.Second, 10*time.Millisecond,
		"no goroutine of the Listener is left")
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// brittle is a socket that can break.
type brittle struct {
	*net.UDPConn
	broken chan struct{}
}

var errBrittle = errors.New("the interface is gone")

func (s *brittle) ReadFrom(b []byte) (int, net.Addr, error) {
	n, a, err := s.UDPConn.ReadFrom(b)
	select {
	case <-s.broken:
		return 0, nil, errBrittle
	default:
		return n, a, err
	}
}

// Who accepts learns that nothing comes any more.
func TestASocketThatBreaks(t *testing.T) {
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	socket := &brittle{u, make(chan struct{})}
	l, err := New(struct{ net.PacketConn }{socket}, certificate(t), Options{})
	require.NoError(t, err)
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	close(socket.broken)
	c, err := net.DialUDP("udp", nil, u.LocalAddr().(*net.UDPAddr))
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	select {
	case err = <-accepted:
	case <-time.After(5 * time.Second):
		t.Error("Accept waits on")
		l.Close()
		return
	}
	require.ErrorIs(t, err, errBrittle)
	_, err = l.Accept()
	require.ErrorIs(t, err, errBrittle, "and so does the next")
	require.NoError(t, l.Close())
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorIs(t, l.Close(), net.ErrClosed)
	require.Eventually(t, func() bool {
		return !strings.Contains(stacks(), "listeners/quic.(*")
	}, 10*time.Second, 10*time.Millisecond)
}
