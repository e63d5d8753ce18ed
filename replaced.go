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
// It returns what the store has to be told together with the subscription of g.
func (s *session) noteWrittenLocked(g *grant) (ops []store.Op) {
	w, by := s.writtenLocked(), g.asked(s)
	g.was, g.had = w.Get(g.wrote)
	if g.had = g.had && g.was != by; g.had {
		w.Remove(g.wrote)
		ops = append(ops, s.forgotten(g.wrote, g.was))
	}
	if !g.had && g.wrote != by && !w.Any(g.wrote) {
		group, filter, _ := packets.SplitShared(g.wrote) // the broker has checked it
		_, g.plain = s.b.tree.Get(s.num, group, s.mount+filter)
		g.was = g.wrote
	}
	if g.wrote != by && g.existed && !w.Any(by) {
		g.notedSelf = true
		ops = append(ops, s.putWrittenLocked(by, by))
	}
	if had, _ := w.Get(g.wrote); had != by && (g.wrote != by || w.Any(by)) {
		g.noted = true
		ops = append(ops, s.putWrittenLocked(g.wrote, by))
	}
	return ops
}

// putWrittenLocked notes that wrote is replaced, and returns what the store is told of that.
func (s *session) putWrittenLocked(wrote, by string) store.Op {
	s.makeWrittenLocked().Put(wrote, by)
	return &store.PutSubscription{Session: s.stored,
		Subscription: packets.Subscription{Filter: written.Join(wrote, by)}}
}

// forgotten is what the store is told of a note that is not there any more.
func (s *session) forgotten(wrote, by string) store.Op {
	return &store.DeleteSubscription{Session: s.stored, Filter: written.Join(wrote, by)}
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

// takeBackWrittenLocked undoes what noteWrittenLocked did for g. The store has taken nothing of it.
func (s *session) takeBackWrittenLocked(g *grant) {
	w := s.writtenLocked()
	if g.noted {
		w.Remove(g.wrote)
	}
	if g.notedSelf {
		w.Remove(g.asked(s))
	}
	if g.had {
		w.Put(g.wrote, g.was)
	}
	g.had, g.plain, g.noted, g.notedSelf = false, false, false, false
}
