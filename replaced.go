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

// admitWrittenLocked says whether s may have another filter that a hook has replaced.
func (s *session) admitWrittenLocked(g *grant) error {
	if g.wrote == "" || g.wrote == g.asked(s) {
		return nil
	}
	w := s.writtenLocked()
	if _, had := w.Get(g.wrote); had {
		return nil
	}
	if w.Len() >= s.b.cfg().MaxSubscriptions {
		return packets.Errorf(packets.QuotaExceeded, "more than %d subscriptions",
			s.b.cfg().MaxSubscriptions)
	}
	if !s.b.fitsOf(s.out.owner, int64(len(g.wrote)+len(g.filter)+writtenCost)) {
		return errNoMemory
	}
	return nil
}

// writtenCost is more than a replaced filter takes in memory besides its text, also if a second
// entry is needed for the filter that replaces it.
const writtenCost = 1024

// endReplaced ends the earlier subscriptions of c to the filters that it wrote for grants.
func (c *conn) endReplaced(grants []grant) {
	s, any := c.sess, false
	for i := range grants {
		if g := &grants[i]; g.had || g.plain {
			s.mu.Lock()
			if group, filter, err := packets.SplitShared(g.was); err == nil &&
				!s.writtenLocked().Any(g.was) {
				any = s.drop(group, s.mount+filter) || any
			}
			s.mu.Unlock()
		}
	}
	if any && s.stored != 0 {
		// if that fails the subscriptions are there again after a crash; no packet has said
		// otherwise
		_ = s.b.journal.Sync(s.b.ctx)
	}
}

// unsubscribeWritten forgets a filter that the client wrote, and removes the subscription that it
// got for that. It returns the filter of the subscription with the mount point, empty if another
// filter of the client was replaced by it as well, and whether there was a subscription.
func (s *session) unsubscribeWritten(wrote string) (removed string, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, by := s.writtenLocked(), wrote
	var ops []store.Op
	if got, ok := w.Get(wrote); ok {
		by = got
		w.Remove(wrote)
		s.countLocked()
		ops = append(ops, s.forgotten(wrote, by))
	}
	group, filter, err := packets.SplitShared(by)
	switch {
	case ops != nil && w.Any(by): // another filter that the client wrote needs it
		found = true
	case err == nil && s.drop(group, s.mount+filter, ops...):
		return packets.JoinShared(group, s.mount+filter), true
	}
	if s.stored != 0 && ops != nil {
		s.b.journal.Add(ops...)
	}
	return "", found
}
