// Package inband is for clients that cannot send a password with their CONNECT. They connect
// without one. Their first packet after that is a PUBLISH to an agreed topic, with the token as its
// payload.
package inband

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// Options say how clients are asked. Topic, MaxConnect and Timeout are needed, and MaxAsked by
// Listen.
type Options struct {
	Topic      string        // of the PUBLISH with the token
	MaxConnect int           // the largest packet of a client until it is let in, in bytes
	Timeout    time.Duration // for everything until the token is there
	// Connack fills in Session Present and the properties of the CONNACK, which the client gets
	// before its token has come.
	Connack func(*packets.Connect, *packets.Connack)
	// MaxAsked is how many connections of a Listen may not have shown their token yet. Admit, if it
	// is there, returns an error for an address that is not asked.
	MaxAsked int
	Admit    func(net.Addr) error
	// Answered is told whether the server that let the client in has a Session for it. If the
	// client's CONNACK said something else, its connection ends, so that it comes back.
	Answered func(clientID string, present bool)
}

// A conn gives the server a CONNECT with the token as its password, and the client the
// acknowledgement of its PUBLISH where the server sends its CONNACK.
type conn struct {
	net.Conn
	o       Options
	in      io.Reader
	connect *packets.Connect
	auth    *packets.Publish // what the client waits for the answer to; nil: nothing
	present bool             // what the client was told of its Session
}

// Ask reads from a new connection until it has a token, or a CONNECT with a password. It returns a
// connection from which the server reads a CONNECT with the token as its password. The first Write
// of the server must begin with the whole CONNACK. After an error the caller closes nc.
func Ask(nc net.Conn, o Options) (net.Conn, error) {
	nc.SetDeadline(time.Now().Add(o.Timeout))
	buffered := bufio.NewReader(nc)
	r := packets.NewReader(oneByte{buffered}, packets.Limits{PacketSize: o.MaxConnect,
		UserProperties: 100})
	first, err := r.ReadPacket()
	if err != nil {
		return nil, err
	}
	p, ok := first.(*packets.Connect)
	if !ok {
		return nil, errors.New("the first packet is not a CONNECT")
	}
	c := &conn{Conn: nc, o: o, connect: p}
	if !p.HasPassword {
		if err := c.ask(r); err != nil {
			return nil, err
		}
	}
	wire, err := p.Append(nil, p.Version)
	if err != nil {
		return nil, err
	}
	c.in = io.MultiReader(bytes.NewReader(wire), buffered)
	nc.SetDeadline(time.Time{})
	return c, nil
}

// ask answers the CONNECT, reads the token, and puts it into the CONNECT.
func (c *conn) ask(r *packets.Reader) error {
	p, ack := c.connect, &packets.Connack{}
	if p.ClientID == "" {
		p.ClientID = rand.Text()
		ack.Properties = ack.Properties.AppendText(packets.AssignedClientIdentifier, p.ClientID)
	}
	if c.o.Connack != nil {
		c.o.Connack(p, ack)
	}
	c.present = ack.SessionPresent
	if err := c.send(ack); err != nil {
		return err
	}
	next, err := r.ReadPacket()
	if err != nil {
		return err
	}
	auth, ok := next.(*packets.Publish)
	if !ok || string(auth.Topic) != c.o.Topic || auth.Retain {
		c.refuse()
		return errors.New("the first packet after CONNECT is not a PUBLISH to " + c.o.Topic)
	}
	c.auth = auth
	p.HasUsername, p.HasPassword, p.Password = true, true, auth.Payload
	return nil
}

func (c *conn) send(p packets.Packet) error {
	b, err := p.Append(nil, c.connect.Version)
	if err == nil {
		_, err = c.Conn.Write(b)
	}
	return err
}

// refuse tells a client of 5.0 why its connection ends.
func (c *conn) refuse() {
	if c.connect.Version == packets.V5 {
		c.send(&packets.Disconnect{Code: packets.NotAuthorized})
	}
}

// Read reads what the client sends, after the CONNECT.
func (c *conn) Read(b []byte) (int, error) { return c.in.Read(b) }

// Write writes what the server sends, of which the first is its CONNACK.
func (c *conn) Write(b []byte) (int, error) {
	if c.auth == nil {
		return c.Conn.Write(b)
	}
	auth := c.auth
	c.auth = nil
	h, err := packets.ParseHeader(b, c.connect.Version)
	if err != nil || h.Type != packets.TypeConnack || len(b) < h.Len+h.Remaining {
		return 0, errors.New("the server's first bytes are not a CONNACK")
	}
	present, failed := b[h.Len]&1 == 1, b[h.Len+1] != 0
	if !failed && c.o.Answered != nil {
		c.o.Answered(c.connect.ClientID, present)
	}
	if failed || present != c.present {
		c.refuse()
		return 0, errors.New("the server has refused the client, or has lost its Session")
	}
	switch auth.QoS {
	case packets.QoS1:
		err = c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: auth.PacketID})
	case packets.QoS2: // the server answers the PUBREL
		err = c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: auth.PacketID})
	}
	n := h.Len + h.Remaining
	if err == nil && len(b) > n {
		var more int
		more, err = c.Conn.Write(b[n:])
		n += more
	}
	return n, err
}

// oneByte reads byte by byte, so that a packets.Reader does not read ahead.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:min(1, len(b))]) }
