package dunlin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what a DeliveryInterceptor makes of messages for one client. The queue and what is
// in flight have the message as it was published. When the client can take some, askShows asks
// about the next few, on a goroutine of its own, and pump sends what it has answered. The answers
// live until then.

// answers is what the interceptor has said for one connection. Guarded by the mu of its Session.
type answers struct {
	list   []shown
	asking bool  // askShows is under way
	walks  bool  // and then somebody may look for retained messages again: see session.walking
	size   int32 // bytes of the changed messages, as they are counted
}

// A shown is one answer.
type shown struct {
	of *message
	as *message // what the client gets; nil: nothing
}

// maxShown is how many messages a hook is asked about at a time for one client. maxShownBytes is
// how large they may be together, unless it is one.
const (
	maxShown      = 16
	maxShownBytes = 64 << 10
)

// forgetShowsLocked ends what the interceptor has said for the connection of s. s.mu is held.
func (s *session) forgetShowsLocked() {
	if s.extra == nil || s.extra.shows == nil {
		return
	}
	x := s.extra.shows
	x.endWalkLocked(s)
	s.b.memory.Recount(budget.Queued, &x.size, 0)
	s.extra.shows = nil
}

// endWalkLocked lets others look for retained messages. s.mu is held.
func (x *answers) endWalkLocked(s *session) {
	if x.walks {
		x.walks, s.walking = false, false
	}
}

// showing says whether the interceptor is being asked for s, whose mu is held.
func (s *session) showing() bool {
	return s.extra != nil && s.extra.shows != nil && s.extra.shows.asking
}

// shown returns what the client of s gets of m, nil for nothing, if that is known. s.mu is held.
func (s *session) shown(m *message) (as *message, known bool) {
	if s.extra == nil || s.extra.shows == nil {
		return nil, false
	}
	for _, x := range s.extra.shows.list {
		if x.of == m {
			return x.as, true
		}
	}
	return nil, false
}

// takeShown returns what the client of s gets of m, which is known, and forgets it. s.mu is held.
func (s *session) takeShown(m *message) *message {
	if s.b.rules.shows == nil {
		return m
	}
	x := s.extra.shows
	for i := range x.list {
		if x.list[i].of == m {
			as := x.list[i].as
			x.list = append(x.list[:i], x.list[i+1:]...)
			x.count(s.b.memory)
			return as
		}
	}
	panic("BUG: a message that no interceptor has seen")
}

// count counts the changed messages.
func (x *answers) count(mem *budget.Budget) {
	n := int64(0)
	for _, a := range x.list {
		if a.as != nil && a.as != a.of {
			n += heldSize(a.as)
		}
	}
	mem.Recount(budget.Queued, &x.size, int(n))
}

// showNext, with s.mu held, sees to it that the interceptor has seen what pump sends next. It is
// not ready if askShows has to ask first. If the interceptor has dropped the message, it is taken
// out, and another one comes next.
func (s *session) showNext(c *conn) (ready, dropped bool) {
	again := s.out.next()
	d := again
	if again == nil {
		d = s.out.queue.Front()
	}
	switch {
	case d == nil || d.state == pubrelDue:
		return true, false
	case again != nil && s.out.used >= s.out.quota:
		return true, false // pump does not send it now
	case again == nil && d.qos > packets.QoS0 && !s.out.room():
		return true, false // nor this
	}
	as, known := s.shown(d.msg)
	switch {
	case !known:
		s.askShowsLocked(c, s.nextMessagesLocked())
		return false, false
	case as != nil:
		return true, false
	}
	s.takeShown(d.msg)
	if again == nil {
		old := s.out.pop()
		s.discardLocked(&old, hooks.DropIntercepted)
		return true, true
	}
	s.dropped(&d.msg.Message, hooks.DropIntercepted)
	s.dropMessage(d, hooks.DropIntercepted)
	return true, true
}

// nextMessagesLocked returns the messages that pump is about to send. s.mu is held.
func (s *session) nextMessagesLocked() (list []*message) {
	for i := int(s.out.resend); i < len(s.out.flight) && len(list) < maxShown; i++ {
		if d := &s.out.flight[i]; d.state == waiting {
			list = append(list, d.msg)
		}
	}
	if len(list) > 0 {
		return list
	}
	room := int(s.out.quota - s.out.used)
	s.out.queue.All(func(d *delivery) bool {
		if d.qos > packets.QoS0 {
			room--
		}
		if room >= 0 {
			list = append(list, d.msg)
		}
		return room >= 0 && len(list) < maxShown
	})
	return list
}

