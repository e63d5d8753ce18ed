package dunlin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/tap"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what the Broker remembers of connections that are over and of messages that were
// lost, and how it shows packets to those who watch.

// Names of package hooks that callers of Ended, LastDrops and Tap need.
type (
	// Ending is a connection that ended, or was refused.
	Ending = hooks.Ending
	// Drop is a message that did not reach a client.
	Drop = hooks.Drop
	// Tap shows packets.
	Tap = hooks.Tap
	// TapOptions say which packets a Tap shows.
	TapOptions = hooks.TapOptions
	// TapPacket is a packet that a Tap shows.
	TapPacket = hooks.TapPacket
)

// Ended returns the connections of a client that ended last, and those that were refused, newest
// first; of all clients if clientID is empty. Config.MaxEnded bounds how many there are. Refused
// connections have the Client Identifier of the CONNECT, as far as that could be read.
func (b *Broker) Ended(clientID string) []Ending { return b.stats.endings.All(clientID) }

// LastDrops returns the messages that were lost last, newest first. Config.MaxDrops bounds how many
// there are. Drops of the same client, topic and reason are one, with a count. Stats has the number
// of all.
func (b *Broker) LastDrops() []Drop { return b.stats.drops.All() }

// An endedConn is what is remembered of a connection.
type endedConn struct {
	client   *hooks.Client
	accepted bool
	code     packets.ReasonCode
	err      error
	came, at time.Time
	expiry   uint32 // of the Session, in seconds
}

// noteEnd remembers the end of c. Its reader calls it.
func (b *Broker) noteEnd(c *conn, code packets.ReasonCode, err error) {
	x := endedConn{client: c.client, accepted: c.accepted, code: code, err: err, at: time.Now()}
	if !c.accepted {
		x.client, x.came = c.clientOrStranger(), b.started.Add(c.lastPacket)
	} else {
		x.came = b.started.Add(c.at)
		c.sess.mu.Lock()
		x.expiry = c.sess.expiry
		c.sess.mu.Unlock()
	}
	b.noteEnding(x)
}

func (b *Broker) noteEnding(x endedConn) {
	e := Ending{
		Refused: !x.accepted, Cause: endCause(&x), Code: x.code,
		ClientID: x.client.ID, Principal: x.client.Identity.Principal, User: x.client.Username,
		Version: x.client.Version, ConnectedAt: x.came, EndedAt: x.at,
		SessionExpiry: time.Duration(x.expiry) * time.Second,
	}
	if x.err != nil {
		e.Err = x.err.Error()
	}
	if a := x.client.RemoteAddr; a != nil {
		e.Address = a.String()
	}
	if l := x.client.Listener; l != nil {
		e.Listener = l.Name
	}
	b.stats.endings.Add(e)
}

// endCause says why a connection ended.
func endCause(x *endedConn) hooks.EndCause {
	left, said := errors.AsType[*clientLeft](x.err)
	switch {
	case said && left.code == packets.DisconnectWithWill:
		return hooks.EndClientWithWill
	case said:
		return hooks.EndClientFailed
	case errors.Is(x.err, link.ErrWrite):
		return hooks.EndWriteFailed
	}
	return recent.CauseOf(x.err, !x.accepted)
}

// Tap shows packets of connections, in both directions, until ctx ends, the Tap is stopped, or one
// of the bounds in o is reached. At most 16 Taps may be open at a time. A Tap shows no passwords,
// no Authentication Data, and no User Names that are tokens. It shows other User Names. While no
// Tap is open it costs nothing to speak of. A Tap that is not read loses packets and delays nobody.
//
// The error is ErrBrokerClosed, or says what is wrong with o.
func (b *Broker) Tap(ctx context.Context, o TapOptions) (Tap, error) {
	x, err := b.stats.taps.Start(ctx, o)
	switch {
	case err == tap.ErrClosed:
		return nil, ErrBrokerClosed
	case err != nil:
		return nil, fmt.Errorf("dunlin: Tap: %w", err)
	}
	return x, nil
}

// show shows data, which are whole packets from or to the client, to those who watch. The reader
// calls it, or whoever holds the lock of the Session of c.
func (c *conn) show(way tap.Way, now time.Time, data []byte) {
	on := c.b.stats.taps.On()
	if on == nil || len(data) == 0 {
		return
	}
	client := c.clientOrStranger()
	if !on.Watches(client) {
		return // the packets of most clients are not shown
	}
	on.See(tap.Who{Conn: c.serial, Client: client, Mount: c.readExtra().mount, Version: c.version},
		now, way, data)
}
