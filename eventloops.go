package dunlin

import (
	"errors"
	"net"
	"runtime"

	"github.com/dunlin-mqtt/dunlin/internal/link"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/loop"
)

// This file is which connections have no goroutine of their own. Their turns are in seat.go.

// EventLoops says how the Broker waits for the packets of clients.
type EventLoops byte

const (
	// EventLoopsAuto is EventLoopsOn, but EventLoopsOff if the Observer has functions that are
	// called for messages (Published, Delivered, Acknowledged, Dropped, Settled): one that does
	// not return at once then holds up its client only.
	EventLoopsAuto EventLoops = iota
	// EventLoopsOn serves plain TCP and unix connections without a goroutine for each, on Linux. An
	// idle connection then takes less memory, and a packet that comes alone less time. There are
	// GOMAXPROCS loops, each with one goroutine. Before a packet waits for a hook, for the Store,
	// for room or for a slow client, another goroutine goes on with the loop, so that no other
	// client waits for it. But the functions of the Observer that are called for messages, and the
	// Logger, hold up other clients for as long as they run: they must return at once.
	//
	// The listener given to Serve must be a *net.TCPListener or *net.UnixListener itself.
	// Connections of any other listener, such as one for TLS or WebSocket, and those of ServeConn,
	// have a goroutine each. So have all where ConnContext is set, which could close the net.Conn,
	// and all on other systems.
	EventLoopsOn
	// EventLoopsOff gives each connection a goroutine.
	EventLoopsOff
)

// A seat is the place of a connection on an event loop.
type seat struct {
	loop.Seat
	c      *conn
	worker *loop.Worker // that runs the turn; nil between turns. Owned by the reader
	drains bool         // a short read does not say that all is read. Immutable
}

// plain says whether l gives connections that an event loop can serve: sockets of the system, which
// nobody else knows, so that nobody else closes them.
func plain(l net.Listener) bool {
	switch l.(type) {
	case *net.TCPListener, *net.UnixListener:
		return link.RawIO
	}
	return false
}

// loopsFor returns the event loops for the connections of a listener, nil if they have a
// goroutine each. The caller is one of b.serving.
func (b *Broker) loopsFor(plain bool) *loop.Loops {
	cfg := b.cfg()
	on := cfg.EventLoops == EventLoopsOn ||
		cfg.EventLoops == EventLoopsAuto && autoLoops && !b.tellsOfMessages()
	if !plain || !on || cfg.ConnContext != nil {
		return nil
	}
	lock.NoneHeld("the start of event loops")
	b.startLoops.Do(func() {
		ls, err := loop.New(runtime.GOMAXPROCS(0))
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			b.log.Warn("no event loops: each connection has a goroutine", "err", err)
		}
		if err == nil {
			b.loops = ls
		}
	})
	return b.loops
}

// newSeat returns the seat of c, which loops are going to serve.
func newSeat(c *conn) *seat {
	_, unix := c.nc.NetConn().(*net.UnixConn)
	return &seat{c: c, drains: unix}
}
