package dunlin

import (
	"github.com/dunlin-mqtt/dunlin/internal/written"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file remembers, for each Session, the Topic Filters that its client wrote and that
// Config.SubscribeInterceptor has replaced. So an UNSUBSCRIBE with the filter that the client wrote
// finds the subscription that the client got, also after a restart.

// writtenLocked returns the Topic Filters of the client of s that a hook has replaced. It may be
// nil. s.mu is held.
func (s *session) writtenLocked() *written.Filters {
	if s.extra == nil {
		return nil
	}
	return s.extra.written
}

// makeWrittenLocked is writtenLocked for writing. s.mu is held.
func (s *session) makeWrittenLocked() *written.Filters {
	e := s.makeExtraLocked()
	if e.written == nil {
		e.written = new(written.Filters)
	}
	return e.written
}

// asked is the filter of g as a client of s would write it.
func (g *grant) asked(s *session) string {
	return packets.JoinShared(g.group, g.filter[len(s.mount):])
}

// noteWrittenLocked notes the filter that the client wrote for g, if g has another one, and what g
// takes the place of. A filter that replaces others is noted as well if the client also wrote it.
// The result says whether a note has changed.
func (s *session) noteWrittenLocked(g *grant) (changed bool) {
	w, by := s.writtenLocked(), g.asked(s)
	g.was, g.had = w.Get(g.wrote)
	if g.had = g.had && g.was != by; g.had {
		changed = true
		s.forgetWrittenLocked(g.wrote, g.was)
	}
	if !g.had && g.wrote != by && !w.Any(g.wrote) {
		group, filter, _ := packets.SplitShared(g.wrote) // the broker has checked it
		_, g.plain = s.b.tree.Get(s.num, group, s.mount+filter)
		g.was = g.wrote
	}
	if g.wrote != by && g.existed && !w.Any(by) {
		s.putWrittenLocked(by, by)
		changed = true
	}
	if g.wrote != by || w.Any(by) {
		g.noted = s.putWrittenLocked(g.wrote, by)
	}
	return changed || g.noted
}

// putWrittenLocked notes that wrote is replaced, and says whether that is new.
func (s *session) putWrittenLocked(wrote, by string) bool {
	w := s.makeWrittenLocked()
	if was, had := w.Get(wrote); had && was == by {
		return false
	}
	w.Put(wrote, by)
	if s.stored != 0 {
		s.b.journal.Add(&store.PutSubscription{Session: s.stored,
			Subscription: packets.Subscription{Filter: written.Join(wrote, by)}})
	}
	return true
}

func (s *session) forgetWrittenLocked(wrote, by string) {
	s.writtenLocked().Remove(wrote)
	if s.stored != 0 {
		s.b.journal.Add(&store.DeleteSubscription{Session: s.stored,
			Filter: written.Join(wrote, by)})
	}
}

// filtersOf returns the Topic Filters of subs, and for each that a hook has replaced the one under
// which the store keeps that.
func filtersOf(p *packets.Subscribe, subs []packets.Subscription) []string {
	filters := make([]string, len(subs), 2*len(subs))
	for i := range subs {
		filters[i] = subs[i].Filter
		if wrote := p.Subscriptions[i].Filter; wrote != filters[i] {
			filters = append(filters, written.Join(wrote, filters[i]))
		}
	}
	return filters
}

// takeBackWrittenLocked undoes what noteWrittenLocked did for g, which could not be stored.
func (s *session) takeBackWrittenLocked(g *grant) {
	if g.noted {
		s.forgetWrittenLocked(g.wrote, g.asked(s))
	}
	if g.had {
		s.putWrittenLocked(g.wrote, g.was)
	}
	g.had, g.plain, g.noted = false, false, false
}
