package websocket_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	ws "github.com/coder/websocket"
	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// serve runs a broker behind an HTTP server and returns the server's URL with the scheme ws.
func serve(t *testing.T, o websocket.Options) (url string, b *running) {
	t.Helper()
	l := websocket.New(o)
	mux := http.NewServeMux()
	mux.Handle("/mqtt", l)
	mux.Handle("/another/path", l)
	srv := httptest.NewServer(mux)
	b = broker(t, l)
	t.Cleanup(srv.Close)
	return "ws" + strings.TrimPrefix(srv.URL, "http"), b
}

// A running Broker tells of clients that are gone.
type running struct {
	*dunlin.Broker
	gone chan error
}

// broker serves l until the test ends.
func broker(t *testing.T, l net.Listener) *running {
	t.Helper()
	gone := make(chan error, 1000)
	o := &hooks.Observer{Disconnected: func(e hooks.Disconnected) { gone <- e.Err }}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
		Logger: slog.New(slog.DiscardHandler), Observer: o})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	t.Cleanup(func() {
		b.Close()
		require.ErrorIs(t, <-served, dunlin.ErrBrokerClosed)
	})
	return &running{b, gone}
}

func dial(t *testing.T, url string, o *ws.DialOptions) *ws.Conn {
	t.Helper()
	if o == nil {
		o = &ws.DialOptions{Subprotocols: []string{"mqtt"}}
	}
	c, _, err := ws.Dial(t.Context(), url, o)
	require.NoError(t, err)
	c.SetReadLimit(-1)
	t.Cleanup(func() { c.CloseNow() })
	return c
}

func encode(t *testing.T, ps ...packets.Packet) (b []byte) {
	t.Helper()
	for _, p := range ps {
		var err error
		b, err = p.Append(b, packets.V5)
		require.NoError(t, err)
	}
	return b
}

var (
	connect   = &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c1"}
	subscribe = &packets.Subscribe{PacketID: 1,
		Subscriptions: []packets.Subscription{{Filter: "a/#"}}}
	publish = &packets.Publish{Topic: []byte("a/b"), Payload: []byte("x")}
)

// wantAll reads what the broker answers to connect, subscribe and publish.
func wantAll(t *testing.T, c *ws.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r := packets.NewReader(ws.NetConn(ctx, c, ws.MessageBinary), packets.Limits{})
	r.SetVersion(packets.V5)
	for _, want := range []packets.Type{packets.TypeConnack, packets.TypeSuback,
		packets.TypePublish} {
		p, err := r.ReadPacket()
		require.NoError(t, err)
		require.Equal(t, want, p.Type(), packets.Trace(p))
	}
}

// Frame borders and packet borders are unrelated, and what comes back is in binary frames.
//
// [5.0 MQTT-6.0.0-1] [3.1.1 MQTT-6.0.0-1] [5.0 MQTT-6.0.0-2] [3.1.1 MQTT-6.0.0-2]
func TestPacketsTravelInAnyFrames(t *testing.T) {
	url, _ := serve(t, websocket.Options{})
	all := encode(t, connect, subscribe, publish)
	for name, send := range map[string]func(c *ws.Conn) error{
		"three packets in one frame": func(c *ws.Conn) error {
			return c.Write(t.Context(), ws.MessageBinary, all)
		},
		"each byte in a message of its own": func(c *ws.Conn) error {
			for i := range all {
				if err := c.Write(t.Context(), ws.MessageBinary, all[i:i+1]); err != nil {
					return err
				}
			}
			return nil
		},
		"each byte in a fragment of one message": func(c *ws.Conn) error {
			w, err := c.Writer(t.Context(), ws.MessageBinary)
			for i := 0; i < len(all) && err == nil; i++ {
				_, err = w.Write(all[i : i+1])
			}
			if err == nil {
				err = w.Close()
			}
			return err
		},
		"a frame that ends inside of a packet": func(c *ws.Conn) error {
			if err := c.Write(t.Context(), ws.MessageBinary, all[:len(all)-3]); err != nil {
				return err
			}
			return c.Write(t.Context(), ws.MessageBinary, all[len(all)-3:])
		},
		"empty messages in between": func(c *ws.Conn) error {
			for _, part := range [][]byte{nil, all[:5], nil, nil, all[5:], nil} {
				if err := c.Write(t.Context(), ws.MessageBinary, part); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, url+"/mqtt", nil)
			sent := make(chan error, 1)
			go func() { sent <- send(c) }()
			wantAll(t, c)
			require.NoError(t, <-sent)
		})
	}
}

