package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// patience is how long a test waits for what has to happen.
const patience = 30 * time.Second

// A log keeps what the server prints.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start runs the server until the test ends, and returns the addresses that it listens on and what
// it prints. Flags -listen and
// -tls-listen should name port 0.
func start(t *testing.T, args ...string) (addrs []string, printed *log) {
	t.Helper()
	return startAs(t, func(*options) {}, args...)
}

// startAs is start for a server that edit has changed.
func startAs(t *testing.T, edit func(*options), args ...string) (addrs []string, printed *log) {
	t.Helper()
	addrs, printed, _ = launch(t, edit, args...)
	return addrs, printed
}

// launch is startAs for a server that may end before the test does.
func launch(
	t *testing.T, edit func(*options), args ...string,
) (addrs []string, printed *log, end func()) {
	t.Helper()
	o, err := parse(args)
	require.NoError(t, err, "%q", args)
	edit(o)
	o.args = args
	printed = new(log)
	o.logTo(printed)
	up := make(chan string, 8)
	o.listening = func(a net.Addr) { up <- a.String() }
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- o.serve(ctx) }() // the cleanup waits for it
	end = sync.OnceFunc(func() {
		stop()
		require.NoError(t, <-ended)
	})
	t.Cleanup(func() {
		end()
		if t.Failed() {
			t.Logf("the server printed:\n%s", printed)
		}
	})
	for range o.all {
		select {
		case a := <-up:
			addrs = append(addrs, a)
		case err := <-ended:
			ended <- err
			t.Fatalf("the server has not started: %v", err)
		}
	}
	return addrs, printed, end
}

// write makes a file and returns its name.
func write(t *testing.T, name string, lines ...string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(name, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return name
}

// A client speaks MQTT 5.0 in packets.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *packets.Reader
	id   uint16
	got  map[string]string // payloads by topic

	mounted bool // see sees
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	c, err := net.DialTimeout(network, addr, patience)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

func dialTLS(t *testing.T, addr string, config *tls.Config) net.Conn {
	t.Helper()
	return tls.Client(dial(t, addr), config)
}

// A login is what a client says of itself. A name or password "-" is left out.
type login struct{ id, name, password string }

// connect sends CONNECT and returns the client, nil if it was refused, and the CONNACK's Reason
// Code.
func connect(t *testing.T, conn net.Conn, l login) (*client, packets.ReasonCode) {
	t.Helper()
	c := &client{t: t, conn: conn, in: packets.NewReader(conn, packets.Limits{}),
		got: map[string]string{}}
	c.in.SetVersion(packets.V5)
	p := &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: l.id,
		HasUsername: l.name != "-", HasPassword: l.password != "-"}
	if p.HasUsername {
		p.Username = l.name
	}
	if p.HasPassword {
		p.Password = []byte(l.password)
	}
	c.send(p)
	ack, ok := c.want(packets.TypeConnack).(*packets.Connack)
	require.True(t, ok)
	if ack.Code != packets.Success {
		return nil, ack.Code
	}
	return c, ack.Code
}

// login is connect of somebody who has to be accepted.
func (l login) at(t *testing.T, conn net.Conn) *client {
	t.Helper()
	c, code := connect(t, conn, l)
	require.Equal(t, packets.Success, code, "%+v", l)
	return c
}

func (c *client) send(p packets.Packet) {
	c.t.Helper()
	b, err := p.Append(nil, packets.V5)
	require.NoError(c.t, err)
	_, err = c.conn.Write(b)
	require.NoError(c.t, err)
}

// want reads on to the next packet of a type, and takes note of messages.
func (c *client) want(typ packets.Type) packets.Packet {
	c.t.Helper()
	for {
		p, err := c.in.ReadPacket()
		require.NoError(c.t, err, "waiting for %v", typ)
		if m, ok := p.(*packets.Publish); ok {
			c.got[string(m.Topic)] = string(m.Payload)
			if m.QoS == packets.QoS1 {
				c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: m.PacketID})
			}
		}
		if p.Type() == typ {
			return p
		}
	}
}

func (c *client) subscribe(filter string) packets.ReasonCode {
	c.t.Helper()
	c.id++
	c.send(&packets.Subscribe{PacketID: c.id,
		Subscriptions: []packets.Subscription{{Filter: filter}}})
	return c.want(packets.TypeSuback).(*packets.Suback).Codes[0]
}

func (c *client) publish(topic, payload string) packets.ReasonCode {
	c.t.Helper()
	c.id++
	c.send(&packets.Publish{QoS: packets.QoS1, PacketID: c.id, Topic: []byte(topic),
		Payload: []byte(payload)})
	return c.want(packets.TypePuback).(*packets.Ack).Code
}

// ping returns when everything has come that was sent before.
func (c *client) ping() {
	c.t.Helper()
	c.send(&packets.Pingreq{})
	c.want(packets.TypePingresp)
}

// eventually waits for something that happens without a packet.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, 10*time.Millisecond, what)
}

func containsAll(s string, of ...string) bool {
	for _, x := range of {
		if !strings.Contains(s, x) {
			return false
		}
	}
	return true
}
