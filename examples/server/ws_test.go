package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/quic-go/quic-go"
	"github.com/stretchr/testify/require"
)

// overWS connects by WebSocket, as a web page at origin would, or a program if that is empty.
func overWS(t *testing.T, addr, origin string) (net.Conn, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	h := http.Header{}
	if origin != "" {
		h.Set("Origin", origin)
	}
	c, resp, err := websocket.Dial(ctx, "ws://"+addr+"/mqtt",
		&websocket.DialOptions{Subprotocols: []string{"mqtt"}, HTTPHeader: h})
	if err != nil {
		require.NotNil(t, resp, "%v", err)
		return nil, resp.StatusCode
	}
	t.Cleanup(func() { c.CloseNow() })
	return websocket.NetConn(ctx, c, websocket.MessageBinary), resp.StatusCode
}

// A quicStream is the one stream of a QUIC connection.
type quicStream struct {
	*quic.Stream
	conn *quic.Conn
}

func (s quicStream) LocalAddr() net.Addr  { return s.conn.LocalAddr() }
func (s quicStream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// overQUIC connects by QUIC.
func overQUIC(t *testing.T, addr string, conf *tls.Config) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := quic.DialAddr(ctx, addr, conf, nil)
	require.NoError(t, err)
	t.Cleanup(func() { c.CloseWithError(0, "") })
	s, err := c.OpenStreamSync(ctx)
	require.NoError(t, err)
	s.SetDeadline(time.Now().Add(patience))
	return quicStream{s, c}
}

// Clients of all transports meet on one broker.
func TestWebSocketAndQUIC(t *testing.T) {
	addrs, printed := start(t, "-listen", "127.0.0.1:0", "-ws", "127.0.0.1:0", "-ws-origin",
		"app.example", "-quic", "127.0.0.1:0")
	ws, status := overWS(t, addrs[1], "https://app.example")
	require.Equal(t, http.StatusSwitchingProtocols, status)
	_, status = overWS(t, addrs[1], "https://evil.example")
	require.Equal(t, http.StatusForbidden, status)
	clients := []*client{
		login{"by TCP", "-", "-"}.at(t, dial(t, addrs[0])),
		login{"by WebSocket", "-", "-"}.at(t, ws),
		login{"by QUIC", "-", "-"}.at(t, overQUIC(t, addrs[2],
			&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"mqtt"}})),
	}
	for _, c := range clients {
		c.subscribe("from/#")
	}
	for i, c := range clients {
		c.publish(fmt.Sprintf("from/%d", i), "hello")
	}
	for _, c := range clients {
		c.ping()
		for i := range clients {
			require.Equal(t, "hello", c.got[fmt.Sprintf("from/%d", i)])
		}
	}
	require.Contains(t, printed.String(), "clients cannot know whom they talk to")
	resp, err := http.Get("http://" + addrs[1] + "/elsewhere")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
}

// A banned address costs neither an HTTP request nor a QUIC handshake.
func TestABanHoldsBeforeWebSocketAndQUICBegin(t *testing.T) {
	addrs, _ := start(t, "-ws", "127.0.0.1:0", "-quic", "127.0.0.1:0", "-ban",
		"address:127.0.0.0/8")
	nc := dial(t, addrs[0])
	// HTTP would wait for a request for ten seconds
	nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := nc.Read(make([]byte, 1))
	require.Error(t, err)
	var timeout net.Error
	require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "%v", err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = quic.DialAddr(ctx, addrs[1], &tls.Config{InsecureSkipVerify: true,
		NextProtos: []string{"mqtt"}}, nil)
	var refused *quic.TransportError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, quic.ConnectionRefused, refused.ErrorCode)
}

func TestQUICWithTheFilesOfTLS(t *testing.T) {
	s := newSite(t)
	sensor := s.clients.Issue("sensor")
	addrs, _ := start(t, "-quic", "127.0.0.1:0", "-tls-cert", s.cert, "-tls-key", s.key,
		"-tls-client-ca", s.clientCA)
	require.Len(t, addrs, 1)
	login{"a", "-", "-"}.at(t, overQUIC(t, addrs[0], s.client(sensor))).ping()
}

