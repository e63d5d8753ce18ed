package dunlin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/internal/why"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file collects what Explain and Subscribers tell. What follows from it package why decides.

// Names of package hooks that callers of Explain and Subscribers need.
type (
	// Explanation is the answer of Explain.
	Explanation = hooks.Explanation
	// Finding is one thing that keeps messages from a client.
	Finding = hooks.Finding
	// Cause is what keeps messages from a client.
	Cause = hooks.Cause
	// Subscriber is one subscription that matches a topic.
	Subscriber = hooks.Subscriber
)

// Subscribers yields the subscriptions that match topic, a Topic Name with the mount point of the
// publisher, in no order, and what would keep the next message from each. All subscriptions of one
// client that overlap are yielded, although the client gets one message. No lock is held meanwhile.
// The first 1,024 are found by themselves; a caller that goes on has all others collected at once,
// and SUBSCRIBE packets wait for that.
func (b *Broker) Subscribers(topic string) iter.Seq[Subscriber] {
	return func(yield func(Subscriber) bool) {
		if !packets.ValidTopicName(topic) {
			return
		}
		failure := b.Healthy()
		for f := range b.found(topic) {
			if sub, ok := b.subscriber(&f, topic, failure); ok && !yield(sub) {
				return
			}
		}
	}
}

// firstFound is how many subscriptions found looks for at first.
const firstFound = 1024

// found yields the subscriptions that match topic, each once. Most people look at a few of many.
func (b *Broker) found(topic string) iter.Seq[subs.Found] {
	return func(yield func(subs.Found) bool) {
		first, more := b.tree.Find([]byte(topic), firstFound)
		seen := make(map[subs.Found]bool, len(first))
		for _, f := range first {
			if !yield(f) {
				return
			}
			seen[which(f)] = true
		}
		if !more {
			return
		}
		all, _ := b.tree.Find([]byte(topic), math.MaxInt)
		for _, f := range all {
			if !seen[which(f)] && !yield(f) {
				return
			}
		}
	}
}

// which is f without what can change: two of a subscriber may differ in who made them.
func which(f subs.Found) subs.Found {
	f.Options = subs.Options{By: f.By}
	return f
}

// sessionNumbered returns the Session with a number in the tree, nil if there is none.
func (b *Broker) sessionNumbered(num uint32) *session {
	b.numbers.RLock()
	defer b.numbers.RUnlock()
	return b.numberedLocked(num)
}

// subscriber describes one subscription. ok is false if its Session is gone, or the topic outside
// of its mount point.
func (b *Broker) subscriber(f *subs.Found, topic string, failure error) (x Subscriber, ok bool) {
	s := b.sessionNumbered(f.Sub)
	if s == nil || !strings.HasPrefix(topic, s.mount) || len(topic) == len(s.mount) {
		return x, false
	}
	filter, inside := strings.CutPrefix(f.Filter, s.mount)
	if !inside { // the Session of f has ended meanwhile, and s has its number
		return x, false
	}
	s.mu.Lock()
	st, ended := s.stateLocked(failure), s.ended
	s.mu.Unlock()
	x = Subscriber{
		ClientID: s.id, Principal: s.principal, Filter: filter, QoS: f.QoS,
		NoLocal: f.NoLocal, Connected: st.Connected, Cause: st.InTheWay(f.QoS),
	}
	if f.Group != nil {
		x.Group = f.Group.Name
	}
	return x, !ended
}

// smallest is about the size of the smallest delivery.
const smallest = 64

// stateLocked is what decides whether s gets the next message. failure is that of the Store. The
// lock of s is held.
func (s *session) stateLocked(failure error) why.State {
	cfg := s.b.cfg()
	st := why.State{
		Connected: s.local != nil, Program: s.inProcess(),
		Blocking: s.local != nil && s.quota.overflow == OverflowBlock,
		Queued:   int(s.out.queue.Len()), QueueMost: int(s.quota.messages),
		QueuedBytes: s.out.bytes, QueueMostBytes: s.quota.bytes,
		PrincipalFull: s.overdrawn(smallest),
		Inflight:      int(s.out.used), Window: int(s.out.quota), UnsentMost: cfg.MaxOutboundBytes,
		KeepsQoS0: cfg.QueueQoS0 || s.inProcess(), Memory: s.b.memory.Over(leaveQoS0),
		Stored: s.stored != 0, StoreErr: failure,
	}
	if c := s.conn; c != nil {
		st.Connected, st.Opening, st.Stopping = true, c.out.opening, c.stopping != nil
		st.Unsent = c.out.Size()
	}
	return st
}