// askShowsLocked asks the interceptor about messages for c, unless it is being asked. s.mu is held.
func (s *session) askShowsLocked(c *conn, list []*message) {
	if s.showing() {
		return
	}
	s.forgetShowsLocked()
	n, size := 0, int64(0)
	for _, m := range list {
		if size += heldSize(m); n == maxShown || n > 0 && size > maxShownBytes {
			break
		}
		n++
	}
	a := &showing{s: s, c: c, client: s.who(), ctx: s.b.ctx, shows: &answers{asking: true},
		list: append([]*message(nil), list[:n]...)}
	if r := c.readExtra(); r.ctx != nil {
		a.ctx = r.ctx
	}
	s.makeExtraLocked().shows = a.shows
	s.b.writers.Go(func() { s.b.askShows(a) }) // Close waits for it
}

// A showing is a few messages of which the interceptor is asked for one connection.
type showing struct {
	s      *session
	c      *conn
	client *hooks.Client
	ctx    context.Context
	shows  *answers
	list   []*message
}

// askShows asks, and then sends on what waits for that.
func (b *Broker) askShows(a *showing) {
	defer b.enterNarrow(a)() // also after runtime.Goexit in a hook
	var list []shown
	for _, m := range a.list {
		as, err := b.show(a.ctx, a.client, m)
		if a.ctx.Err() != nil {
			break // the next connection asks again
		}
		if err != nil && !errors.Is(err, hooks.ErrDrop) {
			b.log.Warn("a message is dropped because a hook failed", "client", a.client.ID,
				"topic", m.Topic, "err", err)
		}
		list = append(list, shown{m, as})
	}
	s := a.s
	s.mu.Lock()
	if s.extra.shows == a.shows { // the connection is the same
		a.shows.list, a.shows.asking = list, false
		a.shows.endWalkLocked(s)
		a.shows.count(b.memory)
	}
	s.mu.Unlock()
	if a.ctx.Err() == nil {
		a.c.flush(time.Now())
	}
}

// enterNarrow counts what the interceptor may make of the messages of a until done is called. If
// there is no memory for it, it first waits until all others who had to wait are done: then only
// one of them has changed messages at a time.
func (b *Broker) enterNarrow(a *showing) (done func()) {
	size := int64(0)
	for _, m := range a.list {
		size += heldSize(m)
	}
	b.memory.Add(budget.Queued, size)
	if !b.memory.Over(leaveQoS0) {
		return func() { b.memory.Add(budget.Queued, -size) }
	}
	b.memory.Add(budget.Queued, -size)
	lock.NoneHeld("a wait")
	select {
	case b.rules.narrow <- struct{}{}:
		return func() {
			lock.NoneHeld("a wait")
			<-b.rules.narrow
		}
	case <-a.ctx.Done():
		return func() {}
	}
}

// show asks the interceptor what a client gets of m. It returns m itself, another message, or nil
// and why the client gets nothing.
func (b *Broker) show(ctx context.Context, c *hooks.Client, m *message) (*message, error) {
	got, err := b.interceptDelivery(ctx, c, &m.Message)
	switch {
	case err != nil:
		return nil, err
	case got == &m.Message:
		return m, nil
	}
	return &message{Message: *got, From: m.From, Expires: m.Expires}, nil
}

// interceptDelivery asks the interceptor, and checks what it returns.
func (b *Broker) interceptDelivery(
	ctx context.Context, c *hooks.Client, m *Message,
) (got *Message, err error) {
	defer b.survive(c, &err)
	lock.NoneHeld("a decision of a hook")
	defer b.stats.hooks.Since(time.Now())
	got, err = b.rules.shows.InterceptDelivery(ctx, c, m)
	switch {
	case err != nil || got == m:
	case got == nil:
		err = errors.New("the DeliveryInterceptor returned neither a message nor an error")
	case got.Topic != m.Topic || got.QoS != m.QoS || got.Retain != m.Retain:
		err = fmt.Errorf("the DeliveryInterceptor returned a message with the topic %q, QoS %d and "+
			"Retain %v; it may change only Payload and Properties", cut(got.Topic, maxName), got.QoS,
			got.Retain)
	default:
		err = b.sound(got)
	}
	return got, err
}

// DeliveryInterceptor returns Config.DeliveryInterceptor, with what the broker checks of its
// answers, for a program that gives messages to clients that do not speak MQTT. Its
// InterceptDelivery returns an error if such a client may not get the message. It is nil if there
// is none.
func (b *Broker) DeliveryInterceptor() hooks.DeliveryInterceptor {
	if b.rules.shows == nil {
		return nil
	}
	return hooks.DeliveryInterceptorFunc(b.interceptDelivery)
}
