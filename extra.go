package dunlin

import (
	"context"

	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/internal/written"
)

// This file is what few connections and few Sessions need.

// connExtra is what few connections need. The reader makes it when it is first needed.
type connExtra struct {
	// Immutable once the CONNECT is accepted.
	base   context.Context // what ServeConn was given
	mount  string
	method string        // Authentication Method
	pace   *guard.Pace   // what the owner of the client may publish; nil: as much as it likes
	wake   chan struct{} // capacity 1: a pause for pace is to end
	// The longest Session Expiry Interval that it was granted; 0: that of Config
	expiry uint32

	// Made by the reader, then immutable. Guarded by sess.mu once there is a Session.
	ctx    context.Context
	cancel context.CancelFunc

	// Owned by the reader.
	aliases  clientAliases
	exchange *exchange // the authentication under way; nil: none is

	flowing flowing // see there
	below   *undelivered
	delayer *delayer // of its delayed messages; nil: there was none

	// Guarded by sess.mu.
	outAliases *outAliases  // nil: the client accepts none
	expires    timers.Timer // when its authentication ends
}

// sessionExtra is what few Sessions have. Guarded by the mu of the Session.
type sessionExtra struct {
	reads *readings // kept decisions about deliveries; nil: none
	shows *answers  // what a hook has made of messages that are about to be sent; nil: none
	drops Drops     // since the Session began, or the Broker
	round round     // of a client for which messages wait
	// The Topic Filters that the client wrote and a hook has replaced; nil: none
	written *written.Filters
	stuck   stuck // what it has not acknowledged when memory was scarce
	// Closed when subscriptions that are being revoked are gone with what they have brought; nil:
	// none are
	revoking chan struct{}
}

// makeExtraLocked returns the sessionExtra of s for writing. s.mu is held.
func (s *session) makeExtraLocked() *sessionExtra {
	if s.extra == nil {
		s.extra = new(sessionExtra)
	}
	return s.extra
}

var noExtra connExtra

// readExtra returns the connExtra of c for reading. It is never nil.
func (c *conn) readExtra() *connExtra {
	if c.extra == nil {
		return &noExtra
	}
	return c.extra
}

// makeExtra returns the connExtra of c for writing. Only the reader calls it, before the connection
// is accepted or for what the reader owns.
func (c *conn) makeExtra() *connExtra {
	switch {
	case c.extra != nil:
	case c.sess == nil: // shut looks for it
		c.b.mu.Lock()
		c.extra = new(connExtra)
		c.b.mu.Unlock()
	default: // others look for it as well
		c.sess.mu.Lock()
		c.extra = new(connExtra)
		c.sess.mu.Unlock()
	}
	return c.extra
}

// context returns the context for hooks: it ends with the connection. It is made when the first
// hook needs it.
func (c *conn) context() context.Context {
	r := c.makeExtra()
	if r.ctx == nil {
		base := r.base
		if base == nil {
			base = c.b.ctx
		}
		if f := c.b.cfg().ConnContext; f != nil {
			lock.NoneHeld("a call of a hook")
			base = f(base, c.nc.NetConn())
		}
		ctx, cancel := context.WithCancel(base)
		if base != c.b.ctx { // which need not end with the Broker
			end, release := cancel, context.AfterFunc(c.b.ctx, cancel)
			cancel = func() { release(); end() }
		}
		if c.sess == nil { // shut looks for it
			c.b.mu.Lock()
			if r.ctx, r.cancel = ctx, cancel; c.b.closed || c.b.early[c] {
				cancel() // dismissLocked came too early to do it
			}
			c.b.mu.Unlock()
		} else { // others look for it as well
			c.sess.mu.Lock()
			if r.ctx, r.cancel = ctx, cancel; c.stopping != nil {
				cancel() // stop came too early to do it
			}
			c.sess.mu.Unlock()
		}
	}
	return r.ctx
}