// Explain says what keeps messages of a topic from a client, or did so lately: whether the topic is
// valid, the client is there, a subscription matches, the Authorizer allows it, and whether there
// is room in its queue, its window and its socket; and what became of the last message that did not
// arrive. topic is a Topic Name with the mount point of its publisher, and need not be in use.
//
// It asks the Authorizer, with ctx, where that matters; the Observer is not told. The answer is
// that of one moment. With SessionPerPrincipal it is about a connected client if there is one,
// otherwise about the Session of the first principal.
func (b *Broker) Explain(ctx context.Context, clientID, topic string) Explanation {
	f := &why.Facts{ClientID: clientID, Topic: topic, Now: time.Now(), Closed: b.isClosed()}
	x := Explanation{ClientID: clientID, Topic: topic, Time: f.Now}
	f.TopicCause, f.TopicText = b.topicCause(topic)
	if all := b.stats.endings.All(clientID); len(all) > 0 && clientID != "" {
		f.Last = &all[0]
	}
	if d, ok := b.stats.drops.Last(clientID, topic); ok {
		f.Drop = &d
	}
	s := b.sessionOf(clientID)
	if s != nil {
		b.sessionFacts(ctx, f, s)
		x.Session, x.Connected, x.Principal = f.Session, f.State.Connected, s.principal
	}
	f.Ban = b.banOf(f, s)
	found, qos := why.Explain(f)
	x.QoS, x.Finding, x.Also = qos, found[0], found[1:]
	return x
}

// sessionOf returns the Session of a client that is connected if there is one, otherwise the first.
func (b *Broker) sessionOf(clientID string) *session {
	of := b.ofClient(clientID)
	for _, s := range of {
		if s.connected() {
			return s
		}
	}
	if len(of) > 0 {
		return of[0]
	}
	return nil
}

// topicCause says what is wrong with a topic, whoever subscribes.
func (b *Broker) topicCause(topic string) (hooks.Cause, string) {
	cfg := b.cfg()
	switch n := packets.Levels(topic); {
	case !packets.ValidTopicName(topic):
		return hooks.CauseTopicInvalid, fmt.Sprintf("%q is not a valid Topic Name.", cut(topic,
			maxName))
	case len(topic) > cfg.MaxTopicLength || n > cfg.MaxTopicLevels:
		return hooks.CauseTopicTooLong, fmt.Sprintf(
			"The topic has %d bytes and %d levels. At most %d and %d are accepted.",
			len(topic), n, cfg.MaxTopicLength, cfg.MaxTopicLevels)
	case b.reserved(topic):
		return hooks.CauseTopicReserved,
			`Clients cannot publish to the topic, because it begins with "$".`
	}
	return hooks.CauseNone, ""
}

// banOf says which Ban concerns the client of f, empty if none does. s is its Session, nil if
// there is
// none.
func (b *Broker) banOf(f *why.Facts, s *session) string {
	if !b.guard.Bans.Any() {
		return ""
	}
	is := map[Ban]string{{Kind: BanClient, Value: f.ClientID}: "The client"}
	if s != nil {
		is[Ban{Kind: BanSession, Value: s.signature()}] = "The client of the principal"
		if s.named || s.principal != "" {
			is[Ban{Kind: BanUser, Value: s.principal}] = "The user"
		}
	}
	if e := f.Last; e != nil && e.User != "" {
		is[Ban{Kind: BanUser, Value: e.User}] = "The user"
	}
	for _, x := range b.Bans() {
		what := is[Ban{Kind: x.Kind, Value: x.Value}]
		if e := f.Last; x.Kind == BanAddress && e != nil && !f.State.Connected &&
			guard.Within(e.Address, x.Value) {
			what = "The address"
		}
		if what != "" {
			return fmt.Sprintf("%s %q is banned: %s.", what, x.Value, x.Reason)
		}
	}
	return ""
}

