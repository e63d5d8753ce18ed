package dunlin

import (
	"context"
	"iter"
	"math"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what the Broker tells of itself: Stats, Sessions, Retained, and the $SYS topics; and what a program can do to a Session.

// counters only grow. What can be derived from state is not among them.
type counters struct {
	received, sent, dropped  atomic.Uint64 // messages
	receivedBytes, sentBytes atomic.Uint64
	accepted, refused        atomic.Uint64 // connections
	panics                   atomic.Uint64
}

// Stats is a snapshot. Fields are added in minor releases.
type Stats struct {
	// Now.
	Connections, Sessions, Subscriptions, Retained int
	RetainedBytes                                  int64
	Memory                                         int64 // bytes that count against Config.MaxMemory
	Queued, Inflight                               int   // messages, over all Sessions

	// Since New.
	Accepted, Refused                               uint64 // connections
	MessagesReceived, MessagesSent, MessagesDropped uint64
	BytesReceived, BytesSent                        uint64
	Panics                                          uint64
	Uptime                                          time.Duration
}

// Stats returns what there is and what has been. It looks at every Session.
func (b *Broker) Stats() Stats {
	st := b.stats.snapshot()
	st.Uptime = time.Since(b.started)
	b.mu.Lock()
	st.Connections, st.Sessions = len(b.conns), b.sessions.len()
	b.mu.Unlock()
	st.Subscriptions = b.tree.Len()
	st.Retained, st.RetainedBytes = b.retained.Len(), b.retained.Bytes()
	st.Memory = b.memory.Used()
	for s := range b.allSessions() {
		s.mu.Lock()
		st.Queued += int(s.out.queue.n)
		st.Inflight += int(s.out.live)
		s.mu.Unlock()
	}
	return st
}

func (c *counters) snapshot() Stats {
	return Stats{
		Accepted: c.accepted.Load(), Refused: c.refused.Load(),
		MessagesReceived: c.received.Load(), MessagesSent: c.sent.Load(), MessagesDropped: c.dropped.Load(),
		BytesReceived: c.receivedBytes.Load(), BytesSent: c.sentBytes.Load(), Panics: c.panics.Load(),
	}
}

// SessionInfo is a copy of what the Broker knows of a Session.
type SessionInfo struct {
	ClientID  string
	Principal string
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
	info = SessionInfo{ClientID: s.id, Principal: s.principal, Queued: int(s.out.queue.n), QueuedBytes: s.out.bytes, Inflight: int(s.out.live)}
	if s.conn != nil {
		info.Client = s.conn.client
	} else {
		info.ExpiresAt = s.expiresAt()
	}
	if s.num != 0 {
		s.b.tree.Each(s.num, func(group, filter string, o subs.Options) bool {
			info.Subscriptions = append(info.Subscriptions, packets.Subscription{
				Filter: subs.FullFilter(group, filter), QoS: o.QoS, NoLocal: o.NoLocal, RetainAsPublished: o.RetainAsPublished, RetainHandling: o.RetainHandling,
			})
			return true
		})
	}
	return info, true
}

// Retained yields the retained messages whose topics match filter, in the order of their topics. They are shared: nobody may modify them.
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

// Disconnect ends the connection of a client with a Reason Code, which one of 5.0 is told. A code that a server has no use for in
// DISCONNECT (3.14.2.1), as 0x00 and 0x04, becomes Administrative action (0x98). The client's Will is published. It returns false if no
// connection has that Client Identifier. With SessionPerPrincipal it ends those of all principals.
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

// DeleteSession ends the Session of a client, with its subscriptions and queue, and disconnects it with Administrative action (0x98) if
// it is there. A Will is published. It returns false if there was no Session. With SessionPerPrincipal it ends those of all principals.
func (b *Broker) DeleteSession(ctx context.Context, clientID string) bool {
	of := b.ofClient(clientID)
	if len(of) == 0 || ctx.Err() != nil {
		return false
	}
	b.work(func(t *turn) {
		for _, s := range of {
			s.mu.Lock()
			sub := s.local
			s.mu.Unlock()
			if sub != nil {
				sub.Delete()
			}
			b.endSession(t, s, packets.Errorf(packets.AdministrativeAction, "the session was deleted"))
		}
	})
	return true
}

// A load is an average over the last minutes that weighs the recent more, per minute.
type load struct {
	name string
	get  func(*Stats) uint64
	last uint64
	avg  [3]float64 // 1, 5 and 15 minutes
}

// publishSys publishes the $SYS topics every SysInterval until the Broker ends.
func (b *Broker) publishSys() {
	loads := []*load{
		{name: "messages/received", get: func(s *Stats) uint64 { return s.MessagesReceived }},
		{name: "messages/sent", get: func(s *Stats) uint64 { return s.MessagesSent }},
		{name: "bytes/received", get: func(s *Stats) uint64 { return s.BytesReceived }},
		{name: "bytes/sent", get: func(s *Stats) uint64 { return s.BytesSent }},
		{name: "connections", get: func(s *Stats) uint64 { return s.Accepted }},
	}
	tick := time.NewTicker(b.cfg.SysInterval)
	defer tick.Stop()
	most := 0
	for {
		st := b.Stats()
		most = max(most, st.Connections)
		b.publishStats(&st, most)
		for _, l := range loads {
			n := l.get(&st)
			perMinute := float64(n-l.last) / b.cfg.SysInterval.Minutes()
			l.last = n
			for i, window := range [3]float64{1, 5, 15} {
				k := math.Exp(-b.cfg.SysInterval.Minutes() / window)
				l.avg[i] = perMinute + k*(l.avg[i]-perMinute)
				b.sys("load/"+l.name+"/"+strconv.Itoa(int(window))+"min", strconv.FormatFloat(l.avg[i], 'f', 2, 64))
			}
		}
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Broker) publishStats(st *Stats, most int) {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	b.sys("version", "dunlin "+Version)
	b.sys("uptime", strconv.FormatInt(int64(st.Uptime/time.Second), 10)+" seconds")
	for _, x := range []struct {
		name string
		n    uint64
	}{
		{"clients/connected", uint64(st.Connections)},
		{"clients/disconnected", uint64(max(0, st.Sessions-st.Connections))},
		{"clients/total", uint64(st.Sessions)},
		{"clients/maximum", uint64(most)},
		{"messages/received", st.MessagesReceived},
		{"messages/sent", st.MessagesSent},
		{"messages/dropped", st.MessagesDropped},
		{"messages/inflight", uint64(st.Inflight)},
		{"messages/stored", uint64(st.Queued + st.Retained)},
		{"publish/messages/dropped", st.MessagesDropped},
		{"bytes/received", st.BytesReceived},
		{"bytes/sent", st.BytesSent},
		{"retained messages/count", uint64(st.Retained)},
		{"subscriptions/count", uint64(st.Subscriptions)},
		{"heap/current", mem.HeapAlloc},
		{"heap/maximum", mem.HeapSys},
	} {
		b.sys(x.name, strconv.FormatUint(x.n, 10))
	}
}

// sys publishes one of the $SYS topics, retained.
func (b *Broker) sys(name, value string) {
	b.work(func(t *turn) {
		m := &message{Message: packets.Message{Topic: "$SYS/broker/" + name, Payload: []byte(value), Retain: true}}
		t.untold = true
		matched, err := t.publishMessage(m, origin{})
		if err != nil {
			b.log.Debug("$SYS not published", "topic", m.Topic, "err", err)
			return
		}
		b.published(nil, &m.Message, matched)
	})
}
