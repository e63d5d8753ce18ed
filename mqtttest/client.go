package mqtttest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Client does only what the test tells it: it does not answer a PUBLISH, and does not send
// PINGREQ. The test writes its expectations as packets. A failure names the expectation and prints
// the packets of the connection. A Client may be used by one goroutine, that of its test.
type Client struct {
	// Connack is the answer to the CONNECT; nil for a Client of Open.
	Connack *packets.Connack

	b     *Broker
	t     testing.TB
	id    string
	nc    net.Conn
	r     *packets.Reader
	v     packets.Version
	pings []bool // for each PINGRESP that is to come whether WantIdle has caused it
	err   error  // how the connection ended
}

// Open connects in memory and sends nothing. The connection is closed when the test ends.
func (b *Broker) Open(t testing.TB) *Client {
	t.Helper()
	nc, err := b.Dial()
	if err != nil {
		t.Fatalf("mqtttest: %v", err)
	}
	c := &Client{b: b, t: t, nc: nc, r: packets.NewReader(nc, packets.Limits{}), v: packets.V311}
	t.Cleanup(func() { nc.Close() })
	return c
}

// Client connects a client in memory: MQTT 5.0, with a Clean Start and no Keep Alive, unless edits
// change the CONNECT. An edit that sets Username or Password need not set HasUsername or
// HasPassword. It fails t if the broker refuses the client.
func (b *Broker) Client(t testing.TB, id string, edits ...func(*packets.Connect)) *Client {
	t.Helper()
	c := b.Open(t)
	p := &packets.Connect{Version: packets.V5, CleanStart: true, ClientID: id}
	for _, edit := range edits {
		edit(p)
	}
	p.HasUsername = p.HasUsername || p.Username != ""
	p.HasPassword = p.HasPassword || p.Password != nil
	c.Send(p)
	ack, ok := c.read("the answer to CONNECT", "CONNACK").(*packets.Connack)
	if !ok || ack.Code != packets.Success {
		c.fail("the CONNECT is accepted", "CONNACK code=0x00", packetOr(ack, "another packet"))
	}
	c.Connack = ack
	return c
}

func packetOr(p *packets.Connack, other string) string {
	if p == nil {
		return other
	}
	return packets.Trace(p)
}

// Conn returns the connection, for bytes that Send cannot write. The test must not read from it.
func (c *Client) Conn() net.Conn { return c.nc }

// Send sends packets, valid or invalid. A CONNECT sets the version of all later packets. Send fails
// the test if a packet has no wire form. If the broker has closed the connection, the next Want
// fails.
func (c *Client) Send(ps ...packets.Packet) {
	c.t.Helper()
	for _, p := range ps {
		if x, ok := p.(*packets.Connect); ok {
			c.v, c.id = x.Version, x.ClientID
			c.r.SetVersion(x.Version)
		}
		if p.Type() == packets.TypePingreq {
			c.pings = append(c.pings, false)
		}
		raw, err := p.Append(nil, c.v)
		if err != nil {
			c.t.Fatalf("mqtttest: client %q: Send %s: %v", c.id, packets.Trace(p), err)
		}
		c.nc.SetWriteDeadline(time.Now().Add(c.b.o.timeout))
		if _, err := c.nc.Write(raw); errors.Is(err, os.ErrDeadlineExceeded) {
			c.fail("the broker reads what is sent", packets.Trace(p)+" is taken",
				"a full buffer for "+c.b.o.timeout.String())
		}
	}
}

// Want reads the next packet, and fails the test if it is not want. why is the expectation, as a
// sentence. Want returns the packet. If want is a packet with Reason Codes and its Properties are
// nil, Want does not compare the Properties: the broker may send more than the test cares about.
func (c *Client) Want(why string, want packets.Packet) packets.Packet {
	c.t.Helper()
	got := c.read(why, packets.Trace(want))
	if !equal(got, want, c.v) {
		c.fail(why, packets.Trace(want), packets.Trace(got))
	}
	return got
}

// WantType is Want for any packet of a type.
func (c *Client) WantType(why string, t packets.Type) packets.Packet {
	c.t.Helper()
	got := c.read(why, t.String())
	if got.Type() != t {
		c.fail(why, t.String(), packets.Trace(got))
	}
	return got
}

// WantIdle fails the test if there is something to read. In a synctest bubble it first waits until
// every goroutine is blocked. Outside of a bubble it sends PINGREQ: the broker answers after
// everything that it had to send before. If the answer takes more than 100 ms and nothing else has
// come, WantIdle succeeds.
func (c *Client) WantIdle(why string) {
	c.t.Helper()
	patience := time.Nanosecond
	if c.b.bubble {
		synctest.Wait()
	} else if c.Connack != nil {
		c.Send(&packets.Pingreq{})
		c.pings[len(c.pings)-1] = true
		patience = 100 * time.Millisecond
	} else {
		patience = 20 * time.Millisecond
	}
	p, err := c.next(patience, true)
	switch {
	case err == nil && p == nil: // the sign of life; what waits for the store may be behind it
		if p, err = c.next(10*time.Millisecond, false); err == nil {
			c.fail(why, "nothing", packets.Trace(p))
		}
	case errors.Is(err, os.ErrDeadlineExceeded):
	case err != nil:
		c.fail(why, "nothing", "the end of the connection: "+err.Error())
	default:
		c.fail(why, "nothing", packets.Trace(p))
	}
}

