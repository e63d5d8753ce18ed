package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/inband"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A proxy connects clients with a broker.
type proxy struct {
	upstream               string
	maxPacket              int // the largest from a client, in bytes
	admit                  func(context.Context, *packets.Connect, net.Addr) (*admission, error)
	fromClient, fromServer []filter
	inband                 *inband.Options // for clients that publish their password; nil: none do
}

// An admission is what a client may do. The CONNECT has been changed to what the broker is to see.
type admission struct{ fromClient, fromServer []filter }

// A filter sees each packet of one direction and returns what goes on, nil for nothing, and what
// goes back to where the packet came from. An error ends the connection. It is called by one
// goroutine at a time for each direction of a connection.
type filter func(p packets.Packet, v packets.Version) (on, back packets.Packet, err error)

// connectTimeout bounds everything up to the moment when packets flow.
const connectTimeout = 10 * time.Second

// A side is one end of a proxied connection.
type side struct {
	nc net.Conn
	r  *packets.Reader
	v  packets.Version

	mu sync.Mutex // for writing: both directions may have something for this side
}

func (s *side) write(p packets.Packet) error {
	b, err := p.Append(nil, s.v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err = s.nc.Write(b)
	return err
}

// serve serves one client until either side closes or ctx ends.
func (p *proxy) serve(ctx context.Context, nc net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer nc.Close()
	raw := nc
	context.AfterFunc(ctx, func() { raw.Close() })
	if p.inband != nil {
		var err error
		if nc, err = inband.Ask(nc, *p.inband); err != nil {
			return err
		}
	}
	client := &side{nc: nc, r: packets.NewReader(nc,
		packets.Limits{PacketSize: p.maxPacket, Filters: 1000, UserProperties: 1000})}
	nc.SetDeadline(time.Now().Add(connectTimeout))
	first, err := client.r.ReadPacket()
	if err != nil {
		return err
	}
	connect, ok := first.(*packets.Connect)
	if !ok {
		return errors.New("the first packet is no CONNECT")
	}
	client.v = connect.Version
	allowed, err := p.admit(ctx, connect, nc.RemoteAddr())
	if err != nil {
		client.write(&packets.Connack{Code: packets.CodeOf(err)})
		return err
	}
	var d net.Dialer
	dialing, done := context.WithTimeout(ctx, connectTimeout)
	up, err := d.DialContext(dialing, "tcp", p.upstream)
	done()
	if err != nil {
		client.write(&packets.Connack{Code: packets.ServerUnavailable})
		return err
	}
	defer up.Close()
	context.AfterFunc(ctx, func() { up.Close() })
	server := &side{nc: up, r: packets.NewReader(up, packets.Limits{}), v: connect.Version}
	server.r.SetVersion(connect.Version)
	// From here on the broker looks after the Keep Alive.
	nc.SetDeadline(time.Time{})
	if err := server.write(connect); err != nil {
		return err
	}
	back := make(chan error, 1)
	go func() { // ends when this function closes both sides
		back <- pump(server, client, append(allowed.fromServer, p.fromServer...))
		cancel()
	}()
	err = pump(client, server, append(allowed.fromClient, p.fromClient...))
	cancel()
	if other := <-back; errors.Is(err, net.ErrClosed) { // because the other direction has ended
		err = other
	}
	if err == io.EOF || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// pump takes packets from one side to the other until one of them ends, and returns why.
func pump(from, to *side, filters []filter) error {
	for {
		p, err := from.r.ReadPacket()
		if err != nil {
			return err
		}
		for _, f := range filters {
			var back packets.Packet
			if p, back, err = f(p, from.v); err == nil && back != nil {
				err = from.write(back)
			}
			if err != nil {
				return err
			}
			if p == nil {
				break
			}
		}
		if p == nil {
			continue
		}
		if err := to.write(p); err != nil {
			return err
		}
	}
}

// withoutAliases keeps Topic Aliases out of both directions, so that every PUBLISH names its topic:
// the client is not told that the broker accepts any. That the client accepts none is said to the
// broker by the CONNECT; see admit.
func withoutAliases(p packets.Packet, _ packets.Version) (on, back packets.Packet, err error) {
	if a, ok := p.(*packets.Connack); ok {
		a.Properties = a.Properties.Without(nil, packets.TopicAliasMaximum)
	}
	return p, nil, nil
}
