package dunlin

import (
	"context"
	"iter"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what the Broker tells of Sessions and retained messages, and what a program can do
// to a Session.

// SessionInfo is a copy of what the Broker knows of a Session.
type SessionInfo struct {
	ClientID  string
	Principal string // also one that its client has only claimed, see Unverified of hooks.Identity
	// Client is nil while no Network Connection is open.
	Client        *hooks.Client
	Subscriptions []packets.Subscription
	// Queued messages wait; Inflight ones are sent and not acknowledged.
	Queued, QueuedBytes, Inflight int
	// ExpiresAt is zero while connected, and for Sessions that never expire.
	ExpiresAt time.Time
}

// Sessions yields all Sessions in the order of their Client Identifiers, then of their principals.
// What it yields are copies, each made when it is its turn; no lock is held meanwhile. A Session
// that begins or ends meanwhile may be among them. Of the program's own Subscriptions it has those
// with a Name, under "$local/" and that, and not those without.
func (b *Broker) Sessions() iter.Seq[SessionInfo] {
	return func(yield func(SessionInfo) bool) {
		for s := range b.allSessions() {
			if info, ok := s.info(); ok && !yield(info) {
				return
			}
		}
	}
}

// Session returns the Session of a client. ok is false if there is none. With SessionPerPrincipal
// it is the one of the first principal.
func (b *Broker) Session(clientID string) (info SessionInfo, ok bool) {
	for _, s := range b.ofClient(clientID) {
		if info, ok = s.info(); ok {
			break
		}
	}
	return info, ok
}

func (s *session) info() (info SessionInfo, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return info, false
	}
	info = SessionInfo{ClientID: s.id, Principal: s.principal, Queued: int(s.out.queue.Len()),
		QueuedBytes: s.out.bytes, Inflight: int(s.out.live)}
	if s.conn != nil {
		info.Client = s.conn.client
	} else {
		info.ExpiresAt = s.expiresAt()
	}
	if s.num != 0 {
		s.b.tree.Each(s.num, func(group, filter string, o subs.Options) bool {
			info.Subscriptions = append(info.Subscriptions, asWritten(group, filter, &o))
			return true
		})
	}
	return info, true
}

// Retained yields the retained messages whose topics match filter, in the order of their topics.
// They are shared: nobody may modify them.
func (b *Broker) Retained(filter string) iter.Seq[*Message] {
	return func(yield func(*Message) bool) {
		for from, more := "", true; more; {
			f := b.retained.Scan(filter, from, 64, walkLook, nil)
			now := time.Now().UnixNano()
			for _, m := range f.Messages {
				if (m.Expires == 0 || m.Expires > now) && !yield(&m.Message) {
					return
				}
			}
			from, more = f.Next, f.Next != ""
		}
	}
}

// Disconnect ends the connection of a client with a Reason Code, which one of 5.0 is told. A code
// that a server has no use for in DISCONNECT (3.14.2.1), as 0x00 and 0x04, becomes Administrative
// action (0x98). The client's Will is published. It returns false if no connection has that Client
// Identifier. With SessionPerPrincipal it ends those of all principals.
func (b *Broker) Disconnect(clientID string, code ReasonCode) bool {
	if !code.Failed() || !code.ValidIn(packets.TypeDisconnect) {
		code = packets.AdministrativeAction
	}
	found := false
	for _, s := range b.ofClient(clientID) {
		found = s.disconnect(&packets.Error{Code: code}) || found
	}
	return found
}

// disconnect ends the connection of s, if it has one.
func (s *session) disconnect(why *packets.Error) bool {
	s.mu.Lock()
	c := s.conn
	if c != nil {
		c.stop(why)
	}
	s.mu.Unlock()
	if c == nil {
		return false
	}
	c.flush(time.Now())
	return true
}

// DeleteSession ends the Session of a client, with its subscriptions and queue, and disconnects it
// with Administrative action (0x98) if it is there. A Will is published. found is false if there
// was no Session. With SessionPerPrincipal it ends those of all principals.
//
// With a Store it waits until the end is durable, or ctx ends. The error is the cause of ctx,
// ErrBrokerClosed, or that of a Store which fails: Quota exceeded (0x97) while it is full. If ctx
// had ended before, nothing has happened. Otherwise the Session has ended all the same, but may be
// there again after a crash; the Broker goes on trying.
func (b *Broker) DeleteSession(ctx context.Context, clientID string) (found bool, err error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	of := b.ofClient(clientID)
	if len(of) > 0 {
		b.work(func(t *turn) {
			for _, s := range of {
				s.mu.Lock()
				sub := s.local
				s.mu.Unlock()
				if sub != nil {
					sub.end(ErrSubscriptionClosed, sessionEnds)
				}
				b.endSession(t, s, packets.Errorf(packets.AdministrativeAction,
					"the session was deleted"))
			}
		})
	}
	if b.journal != nil {
		err = b.journal.Sync(ctx)
	}
	return len(of) > 0, err
}
