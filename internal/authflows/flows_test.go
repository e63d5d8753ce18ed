package authflows

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/stretchr/testify/require"
)

// patience is how long anything may take that has to happen.
const patience = 30 * time.Second

// serve runs a broker until the test ends and returns its address.
func serve(t *testing.T, cfg dunlin.Config) (*dunlin.Broker, string) {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	b, err := dunlin.New(cfg)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() { _ = b.Serve(l) }) // the cleanup waits for it
	t.Cleanup(func() {
		b.Close()
		serving.Wait()
	})
	return b, l.Addr().String()
}

// A client is one of paho's.
type client struct {
	t    *testing.T
	mqtt *paho.Client
	// The Reason Code of the broker's DISCONNECT; closed when the connection has ended
	gone chan byte
}

// dial connects. It returns nil, and the Reason Code, if the broker refuses.
func dial(t *testing.T, addr string, auther paho.Auther, cp *paho.Connect) (*client, byte) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, patience)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	c := &client{t: t, gone: make(chan byte, 1)}
	c.mqtt = paho.NewClient(paho.ClientConfig{
		Conn: conn, AuthHandler: auther, PacketTimeout: patience,
		OnServerDisconnect: func(d *paho.Disconnect) { c.gone <- d.ReasonCode },
	})
	cp.CleanStart, cp.KeepAlive = true, 60
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ack, err := c.mqtt.Connect(ctx, cp)
	if err != nil {
		require.NotNil(t, ack, "%v", err)
		require.GreaterOrEqual(t, ack.ReasonCode, byte(0x80))
		return nil, ack.ReasonCode
	}
	t.Cleanup(func() { _ = c.mqtt.Disconnect(&paho.Disconnect{}) })
	return c, 0
}

// publish returns the Reason Code of the PUBACK.
func (c *client) publish(topic string) byte {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	r, err := c.mqtt.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("x")})
	require.NotNil(c.t, r, "%v", err)
	return r.ReasonCode
}

// authenticate sends AUTH with Reason Code 0x19 and waits until the exchange has ended, and returns
// whether well.
func (c *client) authenticate(method string, data []byte) bool {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	r, err := c.mqtt.Authenticate(ctx, &paho.Auth{
		ReasonCode: 0x19, Properties: &paho.AuthProperties{AuthMethod: method, AuthData: data},
	})
	return err == nil && r.Success
}

// lost waits for the broker's DISCONNECT.
func (c *client) lost() byte {
	c.t.Helper()
	select {
	case code := <-c.gone:
		return code
	case <-time.After(patience):
		require.Fail(c.t, "no DISCONNECT")
		return 0
	}
}

// A wire speaks in packets, for what no library would send.
type wire struct {
	t  *testing.T
	nc net.Conn
	in *packets.Reader
}

func dialWire(t *testing.T, addr string) *wire {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, patience)
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	w := &wire{t, nc, packets.NewReader(nc, packets.Limits{})}
	w.in.SetVersion(packets.V5)
	return w
}

func (w *wire) send(p packets.Packet) {
	w.t.Helper()
	b, err := p.Append(nil, packets.V5)
	require.NoError(w.t, err)
	_, err = w.nc.Write(b)
	require.NoError(w.t, err)
}

// connect sends a CONNECT with Authentication Method and Data.
func (w *wire) connect(id, method, data string) {
	w.t.Helper()
	w.send(&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: id,
		Properties: authProperties(method, data)})
}

// auth sends an AUTH that goes on.
func (w *wire) auth(method, data string) {
	w.t.Helper()
	w.send(&packets.Auth{Code: packets.ContinueAuthentication,
		Properties: authProperties(method, data)})
}

func authProperties(method, data string) packets.Properties {
	return packets.Properties(nil).AppendText(packets.AuthenticationMethod, method).
		AppendBytes(packets.AuthenticationData, []byte(data))
}

// challenge reads an AUTH and returns its data.
func (w *wire) challenge() string {
	w.t.Helper()
	p, err := w.in.ReadPacket()
	require.NoError(w.t, err)
	a, ok := p.(*packets.Auth)
	require.True(w.t, ok, "%v", p)
	require.Equal(w.t, packets.ContinueAuthentication, a.Code)
	data, _ := a.Properties.Bytes(packets.AuthenticationData)
	return string(data)
}

// refused reads the CONNACK that refuses, after which the broker closes.
func (w *wire) refused() packets.ReasonCode {
	w.t.Helper()
	p, err := w.in.ReadPacket()
	require.NoError(w.t, err)
	a, ok := p.(*packets.Connack)
	require.True(w.t, ok, "%v", p)
	require.True(w.t, a.Code.Failed())
	_, err = w.in.ReadPacket()
	require.Error(w.t, err)
	return a.Code
}