// [5.0 MQTT-6.0.0-1] [3.1.1 MQTT-6.0.0-1]
func TestATextFrameCloses(t *testing.T) {
	url, b := serve(t, websocket.Options{})
	c := dial(t, url+"/mqtt", nil)
	require.NoError(t, c.Write(t.Context(), ws.MessageBinary, encode(t, connect)))
	typ, _, err := c.Read(t.Context())
	require.NoError(t, err)
	require.Equal(t, ws.MessageBinary, typ)
	require.NoError(t, c.Write(t.Context(), ws.MessageText, encode(t, publish)))
	_, _, err = c.Read(t.Context())
	require.Equal(t, ws.StatusUnsupportedData, ws.CloseStatus(err),
		"the answer to a text frame: %v", err)
	require.Error(t, <-b.gone, "the broker has let go of the connection")
}

// The broker returns the subprotocol that was offered, and talks to nobody who offers none of
// MQTT's.
//
// [5.0 MQTT-6.0.0-4] [3.1.1 MQTT-6.0.0-4]
// [5.0 MQTT-6.0.0-3] [3.1.1 MQTT-6.0.0-3]
func TestSubprotocols(t *testing.T) {
	url, _ := serve(t, websocket.Options{})
	for _, tt := range []struct {
		name   string
		offers []string
		want   string
		status int
	}{
		{"mqtt", []string{"mqtt"}, "mqtt", 101},
		{"the name of MQTT 3.1", []string{"mqttv3.1"}, "mqttv3.1", 101},
		{"mqtt wins over the older name", []string{"mqttv3.1", "mqtt"}, "mqtt", 101},
		{"mqtt among others", []string{"chat", "mqtt"}, "mqtt", 101},
		{"none", nil, "", 400},
		{"only others", []string{"chat", "mqttx"}, "", 400},
		{"capitals are answered in the spelling of the standard", []string{"MQTT"}, "mqtt", 101},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, resp, err := ws.Dial(t.Context(), url+"/mqtt",
				&ws.DialOptions{Subprotocols: tt.offers})
			require.Equal(t, tt.status, resp.StatusCode)
			if tt.status != 101 {
				require.Error(t, err)
				body, _ := io.ReadAll(resp.Body)
				require.Contains(t, string(body), "offer the WebSocket subprotocol")
				return
			}
			require.NoError(t, err)
			defer c.CloseNow()
			require.Equal(t, tt.want, c.Subprotocol())
		})
	}
}

// Clients without any subprotocol are accepted where the option says so; those with other ones are
// not.
func TestClientsWithoutSubprotocol(t *testing.T) {
	url, _ := serve(t, websocket.Options{AllowNoSubprotocol: true})
	c, _, err := ws.Dial(t.Context(), url+"/mqtt", nil)
	require.NoError(t, err)
	defer c.CloseNow()
	require.Empty(t, c.Subprotocol())
	require.NoError(t, c.Write(t.Context(), ws.MessageBinary,
		encode(t, connect, subscribe, publish)))
	wantAll(t, c)
	_, resp, err := ws.Dial(t.Context(), url+"/mqtt",
		&ws.DialOptions{Subprotocols: []string{"chat"}})
	require.Error(t, err)
	require.Equal(t, 400, resp.StatusCode)
}

