package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/testcert"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// patience is how long a test waits for a real process.
const patience = 20 * time.Second

// findMosquitto skips the test where mosquitto is not installed, except in CI.
func findMosquitto(t *testing.T) string {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("mosquitto is not installed")
	}
	t.Skip("mosquitto is not installed")
	return ""
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// wait waits for something that happens outside of the test.
func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(patience); !is(); <-again.C {
		if time.Now().After(end) {
			t.Fatalf("it is not so after %v that %s", patience, what)
		}
	}
}

// A mosquitto is a process.
type mosquitto struct {
	t         *testing.T
	path, dir string
	addr      string
	cmd       *exec.Cmd
	said      bytes.Buffer
}

// newMosquitto starts one with these further lines of configuration.
func newMosquitto(t *testing.T, lines string) *mosquitto {
	m := &mosquitto{t: t, path: findMosquitto(t), dir: t.TempDir(), addr: freeAddr(t)}
	_, port, _ := net.SplitHostPort(m.addr)
	conf := fmt.Sprintf(
		"user root\nlistener %s 127.0.0.1\nallow_anonymous true\npersistence true\n"+
			"persistence_location %s/\nmax_queued_messages 0\n%s\n", port, m.dir, lines)
	if err := os.WriteFile(filepath.Join(m.dir, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	t.Cleanup(m.stop)
	return m
}

func (m *mosquitto) start() {
	m.cmd = exec.Command(m.path, "-c", filepath.Join(m.dir, "conf"))
	m.cmd.Stderr = &m.said
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	wait(m.t, "mosquitto listens", func() bool {
		nc, err := net.Dial("tcp", m.addr)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
}

// stop ends it as its user would, so that it writes its database.
func (m *mosquitto) stop() {
	if m.cmd == nil {
		return
	}
	m.cmd.Process.Signal(os.Interrupt)
	m.cmd.Wait()
	m.cmd = nil
}

// A real is a broker with a link over TCP, and what came to it.
type real struct {
	b    *dunlin.Broker
	node *Node
	mu   sync.Mutex
	got  map[string]int
}

func startReal(t *testing.T, name string, l Link) *real {
	cfg := dunlin.Config{Authenticator: hooks.AllowAll, MaxQueuedMessages: 100_000,
		Logger: slog.New(slog.DiscardHandler)}
	n, err := New(Config{Name: name, Links: []Link{l}, Logger: cfg.Logger})
	if err != nil {
		t.Fatal(err)
	}
	n.Install(&cfg)
	b, err := dunlin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	sub, err := b.Subscribe(t.Context(), "t/#", &dunlin.SubscribeOptions{QoS: 2, Buffer: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	x := &real{b: b, node: n, got: map[string]int{}}
	go func() { // ends with the Broker
		for m := range sub.Messages() {
			x.mu.Lock()
			x.got[string(m.Payload)]++
			x.mu.Unlock()
		}
	}()
	if err := n.Start(b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return x
}

func (x *real) up() bool { return x.node.Stats().Links[0].State == StateUp }

// count returns how many messages came, and which of them more than once.
func (x *real) count() (n int, again []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for payload, n := range x.got {
		if n != 1 {
			again = append(again, payload)
		}
	}
	return len(x.got), again
}

// A pair is two Dunlins that are linked by a mosquitto between them.
type pair struct {
	t     *testing.T
	m     *mosquitto
	ends  map[string]*real
	total int
}

func newPair(t *testing.T, m *mosquitto, v packets.Version, dial dialFunc) *pair {
	l := Link{Name: "m", Remote: "m", Addresses: []string{"mqtt://" + m.addr}, Version: v,
		Dial:       dial,
		MinBackoff: 20 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
		Topics: []Topic{{Filter: "t/#", Direction: DirectionBoth, QoS: 2}}}
	p := &pair{t: t, m: m, ends: map[string]*real{}}
	for _, name := range []string{"a", "b"} {
		p.ends[name] = startReal(t, name, l)
	}
	wait(t, "both links are up", func() bool { return p.ends["a"].up() && p.ends["b"].up() })
	return p
}

// publish publishes n messages at each end.
func (p *pair) publish(qos packets.QoS, n int) {
	for i := range n {
		for name, x := range p.ends {
			payload := fmt.Appendf(nil, "%s %d", name, p.total+i)
			m := &dunlin.Message{Topic: "t/x", QoS: qos, Payload: payload}
			if err := x.b.Publish(p.t.Context(), m); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	p.total += n
}

// arrived waits until both ends have all messages, and returns those that came more than once.
func (p *pair) arrived() (again []string) {
	p.t.Helper()
	wait(p.t, "all messages have come", func() bool {
		a, _ := p.ends["a"].count()
		b, _ := p.ends["b"].count()
		return a == 2*p.total && b == 2*p.total
	})
	for _, x := range p.ends {
		_, more := x.count()
		again = append(again, more...)
	}
	return again
}

// restart restarts the mosquitto while messages of QoS 2 cross it.
func (p *pair) restart() {
	p.publish(packets.QoS2, 300)
	p.m.stop()
	p.publish(packets.QoS2, 300)
	p.m.start()
}

// Two Dunlins are linked by a mosquitto between them, which is restarted while messages cross it.
// Nothing is lost and nothing comes twice.
func TestAMosquittoBetweenTwoDunlins(t *testing.T) {
	for _, v := range []packets.Version{packets.V311, packets.V5} {
		t.Run(v.String(), func(t *testing.T) {
			p := newPair(t, newMosquitto(t, "max_inflight_messages 1000"), v, nil)
			check := func(when string) {
				t.Helper()
				if again := p.arrived(); len(again) > 0 {
					t.Fatalf("%s: these came more than once: %q", when, again)
				}
			}
			for qos := range packets.QoS(3) {
				p.publish(qos, 500)
				check(fmt.Sprintf("QoS %d", qos))
			}
			for i := range 3 {
				p.restart()
				check(fmt.Sprintf("restart %d", i))
			}
			for _, x := range p.ends {
				if s := x.node.Stats().Links[0]; s.Refused > 0 || s.Unmapped > 0 {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// A mosquitto 2.0.11 that starts again remembers of as many messages as its max_inflight_messages
// says, 20 by default, that it has sent PUBREL for them. If it has more of them in flight it sends
// the others once more as PUBLISH [MQTT-4.3.3-6], and they come twice. Nothing is lost, and nothing
// else comes twice.
func TestAMosquittoSendsAgainWhatItHasReleased(t *testing.T) {
	for _, v := range []packets.Version{packets.V311, packets.V5} {
		t.Run(v.String(), func(t *testing.T) {
			m := newMosquitto(t, "")
			tapped := tap{addr: m.addr, released: map[string]string{}, broken: map[string]bool{}}
			p := newPair(t, m, v, tapped.dial)
			seen := 0
			for range 3 {
				p.restart()
				again := p.arrived()
				for _, payload := range again {
					if !tapped.repeated(payload) {
						t.Errorf("%q came more than once, and the mosquitto is not to blame",
							payload)
					}
				}
				seen = len(again)
			}
			t.Logf("%d of %d messages came more than once", seen, 4*p.total)
		})
	}
}

type dialFunc func(ctx context.Context, address string) (net.Conn, error)

// A tap reads what the mosquitto says to the links, and finds the messages that it publishes again
// after it has released them.
type tap struct {
	addr string

	mu sync.Mutex
	// Guarded by mu; by connection end and Packet Identifier: the payload
	released map[string]string
	broken   map[string]bool // guarded by mu; payloads that were released before they came
}

func (x *tap) repeated(payload string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.broken[payload]
}

func (x *tap) dial(ctx context.Context, _ string) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", x.addr)
	if err != nil {
		return nil, err
	}
	return &tappedConn{Conn: nc, tap: x, under: map[uint16]string{}}, nil
}

// A tappedConn is a connection of a link to the mosquitto.
type tappedConn struct {
	net.Conn
	tap   *tap
	v     packets.Version
	id    string            // Client Identifier
	buf   []byte            // the beginning of a packet; owned by the reader, like under
	under map[uint16]string // payloads by Packet Identifier
}

// Write notes the version and the Client Identifier of the CONNECT, which is the first packet.
func (c *tappedConn) Write(b []byte) (int, error) {
	if c.v == 0 {
		if h, err := packets.ParseHeader(b, 0); err == nil && h.Type == packets.TypeConnect {
			var p packets.Connect
			if p.Decode(h, b[h.Len:h.Len+h.Remaining], 0) == nil {
				c.v, c.id = p.Version, p.ClientID
			}
		}
	}
	return c.Conn.Write(b)
}

func (c *tappedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.buf = append(c.buf, b[:n]...)
	for {
		h, err := packets.ParseHeader(c.buf, c.v)
		if err != nil || len(c.buf) < h.Len+h.Remaining {
			break
		}
		c.see(h, c.buf[h.Len:h.Len+h.Remaining])
		c.buf = c.buf[h.Len+h.Remaining:]
	}
	return n, err
}

// see notes a PUBLISH or a PUBREL. What was released may have come by an earlier connection.
func (c *tappedConn) see(h packets.Header, body []byte) {
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	key := func(id uint16) string { return fmt.Sprint(c.id, " ", id) }
	switch h.Type {
	case packets.TypePublish:
		var p packets.Publish
		if p.Decode(h, body, c.v) != nil || p.QoS != packets.QoS2 {
			return
		}
		payload := string(p.Payload)
		if p.Dup && c.tap.released[key(p.PacketID)] == payload {
			c.tap.broken[payload] = true
		}
		c.under[p.PacketID] = payload
	case packets.TypePubrel:
		var p packets.Ack
		if p.Decode(h, body, c.v) == nil {
			if payload, ok := c.under[p.PacketID]; ok {
				c.tap.released[key(p.PacketID)] = payload
			}
		}
	}
}

// A link over TLS accepts the certificate that it was told to, and no other one later.
func TestALinkDoesNotAcceptAnotherCertificate(t *testing.T) {
	ca, other := testcert.CA(t, "ca"), testcert.CA(t, "other")
	var mu sync.Mutex
	cert := ca.Issue("server").TLS()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			mu.Lock()
			defer mu.Unlock()
			c := cert
			return &c, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	far, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	go far.Serve(l) // ends with far
	x := startReal(t, "a", Link{Name: "far", Addresses: []string{"mqtts://" + l.Addr().String()},
		TLS: &tls.Config{RootCAs: ca.Pool()}, MinBackoff: 10 * time.Millisecond,
		MaxBackoff: 50 * time.Millisecond,
		Topics:     []Topic{{Filter: "t/#", Direction: DirectionBoth, QoS: 2}}})
	wait(t, "the link is up", x.up)
	mu.Lock()
	cert = other.Issue("server").TLS()
	mu.Unlock()
	far.Disconnect("a.far", packets.AdministrativeAction)
	wait(t, "the link names the certificate", func() bool {
		s := x.node.Stats().Links[0]
		return s.State != StateUp && strings.Contains(s.LastError, "certificate")
	})
	if err := x.b.Publish(t.Context(), &dunlin.Message{Topic: "t/x", QoS: 1}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	cert = ca.Issue("server").TLS()
	mu.Unlock()
	wait(t, "the message that waited has gone", func() bool {
		s := x.node.Stats().Links[0]
		return s.Acknowledged == 1 && s.Queued == 0
	})
}
