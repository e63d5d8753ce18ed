// Package try is what the tests of the examples share: it runs a program's main function and talks
// MQTT to it.
package try

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// patience is how long anything may take before a test fails.
const patience = 20 * time.Second

// A Program is one that runs.
type Program struct {
	t      testing.TB
	lines  chan string
	cancel context.CancelFunc
	done   chan error
}

// Start runs a program until the test ends or Stop is called.
func Start(t testing.TB, run func(ctx context.Context, args []string, out io.Writer) error,
	args ...string) *Program {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	p := &Program{t: t, lines: make(chan string, 100_000), cancel: cancel,
		done: make(chan error, 1)}
	go func() { // ends with the program
		p.done <- run(ctx, args, w)
		w.Close()
	}()
	go func() { // ends when the program closes its output
		s := bufio.NewScanner(r)
		for s.Scan() {
			select {
			case p.lines <- s.Text():
			default: // nobody looks at it any more
			}
		}
		close(p.lines)
	}()
	t.Cleanup(func() {
		cancel()
		if err, ok := p.wait(); ok && err != nil {
			t.Errorf("the program ended with %v", err)
		}
	})
	return p
}

func (p *Program) wait() (err error, ok bool) {
	late, cancel := context.WithTimeout(context.Background(),
		patience) // also when the test's own context has ended
	defer cancel()
	select {
	case err, ok = <-p.done:
		if ok {
			close(p.done)
		}
		return err, ok
	case <-late.Done():
		p.t.Error("the program does not end")
		return nil, false
	}
}

// Interrupt tells the program to end.
func (p *Program) Interrupt() { p.cancel() }

// Stop ends the program as an interrupt would, and fails the test if it returns an error. A broker
// waits a second for clients that are told that it ends, and do not close their connections.
func (p *Program) Stop() {
	p.t.Helper()
	p.cancel()
	if err, _ := p.wait(); err != nil {
		p.t.Fatalf("the program ended with %v", err)
	}
}

// Line returns the rest of the next line of output that begins with prefix.
func (p *Program) Line(prefix string) string {
	p.t.Helper()
	late, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	var others []string
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("the program ended (%v) without a line that begins with %q", <-p.done,
					prefix)
			}
			others = append(others, line)
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return strings.TrimSpace(rest)
			}
		case <-late.Done():
			p.t.Fatalf("no line that begins with %q but\n%s", prefix, strings.Join(others, "\n"))
		}
	}
}

// A Client speaks MQTT 5.0.
type Client struct {
	t    testing.TB
	nc   net.Conn
	r    *packets.Reader
	next uint16
}

// Connect connects to an address: a path with a slash in it, or host and port. It fails the test if
// the broker refuses.
func Connect(t testing.TB, addr, id string) *Client {
	t.Helper()
	c, ack := Dial(t, addr, &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: id})
	if ack.Code.Failed() {
		t.Fatalf("CONNECT of %s was refused: %v", id, ack.Code)
	}
	return c
}

// Dial sends a CONNECT of the caller's and returns the answer.
func Dial(t testing.TB, addr string, p *packets.Connect) (*Client, *packets.Connack) {
	t.Helper()
	network := "tcp"
	if strings.Contains(addr, "/") {
		network = "unix"
	}
	nc, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return Over(t, nc, p)
}

// Over is Dial on a connection that is there, and closes it when the test ends.
func Over(t testing.TB, nc net.Conn, p *packets.Connect) (*Client, *packets.Connack) {
	t.Helper()
	t.Cleanup(func() { nc.Close() })
	c := &Client{t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{})}
	c.r.SetVersion(packets.V5)
	c.Send(p)
	ack, ok := c.Receive().(*packets.Connack)
	if !ok {
		t.Fatal("the answer to CONNECT is no CONNACK")
	}
	return c, ack
}

// Close closes the connection.
func (c *Client) Close() { c.nc.Close() }

// Send sends a packet.
func (c *Client) Send(p packets.Packet) {
	c.t.Helper()
	b, err := p.Append(nil, packets.V5)
	if err == nil {
		_, err = c.nc.Write(b)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// Receive returns the next packet.
func (c *Client) Receive() packets.Packet {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(patience))
	p, err := c.r.ReadPacket()
	if err != nil {
		c.t.Fatalf("no packet: %v", err)
	}
	return p
}

// Subscribe subscribes and returns the Reason Code of the SUBACK.
func (c *Client) Subscribe(filter string, qos packets.QoS) packets.ReasonCode {
	c.t.Helper()
	c.next++
	c.Send(&packets.Subscribe{PacketID: c.next,
		Subscriptions: []packets.Subscription{{Filter: filter, QoS: qos}}})
	ack, ok := c.Receive().(*packets.Suback)
	if !ok {
		c.t.Fatal("the answer to SUBSCRIBE is no SUBACK")
	}
	return ack.Codes[0]
}

// Publish publishes at QoS 1 and returns the Reason Code of the PUBACK. It is for a client that
// subscribes to nothing.
func (c *Client) Publish(topic, payload string) packets.ReasonCode {
	c.t.Helper()
	c.next++
	c.Send(&packets.Publish{Topic: []byte(topic), Payload: []byte(payload), QoS: packets.QoS1,
		PacketID: c.next})
	ack, ok := c.Receive().(*packets.Ack)
	if !ok {
		c.t.Fatal("the answer to PUBLISH is no PUBACK")
	}
	return ack.Code
}

// Message returns the next message that the client is sent, which it acknowledges.
func (c *Client) Message() *packets.Publish {
	c.t.Helper()
	p, ok := c.Receive().(*packets.Publish)
	if !ok {
		c.t.Fatal("a packet that is no PUBLISH")
	}
	if p.QoS == packets.QoS1 {
		c.Send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
	}
	return p
}

// Want fails the test if the next message is another one.
func (c *Client) Want(topic, payload string) {
	c.t.Helper()
	if p := c.Message(); string(p.Topic) != topic || string(p.Payload) != payload {
		c.t.Fatalf("%s %q came, not %s %q", p.Topic, p.Payload, topic, payload)
	}
}

// Gone waits until the broker has closed the connection.
func (c *Client) Gone() {
	c.t.Helper()
	c.nc.SetReadDeadline(time.Now().Add(patience))
	for {
		_, err := c.r.ReadPacket()
		if err == io.EOF || errors.Is(err, syscall.ECONNRESET) { // it had not read everything
			return
		}
		if err != nil {
			c.t.Fatalf("the connection is not closed: %v", err)
		}
	}
}

// Need returns the path of a program that the test needs. Without it the test is skipped, but not
// in CI, which has to have it.
func Need(t testing.TB, program, debian string) string {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed (Debian package %s), and CI has to have it", program, debian)
	}
	t.Skipf("%s is not installed (Debian package %s)", program, debian)
	return ""
}
