package dunlin

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what the Broker tells of Sessions and retained messages, and what a program can do
// to a Session.

// SessionInfo is a copy of what the Broker knows of a Session. Fields are added in minor releases.
type SessionInfo struct {
	ClientID  string
	Principal string // also one that its client has only claimed, see Unverified of hooks.Identity
	// Client is nil while no Network Connection is open. It has the addresses, the protocol
	// version, the listener and the TLS state.
	Client *hooks.Client
	// Subscriptions are those that the client made, Given those that the server made for it. Both
	// are empty in what SessionsFrom yields: see SubscriptionsFrom. SubscriptionCount is that of
	// Subscriptions.
	Subscriptions, Given []packets.Subscription
	SubscriptionCount    int
	// Replaced has the Topic Filters that the client wrote and Config.SubscribeInterceptor has
	// replaced. The value is the filter that replaced it, without the mount point. It is nil if
	// there are none, and in what SessionsFrom yields.
	Replaced map[string]string
	// Expiry is the Session Expiry Interval in force, 0 if the Session ends with its connection. It
	// is math.MaxUint32 seconds if the Session never expires. ExpiresAt is when the Session
	// expires. It is zero while connected, and for Sessions that never expire.
	Expiry    time.Duration
	ExpiresAt time.Time
	// WillTopic is the topic of the Will without the mount point. It is empty if there is no Will.
	WillTopic string

	// Queued messages wait; Inflight ones are sent and not acknowledged. AwaitingPubrel counts the
	// QoS 2 messages that the client has sent and not released with PUBREL.
	Queued, QueuedBytes, Inflight, AwaitingPubrel int
	// OldestQueued is when the first of the queued messages came, to a tenth of a second, or when
	// the Broker loaded it from the Store. It is zero if none waits.
	OldestQueued time.Time
	// Dropped is what did not reach the client, and what was not taken from it, since the Session
	// began or the Broker started.
	Dropped Drops

	// The rest is about the Network Connection, and zero while none is open.

	// ConnectedAt is when the CONNECT was accepted, LastPacket when the last packet came from the
	// client, to a tenth of a second.
	ConnectedAt, LastPacket time.Time
	// KeepAlive is the Keep Alive in force, 0 for none.
	KeepAlive time.Duration
	// Received is what the client has published since it connected, Sent what was sent to it.
	Received, Sent Traffic
	// Unsent is how many bytes wait for the socket. BlockedSince is when the socket last took some
	// of those. It is zero if the socket has taken everything.
	Unsent       int
	BlockedSince time.Time
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

// SessionsFrom yields the Sessions as Sessions does, from a place on: each with a cursor, which is
// the place behind it. An empty cursor is the beginning. So a program can read a few Sessions at a
// time, however many there are:
//
//	for cursor, s := range b.SessionsFrom(after) {
//		page = append(page, s)
//		if after = cursor; len(page) == 50 {
//			break
//		}
//	}
//
// A cursor stays good when its Session ends. The Subscriptions are left out.
func (b *Broker) SessionsFrom(after string) iter.Seq2[string, SessionInfo] {
	return func(yield func(string, SessionInfo) bool) {
		for s := range b.sessionsBehind(after) {
			if info, ok := s.facts(); ok && !yield(s.place(), info) {
				return
			}
		}
	}
}

// info is facts with the Subscriptions.
func (s *session) info() (info SessionInfo, ok bool) {
	if info, ok = s.facts(); !ok {
		return info, false
	}
	s.mu.Lock()
	info.Replaced = s.writtenLocked().All()
	s.mu.Unlock()
	for sub := range s.subscriptions() {
		list := &info.Subscriptions
		if sub.By == subs.ByServer {
			list = &info.Given
		}
		*list = append(*list, asWritten(sub.Group, sub.Filter, &sub.Options))
	}
	return info, true
}

// facts returns what is known of s. ok is false if it has ended.
func (s *session) facts() (info SessionInfo, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return info, false
	}
	info = SessionInfo{
		ClientID: s.id, Principal: s.principal, SubscriptionCount: int(s.subs),
		Expiry: time.Duration(s.expiry) * time.Second, Queued: int(s.out.queue.Len()),
		QueuedBytes: s.out.bytes, Inflight: int(s.out.live), AwaitingPubrel: len(s.in.ids),
	}
	started := s.b.started
	if info.Queued > 0 {
		info.OldestQueued = tickedAt(started, s.out.queue.FrontAt())
	}
	if s.will != nil {
		info.WillTopic = strings.TrimPrefix(s.will.msg.Topic, s.will.mount)
	}
	if s.extra != nil {
		info.Dropped = s.extra.drops
	}
	c := s.conn
	if c == nil {
		info.ExpiresAt = s.expiresAt()
		return info, true
	}
	info.Client, info.KeepAlive = c.client, c.keepAlive/3*2
	info.ConnectedAt, info.LastPacket = started.Add(c.at), tickedAt(started, c.heard)
	info.Received, info.Sent, info.Unsent = c.inbound, c.outbound, c.out.Size()
	if c.blocked > 0 && info.Unsent > 0 { // not while somebody else tries to write
		info.BlockedSince = tickedAt(started, c.blocked-1)
	}
	return info, true
}