// The host that a page was loaded from is the same host with the default port, and behind a proxy.
func TestTheSameHostInOtherWords(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, tt := range []struct {
		name                    string
		host, forwarded, origin string
		trusted                 []netip.Prefix
		status                  int
	}{
		{"the default port of https", "x.example:443", "", "https://x.example", nil, 101},
		{"the default port of http", "x.example:80", "", "http://x.example", nil, 101},
		{"the default port of the other scheme", "x.example:80", "", "https://x.example", nil, 403},
		{"capitals", "X.example", "", "https://x.EXAMPLE", nil, 101},
		{"a port that only begins like the default", "x.example:4430", "", "https://x.example", nil,
			403},
		{"the name that a trusted proxy was called by", "10.0.0.1:8080", "x.example",
			"https://x.example", loopback, 101},
		{"the first of several proxies", "10.0.0.1", "x.example, y.example", "https://x.example",
			loopback, 101},
		{"another name than the proxy's", "x.example", "y.example", "https://x.example", loopback,
			403},
		{"a proxy that is not trusted", "10.0.0.1", "x.example", "https://x.example", nil, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, _ := serve(t, websocket.Options{TrustedProxies: tt.trusted})
			h := http.Header{"Origin": {tt.origin}}
			if tt.forwarded != "" {
				h.Set("X-Forwarded-Host", tt.forwarded)
			}
			c, resp, err := ws.Dial(t.Context(), url+"/mqtt", &ws.DialOptions{
				Subprotocols: []string{"mqtt"}, HTTPHeader: h, Host: tt.host,
			})
			if err == nil {
				c.CloseNow()
			}
			require.Equal(t, tt.status, resp.StatusCode)
		})
	}
}

// The same broker answers on every path that the Listener is mounted on, with whatever query.
//
// [5.0 MQTT5-NOID-6-1] [3.1.1 MQTT311-NOID-6-1]
func TestThePathHasNoMeaning(t *testing.T) {
	url, b := serve(t, websocket.Options{})
	for i, path := range []string{"/mqtt", "/another/path", "/mqtt?topic=a&client=b"} {
		c := dial(t, url+path, nil)
		p := *connect
		p.ClientID = string(rune('a' + i))
		require.NoError(t, c.Write(t.Context(), ws.MessageBinary,
			encode(t, &p, subscribe, publish)))
		wantAll(t, c)
		info, ok := b.Session(p.ClientID)
		require.True(t, ok)
		require.Len(t, info.Subscriptions, 1, path)
	}
}

func TestOrigins(t *testing.T) {
	for _, tt := range []struct {
		name    string
		origins []string
		origin  string
		status  int
	}{
		{"a program sends none", nil, "", 101},
		{"a page of the same host", nil, "http://HOST", 101},
		{"a page of another host", nil, "http://evil.example", 403},
		{"a page of the same name on another port", nil, "http://127.0.0.1:1", 403},
		{"a listed host", []string{"app.example"}, "https://app.example", 101},
		{"a host beside a listed one", []string{"app.example"}, "https://app.example.evil.example",
			403},
		{"a host that matches a pattern", []string{"*.app.example"}, "https://www.app.example",
			101},
		{"a listed host with the wrong scheme", []string{"https://app.example"},
			"http://app.example", 403},
		{"anybody", []string{"*"}, "https://evil.example", 101},
		{"the opaque origin of a sandboxed page", nil, "null", 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, _ := serve(t, websocket.Options{Origins: tt.origins})
			h := http.Header{}
			if tt.origin != "" {
				h.Set("Origin", strings.Replace(tt.origin, "HOST", strings.TrimPrefix(url, "ws://"),
					1))
			}
			c, resp, err := ws.Dial(t.Context(), url+"/mqtt",
				&ws.DialOptions{Subprotocols: []string{"mqtt"}, HTTPHeader: h})
			if err == nil {
				c.CloseNow()
			}
			require.Equal(t, tt.status, resp.StatusCode)
		})
	}
	require.Panics(t, func() {
		websocket.New(websocket.Options{Origins: []string{"[a-"}})
	}, "a broken pattern is found at the start")
}

func TestRequestsThatAreNoHandshake(t *testing.T) {
	url, _ := serve(t, websocket.Options{})
	resp, err := http.Get("http" + strings.TrimPrefix(url, "ws") + "/mqtt")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusUpgradeRequired, resp.StatusCode)
}

