package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is for clients that cannot send a password with their CONNECT. They connect without
// one. The first packet after that is a PUBLISH to service/auth, and its payload is the token.

const (
	authTopic     = "service/auth"
	inbandPrefix  = "inband/" // of the Client Identifiers at the broker
	inbandTimeout = 10 * time.Second
	maxInband     = 1000 // connections that have not shown their token yet
)

// inbandKey is in the context of connections that serveInband has accepted.
type inbandKey struct{}

// serveInband serves clients that show their token in a PUBLISH until l is closed.
func (s *service) serveInband(ctx context.Context, l net.Listener) error {
	places := make(chan struct{}, maxInband)
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return err
		}
		if err != nil { // such as too many open files
			time.Sleep(10 * time.Millisecond)
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			nc.Close()
			continue
		}
		if s.broker.Admits(nc.RemoteAddr()) != nil {
			nc.Close()
			<-places
			continue
		}
		go func() { // ends within inbandTimeout, or with the connection
			c, err := s.greet(nc)
			<-places
			if err != nil {
				nc.Close()
				return
			}
			s.broker.ServeConn(context.WithValue(ctx, inbandKey{}, true), c)
		}()
	}
}

// An inbandConn gives the broker a CONNECT with the token as its password, and the client the
// acknowledgement of its PUBLISH where the broker sends its CONNACK: the client has got one before.
type inbandConn struct {
	net.Conn
	in      io.Reader
	version packets.Version
	auth    *packets.Publish // what the client waits for the answer to; nil: nothing
	present bool             // what the client was told of its Session
}

// greet reads from a new connection until it has a token or a password.
func (s *service) greet(nc net.Conn) (net.Conn, error) {
	nc.SetDeadline(time.Now().Add(inbandTimeout))
	buffered := bufio.NewReader(nc)
	r := packets.NewReader(oneByte{buffered}, packets.Limits{PacketSize: maxConnect,
		UserProperties: maxProperties})
	first, err := r.ReadPacket()
	if err != nil {
		return nil, err
	}
	p, ok := first.(*packets.Connect)
	if !ok {
		return nil, errors.New("the first packet is not a CONNECT")
	}
	c := &inbandConn{Conn: nc, version: p.Version}
	if !p.HasPassword {
		if err := c.ask(s, r, p); err != nil {
			return nil, err
		}
	}
	connect, err := p.Append(nil, p.Version)
	if err != nil {
		return nil, err
	}
	c.in = io.MultiReader(bytes.NewReader(connect), buffered)
	nc.SetDeadline(time.Time{})
	return c, nil
}

// ask answers a CONNECT, reads the token, and puts it into the CONNECT.
func (c *inbandConn) ask(s *service, r *packets.Reader, p *packets.Connect) error {
	ack := &packets.Connack{}
	if p.ClientID == "" {
		p.ClientID = rand.Text()
		ack.Properties = ack.Properties.AppendText(packets.AssignedClientIdentifier, p.ClientID)
	} else if _, ok := s.broker.Session(inbandPrefix + p.ClientID); ok {
		ack.SessionPresent = !p.CleanStart
	}
	c.present = ack.SessionPresent
	ack.Properties = ack.Properties.AppendUint(packets.ReceiveMaximum, receiveMaximum)
	ack.Properties = ack.Properties.AppendUint(packets.MaximumPacketSize, maxPacket)
	ack.Properties = ack.Properties.AppendUint(packets.RetainAvailable, 0)
	ack.Properties = ack.Properties.AppendUint(packets.SharedSubscriptionAvailable, 0)
	if n, _ := p.Properties.Uint(packets.SessionExpiryInterval); n > uint32(maxTTL/time.Second) {
		ack.Properties = ack.Properties.AppendUint(packets.SessionExpiryInterval,
			uint32(maxTTL/time.Second))
	}
	if err := c.send(ack); err != nil {
		return err
	}
	next, err := r.ReadPacket()
	if err != nil {
		return err
	}
	auth, ok := next.(*packets.Publish)
	if !ok || string(auth.Topic) != authTopic || auth.Retain {
		c.refuse()
		return errors.New("the first packet after CONNECT is not a PUBLISH to " + authTopic)
	}
	c.auth = auth
	p.HasUsername, p.HasPassword, p.Password = true, true, auth.Payload
	return nil
}

func (c *inbandConn) send(p packets.Packet) error {
	b, err := p.Append(nil, c.version)
	if err == nil {
		_, err = c.Conn.Write(b)
	}
	return err
}

// refuse tells a client of 5.0 why its connection ends.
func (c *inbandConn) refuse() {
	if c.version == packets.V5 {
		c.send(&packets.Disconnect{Code: packets.NotAuthorized})
	}
}

func (c *inbandConn) Read(b []byte) (int, error) { return c.in.Read(b) }

// Write writes what the broker sends, of which the first is its CONNACK.
func (c *inbandConn) Write(b []byte) (int, error) {
	if c.auth == nil {
		return c.Conn.Write(b)
	}
	auth := c.auth
	c.auth = nil
	h, err := packets.ParseHeader(b, c.version)
	if err != nil || h.Type != packets.TypeConnack || len(b) < h.Len+h.Remaining {
		return 0, errors.New("the broker's first bytes are not a CONNACK")
	}
	rest := b[h.Len+h.Remaining:]
	present, failed := b[h.Len]&1 == 1, b[h.Len+1] != 0
	if failed || present != c.present {
		c.refuse()
		return 0, errors.New("refused")
	}
	switch auth.QoS {
	case packets.QoS1:
		err = c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: auth.PacketID})
	case packets.QoS2: // the broker answers the PUBREL
		err = c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: auth.PacketID})
	}
	if err != nil || len(rest) == 0 {
		return len(b), err
	}
	n, err := c.Conn.Write(rest)
	return h.Len + h.Remaining + n, err
}

// oneByte reads byte by byte, so that a packets.Reader does not read ahead.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:min(1, len(b))]) }
