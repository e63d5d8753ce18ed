package dunlin

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/holders"
	"github.com/dunlin-mqtt/dunlin/internal/logins"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/internal/recent"
	"github.com/dunlin-mqtt/dunlin/internal/room"
	"github.com/dunlin-mqtt/dunlin/internal/timers"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file says what of a message counts in Broker.memory, and how the broker gives way at
// Config.MaxMemory. What is counted: messages in queues and in flight, each once however many
// Sessions hold it, and their places there; retained ones; output that sockets have not taken; and
// packets that have come in part.

// defences bound what clients make a Broker do and keep.
type defences struct {
	guard    *guard.Guard
	logins   *logins.Table
	owners   *owners.Table
	memory   *budget.Budget
	reading  room.Room   // for packets that have come in part
	shedding atomic.Bool // shed is due or under way
	shedDue  timers.Timer
}

// What is held beside the bytes of topic, payload and properties.
const (
	messageCost  = 128 // of a message
	deliveryCost = 64  // of a place in a queue or in flight
	extraCost    = 64  // of what few deliveries have
	retainedCost = 64  // of a place among the retained messages
)

// holdersOf returns the count of the places that hold a message.
var holdersOf = holders.Of.(func(*message) *budget.Holders)

// heldSize is what m counts once, however many places hold it.
func heldSize(m *message) int64 {
	return int64(len(m.Topic)+len(m.Payload)+len(m.Properties)+len(m.From)) + messageCost
}

// heldSize is the same for x.
func (x *extra) heldSize() int64 {
	n := extraCost + int64(len(x.ids))*idBytes
	if x.receipt != nil {
		n += receiptCost + int64(len(x.receipt.name))
	}
	return n
}

// receiptCost is what a receipt takes; it counts for each of its deliveries.
const receiptCost = 160

// idBytes is what a Subscription Identifier takes.
const idBytes = 4

// The order in which the broker gives way (Config.MaxMemory).
const (
	// percent from which QoS 0 messages are not kept for clients whose sockets do not take them
	leaveQoS0  = 80
	dropQueued = 90 // percent from which queues of absent clients are shortened,
	dropEnough = 85 // down to this
)

var errNoMemory = recent.As(hooks.EndMemory,
	packets.Errorf(packets.QuotaExceeded, "the broker is at its limit of memory"))

// crowded is called where memory is taken, with any lock held: it starts shedding if that is due.
func (b *Broker) crowded() {
	if b.memory.Over(dropQueued) && b.shedding.CompareAndSwap(false, true) {
		b.due.Set(&b.shedDue, time.Now(), b.shed)
	}
}

// shed drops the oldest messages of absent clients, and of Subscriptions of the program that may
// lose some, an eighth of a Session at a time, until enough is free or nothing is left. It begins
// with the Sessions that hold the most. Everything else that takes memory goes away by itself, or
// is refused.
func (b *Broker) shed(now time.Time) {
	defer b.shedding.Store(false)
	b.forgetCaches()
	dropped := 0
	for b.memory.Over(dropEnough) && b.ctx.Err() == nil {
		type victim struct {
			s     *session
			bytes int
		}
		var victims []victim
		for _, s := range b.sheddable() {
			s.mu.Lock()
			n := s.out.heldBytes()
			if s.local != nil {
				n = s.out.bytes
			}
			if s.mayShedLocked() && (n > 0 || s.cursors != nil) {
				victims = append(victims, victim{s, n})
			}
			s.mu.Unlock()
		}
		slices.SortFunc(victims, func(x, y victim) int { return cmp.Compare(y.bytes, x.bytes) })
		before := dropped
		for _, v := range victims {
			if !b.memory.Over(dropEnough) {
				break
			}
			dropped += v.s.shorten()
		}
		if dropped == before {
			break
		}
	}
	if b.memory.Over(dropQueued) {
		b.endStuck(now)
	}
	if dropped > 0 {
		b.log.Warn("messages were dropped to keep within MaxMemory", "messages", dropped, "used",
			b.memory.Used())
	}
}

