package dunlin

import (
	"slices"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/internal/subs"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file takes subscriptions away that are no longer allowed, with what they have brought into
// the Session. The lock of the Session is taken for a piece of that work at a time, so that nobody
// who publishes to the Session waits until all is done. Nobody resumes the Session meanwhile.

// revokePiece is how many subscriptions or messages are taken away at a time.
const revokePiece = 64

// revokedLogged is how many subscriptions of a Session that were taken away the log has each.
const revokedLogged = 10

// revoke takes refused subscriptions away from s, with what they have brought, unless s has got
// another connection since gen. What came by a shared subscription goes to another member. It
// returns how many subscriptions it has taken away.
func (b *Broker) revoke(s *session, gen uint32, refused []listedSub) int {
	if len(refused) == 0 {
		return 0
	}
	client := s.beginRevoking(gen)
	if client == nil {
		return 0
	}
	out := s.dropAll(refused)
	orphans, owes := s.purge(out)
	s.endRevoking()
	for i, sub := range out {
		filter := packets.JoinShared(sub.group, sub.filter[len(s.mount):])
		switch {
		case i < revokedLogged:
			b.log.Info("a subscription is no longer allowed", "client", s.id, "filter",
				cut(filter, maxText), "err", sub.err)
		case i == revokedLogged:
			b.log.Info("more subscriptions are no longer allowed", "client", s.id, "number",
				len(out)-i)
		}
		if f := b.obs.Revoked; f != nil {
			f(hooks.Revoked{
				Client: client, Filter: filter,
				MountedFilter: packets.JoinShared(sub.group, sub.filter),
				Err:           sub.err,
			})
		}
	}
	switch {
	case owes:
		b.work(func(t *turn) { b.payDecided(t, s) })
	case len(orphans) > 0:
		b.work(func(t *turn) { b.reassignAll(t, s, orphans, hooks.DropNotAuthorized) })
	}
	return len(out)
}

// beginRevoking waits until nobody else takes subscriptions of s away, and returns its client. It
// returns nil if s has ended, or has got another connection since gen. endRevoking must follow.
func (s *session) beginRevoking(gen uint32) *hooks.Client {
	for {
		s.mu.Lock()
		if s.ended || s.gen != gen {
			s.mu.Unlock()
			return nil
		}
		other := s.revokingLocked()
		if other == nil {
			s.makeExtraLocked().revoking = make(chan struct{})
			defer s.mu.Unlock()
			return s.who()
		}
		s.mu.Unlock()
		lock.NoneHeld("a wait")
		<-other
	}
}

func (s *session) endRevoking() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.extra.revoking)
	s.extra.revoking = nil
}

// revokingLocked returns what is closed when subscriptions of s that are being revoked are gone;
// nil: none are. s.mu is held.
func (s *session) revokingLocked() <-chan struct{} {
	if s.extra == nil {
		return nil
	}
	return s.extra.revoking
}

// dropAll ends subscriptions of s, and returns those that it had.
func (s *session) dropAll(revoked []listedSub) []listedSub {
	out := revoked[:0]
	for piece := range slices.Chunk(revoked, revokePiece) {
		s.mu.Lock()
		for _, sub := range piece {
			if s.drop(sub.group, sub.filter) {
				out = append(out, sub)
			}
		}
		s.mu.Unlock()
	}
	return out
}

// A bringer tells which messages only revoked subscriptions have brought.
type bringer struct {
	tree       *subs.Tree
	left, gone uint32             // the subscriptions that are left, and the revoked ones
	last       *subs.Subscription // the newest of left; nil: none is known
	matches    subs.Matches
}

func newBringer(revoked []listedSub) *bringer {
	r := &bringer{tree: subs.New(subs.Limits{})}
	r.left, r.gone = r.tree.Join(), r.tree.Join()
	for _, sub := range revoked {
		r.tree.Restore(r.gone, "", sub.filter, subs.Options{})
	}
	return r
}