func TestForwardedAddresses(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		name    string
		trusted []netip.Prefix
		header  []string
		want    string
	}{
		{"nobody is trusted", nil, []string{"1.2.3.4"}, "127.0.0.1"},
		{"a proxy that sends none", loopback, nil, "127.0.0.1"},
		{"a trusted proxy", loopback, []string{"1.2.3.4"}, "1.2.3.4"},
		{"what the client claims does not count", loopback, []string{"6.6.6.6, 1.2.3.4"},
			"1.2.3.4"},
		{"a chain of trusted proxies", loopback, []string{"6.6.6.6, 1.2.3.4, 10.1.1.1"}, "1.2.3.4"},
		{"two headers are one list", loopback, []string{"6.6.6.6", "1.2.3.4"}, "1.2.3.4"},
		{"nonsense ends the search", loopback, []string{"1.2.3.4, unknown, 10.1.1.1"}, "10.1.1.1"},
		{"an address with a port", loopback, []string{"1.2.3.4:5678"}, "1.2.3.4"},
		{"IPv6", loopback, []string{"2001:db8::1"}, "2001:db8::1"},
		{"an IPv4 address in IPv6 form", loopback, []string{"::ffff:1.2.3.4"}, "1.2.3.4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := websocket.New(websocket.Options{TrustedProxies: tt.trusted})
			srv := httptest.NewServer(l)
			defer srv.Close()
			c, _, err := ws.Dial(t.Context(), srv.URL, &ws.DialOptions{
				Subprotocols: []string{"mqtt"},
				HTTPHeader:   http.Header{"X-Forwarded-For": tt.header},
			})
			require.NoError(t, err)
			nc, err := l.Accept()
			require.NoError(t, err)
			defer nc.Close()
			defer c.CloseNow() // first, so that nc need not wait for it
			host, _, err := net.SplitHostPort(nc.RemoteAddr().String())
			require.NoError(t, err)
			require.Equal(t, tt.want, host)
			require.NoError(t, l.Close())
		})
	}
}

func TestLifeOfAListener(t *testing.T) {
	l := websocket.New(websocket.Options{})
	srv := httptest.NewServer(l)
	defer srv.Close()
	o := &ws.DialOptions{Subprotocols: []string{"mqtt"}}
	var clients []*ws.Conn
	for i := range 2 {
		clients = append(clients, dial(t, srv.URL, o))
		require.NoError(t, clients[i].Write(t.Context(), ws.MessageBinary, []byte{byte(i)}))
	}
	nc, err := l.Accept()
	require.NoError(t, err)
	defer nc.Close()
	b := make([]byte, 1)
	_, err = io.ReadFull(nc, b)
	require.NoError(t, err)
	accepted := clients[b[0]] // either: a handshake is answered before its connection waits
	defer accepted.CloseNow()
	clients = append(clients, dial(t, srv.URL, o))

	require.Equal(t, "websocket", l.Addr().Network())
	require.NoError(t, l.Close())
	require.ErrorIs(t, l.Close(), net.ErrClosed)
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	for _, c := range clients {
		if c == accepted {
			continue
		}
		_, _, err = c.Read(t.Context())
		require.Equal(t, ws.StatusNormalClosure, ws.CloseStatus(err),
			"those that waited are closed: %v", err)
	}
	go accepted.Write(t.Context(), ws.MessageBinary, []byte{7})
	_, err = io.ReadFull(nc, b)
	require.NoError(t, err, "one that was accepted goes on")
	_, resp, err := ws.Dial(t.Context(), srv.URL, o)
	require.Error(t, err)
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
}

func TestTLSBelow(t *testing.T) {
	l := websocket.New(websocket.Options{})
	srv := httptest.NewTLSServer(l)
	defer srv.Close()
	c := dial(t, "wss"+strings.TrimPrefix(srv.URL, "https"),
		&ws.DialOptions{Subprotocols: []string{"mqtt"}, HTTPClient: srv.Client()})
	nc, err := l.Accept()
	require.NoError(t, err)
	defer nc.Close()
	defer c.CloseNow()
	x, ok := nc.(interface{ ConnectionState() tls.ConnectionState })
	require.True(t, ok)
	require.True(t, x.ConnectionState().HandshakeComplete)
	go nc.Write([]byte("hello"))
	_, p, err := c.Read(t.Context())
	require.NoError(t, err)
	require.Equal(t, "hello", string(p))
}

func TestAMiddlewareThatHidesTheConnection(t *testing.T) {
	l := websocket.New(websocket.Options{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
	}))
	defer srv.Close()
	_, resp, err := ws.Dial(t.Context(), srv.URL, &ws.DialOptions{Subprotocols: []string{"mqtt"}})
	require.Error(t, err)
	require.Equal(t, http.StatusNotImplemented, resp.StatusCode)
}