// SubscriptionInfo is a subscription and the Session that has it.
type SubscriptionInfo struct {
	ClientID, Principal string
	packets.Subscription
	ByServer bool // the server made it, see SubscribeClient
}

// SubscriptionsFrom yields the subscriptions of the Sessions of a client, or, if clientID is empty,
// of all Sessions: in the order of the Sessions, and those of one Session in the order in which
// they were made. The cursors are as those of SessionsFrom.
func (b *Broker) SubscriptionsFrom(clientID, after string) iter.Seq2[string, SubscriptionInfo] {
	return func(yield func(string, SubscriptionInfo) bool) {
		place, last := parseCursor(after)
		if last == nil {
			place = clientID
		}
		for s := b.sessionFrom(place); s != nil; s = b.sessionFrom(s.place() + "\x00") {
			if clientID != "" && s.id != clientID {
				return
			}
			if s.place() != place {
				last = nil
			}
			for {
				page := s.subscriptionPage(last, subscriptionPage)
				if len(page) == 0 {
					break
				}
				for i := range page {
					sub := &page[i]
					info := SubscriptionInfo{
						s.id, s.principal, asWritten(sub.Group, sub.Filter, &sub.Options),
						sub.By == subs.ByServer,
					}
					if !yield(cursorAt(s.place(), sub), info) {
						return
					}
				}
				last = &page[len(page)-1]
			}
		}
	}
}

// cursorAt is the cursor behind a subscription of the Session with a place.
func cursorAt(place string, sub *subs.Subscription) string {
	return fmt.Sprintf("%d %d %d %d %s%s%s", len(place), sub.Number, len(sub.Group), sub.By, place,
		sub.Group, sub.Filter)
}

// parseCursor is the reverse of cursorAt. The subscription is nil if cursor is none.
func parseCursor(cursor string) (place string, sub *subs.Subscription) {
	var n [4]int
	rest := cursor
	for i := range n {
		number, more, ok := strings.Cut(rest, " ")
		k, err := strconv.Atoi(number)
		if !ok || err != nil || k < 0 {
			return "", nil
		}
		n[i], rest = k, more
	}
	if n[0] > len(rest) || n[2] > len(rest)-n[0] {
		return "", nil
	}
	place, rest = rest[:n[0]], rest[n[0]:]
	return place, &subs.Subscription{Group: rest[:n[2]], Filter: rest[n[2]:], Number: uint32(n[1]),
		Options: subs.Options{By: subs.Maker(n[3])}}
}

// Retained yields the retained messages whose topics match filter, in the order of their topics.
// They are shared: nobody may modify them.
func (b *Broker) Retained(filter string) iter.Seq[*Message] {
	return func(yield func(*Message) bool) {
		for _, m := range b.RetainedFrom(filter, "") {
			if !yield(m) {
				return
			}
		}
	}
}

// RetainedFrom is Retained from a place on. The cursors are as those of SessionsFrom.
func (b *Broker) RetainedFrom(filter, after string) iter.Seq2[string, *Message] {
	return func(yield func(string, *Message) bool) {
		for from, more := after, true; more; {
			f := b.retained.Scan(filter, from, 64, walkLook, nil)
			now := time.Now().UnixNano()
			for _, m := range f.Messages {
				behind := m.Topic + "\x00" // no topic is between the two
				if (m.Expires == 0 || m.Expires > now) && !yield(behind, &m.Message) {
					return
				}
			}
			from, more = f.Next, f.Next != ""
		}
	}
}

// RetainedSince returns when m, which Retained or RetainedFrom has yielded, became the retained
// message of its topic, to a tenth of a second. The time is zero if the Broker does not know it: m
// was loaded from the Store, or the Store refused a message that was to replace m, or m is not
// retained any more.
func (b *Broker) RetainedSince(m *Message) (since time.Time) {
	if at := b.retained.Since(m); at > 0 {
		since = tickedAt(b.started, at-1)
	}
	return since
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
				b.endSession(t, s, recent.As(hooks.EndSessionDeleted,
					packets.Errorf(packets.AdministrativeAction, "the session was deleted")))
			}
		})
	}
	if b.journal != nil {
		err = b.journal.Sync(ctx)
	}
	return len(of) > 0, err
}

// PendingReceipts returns the receipts (Config.ReceiptProperty) of the messages that are queued for
// a client, or sent and not acknowledged, the oldest first; none if Observer.Settled is nil. It is
// for a program that notes what Observer.Settled tells it, and starts again after a crash: a
// receipt that is neither noted as settled nor pending was settled before the program could note
// it. With SessionPerPrincipal it looks at the Sessions of all principals.
func (b *Broker) PendingReceipts(clientID string) (names []string) {
	for _, s := range b.ofClient(clientID) {
		s.mu.Lock()
		note := func(d *delivery) bool {
			if r := d.receipt(); r != nil && r.name != "" {
				names = append(names, r.name)
			}
			return true
		}
		for i := int(s.out.head); i < len(s.out.flight); i++ {
			note(&s.out.flight[i])
		}
		s.out.queue.All(note)
		s.mu.Unlock()
	}
	return names
}