// learn adds what is left to s, and says whether that was not known before.
func (r *bringer) learn(page []subs.Subscription) (any bool) {
	for i := range page {
		r.last, any = &page[i], true
		r.tree.Restore(r.left, "", page[i].Filter, subs.Options{})
	}
	return any
}

// only says whether only revoked subscriptions match a topic.
func (r *bringer) only(topic string) bool {
	r.tree.Match([]byte(topic), 0, &r.matches)
	gone := false
	for i := range r.matches.Subs {
		if r.matches.Subs[i].Sub == r.left {
			return false
		}
		gone = gone || r.matches.Subs[i].Sub == r.gone
	}
	return gone
}

// purge takes out what revoked subscriptions, which have ended, have brought and no other one
// matches. It returns what came by shared ones, and whether s owes it. s is being revoked.
func (s *session) purge(revoked []listedSub) (orphans []delivery, owes bool) {
	held := s.messages()
	if len(revoked) == 0 || len(held) == 0 {
		return nil, false
	}
	r := newBringer(revoked)
	lost := make(map[*message]bool)
	for _, m := range held {
		if !lost[m] && r.only(m.Topic) {
			lost[m] = true
		}
	}
	if len(lost) == 0 {
		return nil, false
	}
	for page := s.subscriptionPage(nil, subscriptionPage); r.learn(page); {
		page = s.subscriptionPage(r.last, subscriptionPage)
	}
	reprieve := func() {
		for m := range lost {
			if !r.only(m.Topic) {
				delete(lost, m)
			}
		}
	}
	reprieve()
	s.mu.Lock()
	if s.num != 0 && !s.ended { // what has been subscribed to since may have brought some, too
		if r.learn(s.b.tree.Page(s.num, r.last, s.b.tree.Count(s.num))) {
			reprieve()
		}
	}
	discarded, orphans := s.takeOutLocked(lost)
	owes = s.b.journal != nil && len(orphans) > 0 && s.b.journal.owe(s, orphans...)
	s.mu.Unlock()
	for piece := range slices.Chunk(discarded, revokePiece) {
		s.mu.Lock()
		for i := range piece {
			d := &piece[i]
			if s.ended { // and is not in the store any more
				d.seq = 0
			}
			s.discardLocked(d, hooks.DropNotAuthorized)
		}
		s.mu.Unlock()
	}
	for s.forgetContents(lost) {
	}
	return orphans, owes
}

// messages lists what is queued and in flight.
func (s *session) messages() []*message {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*message, 0, int(s.out.queue.Len())+int(s.out.live))
	s.out.queue.All(func(d *delivery) bool {
		all = append(all, d.msg)
		return true
	})
	for i := int(s.out.head); i < len(s.out.flight); i++ {
		if d := &s.out.flight[i]; d.state != done && d.msg != nil {
			all = append(all, d.msg)
		}
	}
	return all
}

// takeOutLocked takes lost messages out of the queue. Those of shared subscriptions, the orphans,
// are in the store until another member has them. s.mu is held.
func (s *session) takeOutLocked(lost map[*message]bool) (discarded, orphans []delivery) {
	s.out.remove(func(d *delivery) bool {
		if !lost[d.msg] {
			return false
		}
		if d.group() != nil {
			orphans = append(orphans, *d)
		} else {
			discarded = append(discarded, *d)
		}
		return true
	})
	return discarded, orphans
}

// forgetContents forgets a piece of those lost messages that are in flight, and says whether there
// may be more.
func (s *session) forgetContents(lost map[*message]bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for i := int(s.out.head); i < len(s.out.flight) && n < revokePiece; i++ {
		if d := &s.out.flight[i]; d.state != done && d.msg != nil && lost[d.msg] {
			if s.conn == nil || d.state == waiting {
				s.dropped(&d.msg.Message, hooks.DropNotAuthorized)
			}
			s.dropMessage(d, hooks.DropNotAuthorized)
			n++
		}
	}
	return n == revokePiece
}