// sheddable lists the Sessions that may have to lose messages.
func (b *Broker) sheddable() []*session {
	all := slices.Collect(b.allSessions())
	b.mu.Lock()
	defer b.mu.Unlock()
	for sub := range b.locals {
		all = append(all, sub.s)
	}
	return all
}

// mayShedLocked says whether s may lose messages when memory is scarce: nobody has it, or a
// Subscription without a name that makes no publisher wait. s.mu is held.
func (s *session) mayShedLocked() bool {
	here := s.conn != nil || s.local != nil && (s.local.named || s.quota.overflow == OverflowBlock)
	return !here && !s.ended
}

// stuckTime is how long a client may acknowledge nothing while memory is scarce.
const stuckTime = 10 * time.Second

var errStuck = recent.As(hooks.EndMemory, packets.Errorf(packets.QuotaExceeded,
	"memory is scarce, and the client has acknowledged nothing for %v", stuckTime))

// stuck is the oldest message that a client has not acknowledged, and when endStuck saw it first.
type stuck struct {
	id    uint16 // 0: none
	since time.Time
}

// endStuck looks at the clients that have acknowledged nothing for stuckTime, and disconnects the
// one whose Session holds the most. Otherwise a few connected clients could take the memory from
// all others. The Session is then that of an absent client, and shed can shorten it.
func (b *Broker) endStuck(now time.Time) {
	var worst *conn
	most := 0
	for s := range b.allSessions() {
		s.mu.Lock()
		if c := s.conn; c != nil && s.stuckLocked(now) {
			if n := s.out.heldBytes(); n > most {
				worst, most = c, n
			}
		}
		s.mu.Unlock()
	}
	if worst != nil {
		b.endConn(worst, errStuck)
	}
}

// stuckLocked says whether one message has been the oldest in flight for stuckTime. s.mu is held.
func (s *session) stuckLocked(now time.Time) bool {
	if s.out.live == 0 {
		return false
	}
	x, id := &s.makeExtraLocked().stuck, s.out.flight[s.out.head].id
	if x.id != id {
		*x = stuck{id, now}
	}
	return now.Sub(x.since) >= stuckTime
}

// forgetCaches gives up what only saves work.
func (b *Broker) forgetCaches() {
	b.evictRoutes(func(*routes) bool { return true })
	if b.rules.deliveries == nil {
		return
	}
	for s := range b.allSessions() {
		s.mu.Lock()
		s.forgetReadingsLocked()
		s.mu.Unlock()
	}
}

// shorten drops the oldest eighth of the messages in flight, at least one, if the client is away.
// If none is in flight it drops the oldest eighth of the queue. It also drops the retained messages
// that are still to be sent. It returns how many it has dropped, none if s must not lose any.
func (s *session) shorten() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mayShedLocked() {
		return 0
	}
	if s.local == nil {
		if n = s.shortenFlightLocked(); n > 0 {
			return n + s.shedCursorsLocked()
		}
	}
	for most := (int(s.out.queue.Len()) + 7) / 8; n < most; n++ {
		d := s.out.pop()
		s.discardLocked(&d, hooks.DropMemory)
	}
	return n + s.shedCursorsLocked()
}

// shortenFlightLocked drops the oldest eighth, at least one, of the messages of s that are in
// flight. s has no connection. s.mu is held.
func (s *session) shortenFlightLocked() (n int) {
	most := (int(s.out.live) + 7) / 8
	for i := int(s.out.head); i < len(s.out.flight) && n < most; i++ {
		if d := &s.out.flight[i]; d.state != done && d.msg != nil {
			s.dropped(&d.msg.Message, hooks.DropMemory)
			s.dropMessage(d, hooks.DropMemory)
			n++
		}
	}
	return n
}

// heldBytes is the size of the messages that are queued or in flight.
func (s *sender) heldBytes() int {
	n := s.bytes
	for i := int(s.head); i < len(s.flight); i++ {
		if d := &s.flight[i]; d.msg != nil {
			n += d.size()
		}
	}
	return n
}

// refuseMemory says whether a PUBLISH cannot be taken because there is no memory.
func (b *Broker) refuseMemory() error {
	if b.memory.Used() <= b.memory.Limit() {
		return nil
	}
	b.crowded()
	return errNoMemory
}