// WantClosed waits until the broker closes the connection. It fails the test if the broker does
// not, or if it first sends anything except a DISCONNECT. It returns the DISCONNECT, or nil if
// there was none.
func (c *Client) WantClosed(why string) *packets.Disconnect {
	c.t.Helper()
	var last *packets.Disconnect
	for {
		p, err := c.next(c.b.o.timeout, false)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.fail(why, "the end of the connection", "nothing for "+c.b.o.timeout.String())
		case err != nil:
			c.seen()
			c.nc.Close()
			return last
		}
		d, ok := p.(*packets.Disconnect)
		if !ok || last != nil {
			c.fail(why, "the end of the connection", packets.Trace(p))
		}
		last = d
	}
}

// Close closes the connection without a DISCONNECT, so the broker publishes the Will.
func (c *Client) Close() { c.nc.Close() }

// Disconnect sends DISCONNECT and waits until the broker has closed the connection.
func (c *Client) Disconnect() {
	c.t.Helper()
	c.Send(&packets.Disconnect{})
	c.WantClosed("DISCONNECT ends the connection")
}

// read reads a packet for Want.
func (c *Client) read(why, want string) packets.Packet {
	c.t.Helper()
	p, err := c.next(c.b.o.timeout, false)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.fail(why, want, "nothing for "+c.b.o.timeout.String())
	case err != nil:
		c.fail(why, want, "the end of the connection: "+err.Error())
	}
	if d, ok := p.(*packets.Disconnect); ok && d.Code.Failed() {
		c.seen()
	}
	return p
}

// next reads a packet. It skips PINGRESPs that WantIdle has caused. With idle set, it returns p ==
// nil for the last of them.
func (c *Client) next(timeout time.Duration, idle bool) (p packets.Packet, err error) {
	if c.err != nil {
		return nil, c.err
	}
	c.nc.SetReadDeadline(time.Now().Add(timeout))
	for {
		p, err = c.r.ReadPacket()
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				c.err = err
			}
			return nil, err
		}
		if _, ok := p.(*packets.Pingresp); !ok || len(c.pings) == 0 {
			return p, nil
		}
		ours := c.pings[0]
		if c.pings = c.pings[1:]; !ours {
			return p, nil
		}
		if idle && len(c.pings) == 0 {
			return nil, nil
		}
	}
}

// link returns the broker's end of the connection.
func (c *Client) link() *link {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	for _, k := range c.b.links {
		if k.via == net.Listener(c.b.memory) &&
			k.nc.RemoteAddr().String() == c.nc.LocalAddr().String() {
			return k
		}
	}
	return nil
}

// seen records that the test knows how the connection ended.
func (c *Client) seen() {
	if k := c.link(); k != nil {
		k.mu.Lock()
		k.expected = true
		k.mu.Unlock()
	}
}

// fail ends the test.
func (c *Client) fail(why, want, got string) {
	c.t.Helper()
	trace := "its connection is no longer remembered\n"
	if c.b.Broker() == nil {
		trace = "the broker is stopped: Start starts it\n"
	}
	if k := c.link(); k != nil {
		if c.err != nil { // the broker's reason comes a moment later
			c.b.waitWithin(time.Second, func(bool) bool {
				k.mu.Lock()
				defer k.mu.Unlock()
				return k.ended
			})
		}
		trace = k.String()
	}
	if c.err != nil {
		c.seen()
	}
	c.t.Fatalf("mqtttest: client %q: %s\n  want %s\n  got  %s\n%s", c.id, why, want, got, trace)
}

// equal compares packets in their wire form.
func equal(got, want packets.Packet, v packets.Version) bool {
	if got.Type() != want.Type() {
		return false
	}
	got = forgive(got, want)
	a, err := got.Append(nil, v)
	if err != nil {
		panic(fmt.Sprintf("BUG: %s was received and cannot be encoded: %v", packets.Trace(got),
			err))
	}
	b, err := want.Append(nil, v)
	return err == nil && bytes.Equal(a, b)
}

// forgive returns got without the properties that want does not care about.
func forgive(got, want packets.Packet) packets.Packet {
	switch w := want.(type) {
	case *packets.Connack:
		if g := *got.(*packets.Connack); w.Properties == nil {
			g.Properties = nil
			return &g
		}
	case *packets.Ack:
		if g := *got.(*packets.Ack); w.Properties == nil {
			g.Properties = nil
			return &g
		}
	case *packets.Suback:
		if g := *got.(*packets.Suback); w.Properties == nil {
			g.Properties = nil
			return &g
		}
	case *packets.Unsuback:
		if g := *got.(*packets.Unsuback); w.Properties == nil {
			g.Properties = nil
			return &g
		}
	case *packets.Disconnect:
		if g := *got.(*packets.Disconnect); w.Properties == nil {
			g.Properties = nil
			return &g
		}
	}
	return got
}