// sessionFacts fills in what is known of s.
func (b *Broker) sessionFacts(ctx context.Context, f *why.Facts, s *session) {
	failure, retained := b.Healthy(), b.retained.Get(f.Topic)
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	f.Session, f.Mount, f.State = true, s.mount, s.stateLocked(failure)
	f.Of = s.ofTopicLocked(f.Topic, f.Now)
	client := s.observed()
	f.Retained.There = retained != nil
	if c := s.conn; c != nil && retained != nil {
		f.Retained.TooLarge = c.tooLarge(retained, wire{})
	}
	s.mu.Unlock()
	b.filterFacts(f, s)
	matches := false
	for i := range f.Filters {
		x := &f.Filters[i]
		if matches = matches || x.Matches; x.Matches && x.Group != "" {
			b.groupFacts(x, s.mount)
		}
	}
	topic, inside := strings.CutPrefix(f.Topic, s.mount)
	if b.authorizer == nil || !inside || s.inProcess() || f.TopicCause != hooks.CauseNone {
		return
	}
	r := hooks.AccessRequest{Client: client, Action: hooks.ActionSubscribe, Topic: topic}
	if !matches {
		f.Denied = b.objection(ctx, &r, b.authorizer.Authorize)
	} else if b.rules.deliveries != nil {
		r.Action = hooks.ActionDeliver
		f.Undeliv = b.objection(ctx, &r, b.rules.deliveries.AuthorizeDelivery)
	}
}

// filterFacts fills in what is known of the subscriptions of s.
func (b *Broker) filterFacts(f *why.Facts, s *session) {
	valid := packets.ValidTopicName(f.Topic) && strings.HasPrefix(f.Topic, s.mount)
	for sub := range s.subscriptions() {
		x := why.Filter{Group: sub.Group, Filter: sub.Filter[len(s.mount):], QoS: sub.QoS,
			NoLocal: sub.NoLocal, RetainHandling: sub.RetainHandling,
			Matches: valid && packets.MatchTopic(sub.Filter, f.Topic)}
		s.mu.Lock()
		for wrote := range s.writtenLocked().Of(packets.JoinShared(sub.Group, x.Filter)) {
			x.Wrote = append(x.Wrote, wrote)
		}
		f.Retained.Waiting = f.Retained.Waiting || x.Matches && s.cursors.Of(sub.Filter) != nil
		s.mu.Unlock()
		f.Filters = append(f.Filters, x)
	}
}

// maxLook is how many messages of a Session Explain looks at.
const maxLook = 10_000

// ofTopicLocked counts the messages of a topic that s has. The lock of s is held.
func (s *session) ofTopicLocked(topic string, now time.Time) (of why.Of) {
	n := 0
	s.out.queue.All(func(d *delivery) bool {
		if d.msg.Topic == topic {
			of.Queued++
			if d.msg.Expires != 0 && d.msg.Expires <= now.UnixNano() {
				of.Expired++
			}
		}
		n++
		return n < maxLook
	})
	for i := int(s.out.head); i < len(s.out.flight) && n < maxLook; i++ {
		d := &s.out.flight[i]
		n++
		switch {
		case d.state != sent || d.msg == nil || d.msg.Topic != topic:
		case s.conn != nil && s.conn.out.HoldsMessage(d.id):
			of.Unsent++
		default:
			of.Unacknowledged++
		}
	}
	return of
}

// groupFacts fills in what is known of the group of a shared subscription.
func (b *Broker) groupFacts(f *why.Filter, mount string) {
	g := b.tree.Group(f.Group, mount+f.Filter)
	if g == nil {
		return
	}
	f.Members = b.tree.Members(g)
	if s := b.sessionNumbered(g.Last.Load()); s != nil {
		f.Member = s.id
	}
}

// objection asks a hook, and returns in words why it refuses, empty if it does not.
func (b *Broker) objection(ctx context.Context, r *hooks.AccessRequest,
	ask func(context.Context, *hooks.AccessRequest) error) string {
	err := func() (err error) {
		defer b.survive(r.Client, &err)
		lock.NoneHeld("a decision of a hook")
		return ask(ctx, r)
	}()
	pe, _ := errors.AsType[*packets.Error](err)
	switch {
	case err == nil:
		return ""
	case errors.Is(err, hooks.ErrAbstain):
		return "no rule allows it"
	case pe != nil && pe.Err != nil:
		return pe.Err.Error()
	case pe != nil && pe.Reason != "":
		return pe.Reason
	}
	return err.Error()
}