func TestWebSocketOverTLSAndItsPath(t *testing.T) {
	s := newSite(t)
	addrs, printed := start(t, "-wss", "127.0.0.1:0", "-ws", "127.0.0.1:0", "-ws-path", "/deep/mqtt",
		"-tls-cert", s.cert, "-tls-key", s.key, "-tls-client-ca", s.clientCA,
		"-tls-identity-as-username", "-allow-anonymous", "-v")
	require.Contains(t, printed.String(), `protocol="websockets over TLS" path=/deep/mqtt`)
	over := func(url string, own *testcert.Certificate) (net.Conn, int) {
		o := &websocket.DialOptions{Subprotocols: []string{"mqtt"}, HTTPClient: &http.Client{
			Transport: &http.Transport{TLSClientConfig: s.client(own)}}}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		c, resp, err := websocket.Dial(ctx, url, o)
		if resp == nil {
			t.Fatal(err)
		}
		if err != nil {
			return nil, resp.StatusCode
		}
		t.Cleanup(func() { c.CloseNow() })
		return websocket.NetConn(t.Context(), c, websocket.MessageBinary), resp.StatusCode
	}
	nc, status := over("wss://"+addrs[1]+"/deep/mqtt", s.clients.Issue("sensor"))
	require.Equal(t, http.StatusSwitchingProtocols, status)
	login{"c", "-", "-"}.at(t, nc).ping()
	nc, status = over("wss://"+addrs[1]+"/deep/mqtt", nil)
	require.Equal(t, http.StatusSwitchingProtocols, status)
	require.Nil(t, comesIn(t, nc, login{"c", "-", "-"}), "it has no certificate, and so no name")
	_, status = over("wss://"+addrs[1]+"/mqtt", nil)
	require.Equal(t, http.StatusNotFound, status)
	nc, status = over("ws://"+addrs[0]+"/deep/mqtt", nil)
	require.Equal(t, http.StatusSwitchingProtocols, status)
	login{"d", "-", "-"}.at(t, nc).ping()

	addrs, _ = start(t, "-ws", "127.0.0.1:0")
	nc, status = over("ws://"+addrs[0]+"/any/path", nil)
	require.Equal(t, http.StatusSwitchingProtocols, status, "by default every path is one")
	login{"e", "-", "-"}.at(t, nc).ping()
}

func TestFlagsOfWebSocketAndQUIC(t *testing.T) {
	for _, args := range [][]string{
		{"-ws-origin", "a.example"},
		{"-ws-path", "/mqtt"},
		{"-ws", "127.0.0.1:0", "-ws-path", "mqtt"},
		{"-wss", "127.0.0.1:0"},
		{"-ws", ":0", "-allow-anonymous", "-ws-trusted-proxy", "somewhere"},
		{"-quic", ":0", "-tls-cert", "c"},
	} {
		_, err := parse(args)
		require.ErrorContains(t, err, "-", "%q", args)
	}
	o, err := parse([]string{"-ws", ":0", "-allow-anonymous", "-ws-trusted-proxy", "10.0.0.0/8",
		"-ws-trusted-proxy", "::1"})
	require.NoError(t, err)
	require.Empty(t, o.listen, "there is no default beside other listeners")
	ps, err := o.web.trusted()
	require.NoError(t, err)
	require.Len(t, ps, 2)
}

// The program itself: SIGTERM ends it in good order, with clients of all kinds there.
func TestSIGTERM(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "server")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	var printed log
	cmd := exec.Command(bin, "-listen", "127.0.0.1:0", "-ws", "127.0.0.1:0", "-quic", "127.0.0.1:0")
	cmd.Stderr = &printed
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // the test waits for it
	defer cmd.Process.Kill()
	var addrs []string
	eventually(t, "it listens", func() bool {
		addrs = nil
		for line := range strings.SplitSeq(printed.String(), "\n") {
			if _, a, ok := strings.Cut(line, "msg=listening addr="); ok {
				a, _, _ = strings.Cut(a, " ")
				addrs = append(addrs, a)
			}
		}
		return len(addrs) == 3
	})
	ws, _ := overWS(t, addrs[1], "")
	login{"b", "-", "-"}.at(t, ws)
	login{"c", "-", "-"}.at(t, overQUIC(t, addrs[2],
		&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"mqtt"}}))
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	patient, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case err := <-ended:
		require.NoError(t, err, "%s", &printed)
	case <-patient.Done():
		t.Fatalf("it does not end:\n%s", &printed)
	}
	require.Contains(t, printed.String(), "shutting down")
	require.NotContains(t, printed.String(), "cut off")
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(text)
}
