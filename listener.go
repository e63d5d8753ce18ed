package dunlin

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"net"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/traffic"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what the broker knows of a listener that the program has described.

// A door is a listener with a description. All its methods may be called on nil, which is a
// listener without one.
type door struct {
	*hooks.Listener              // immutable
	open            atomic.Int32 // connections
	serving         int          // calls of ServeListener; guarded by Broker.mu
}

// openDoor returns the door of a description, which is one as long as it is served.
func (b *Broker) openDoor(as *hooks.Listener) *door {
	if as == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.doors[as]
	if d == nil {
		if b.doors == nil {
			b.doors = make(map[*hooks.Listener]*door)
		}
		d = &door{Listener: as}
		b.doors[as] = d
	}
	d.serving++
	return d
}

func (b *Broker) closeDoor(d *door) {
	if d == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.serving--; d.serving == 0 {
		delete(b.doors, d.Listener)
	}
}

// enter counts a connection, if there is room for it. leave must follow when it ends.
func (d *door) enter() error {
	if d == nil {
		return nil
	}
	if n := d.open.Add(1); d.MaxConnections > 0 && int(n) > d.MaxConnections {
		d.open.Add(-1)
		return recent.As(hooks.EndListenerFull, packets.Errorf(packets.ServerBusy,
			"more than %d connections from the listener %q", d.MaxConnections, d.Name))
	}
	return nil
}

func (d *door) leave() {
	if d != nil {
		d.open.Add(-1)
	}
}

// described is the Listener for a hooks.Client.
func (d *door) described() *hooks.Listener {
	if d == nil {
		return nil
	}
	return d.Listener
}

// class is what connections from d with a version of the protocol, 0 if it is not known, count for.
func (d *door) class(b *Broker, v packets.Version) *traffic.Class {
	k := traffic.Key{Version: byte(v)}
	if d != nil {
		k.Listener = d.Name
	}
	return b.stats.traffic.Of(k)
}

// stranger is the Client of a connection whose CONNECT is not known.
func (d *door) stranger(nc net.Conn) *hooks.Client {
	return &hooks.Client{RemoteAddr: nc.RemoteAddr(), LocalAddr: nc.LocalAddr(),
		Listener: d.described()}
}

// clientOrStranger is the client of c, or what is known of it before its CONNECT.
func (c *conn) clientOrStranger() *hooks.Client {
	if c.client != nil {
		return c.client
	}
	return c.via.stranger(c.nc)
}

// introduce notes who the client says that it is. It gives the client an identifier if it sent
// none.
func (c *conn) introduce(p *packets.Connect) {
	client := &hooks.Client{
		ID: p.ClientID, Username: p.Username, HasUsername: p.HasUsername, Version: p.Version,
		Bridge:     p.Bridge,
		CleanStart: p.CleanStart, KeepAlive: p.KeepAlive,
		RemoteAddr: c.nc.RemoteAddr(), LocalAddr: c.nc.LocalAddr(), Listener: c.via.described(),
	}
	if len(p.Properties) > 0 {
		client.Properties = append(packets.Properties(nil), p.Properties...)
	}
	if client.ID == "" {
		client.ID = newClientID()
	}
	if x, ok := c.nc.NetConn().(interface{ ConnectionState() tls.ConnectionState }); ok {
		st := x.ConnectionState()
		client.TLS = &st
	}
	c.client = client
}

func newClientID() string {
	var b [12]byte
	rand.Read(b[:])
	return "dunlin-" + hex.EncodeToString(b[:])
}
