package subs

import (
	"bytes"
	"hash/maphash"
)

// This file bounds how many subscriptions of one subscriber can match one topic.
//
// The pattern of a Topic Filter is where its wildcards stand: a/+ and b/+ have the same one. All
// filters without wildcards count as one pattern. Of the filters with the same pattern a topic
// matches at most one, since it says what the other levels are. So a subscriber with n patterns
// gets a message by at most n subscriptions. Shared subscriptions to one filter, each with a
// Share Name of its own, match together: each one beyond the first counts as one more pattern.

// patterns are those of a subscriber. It is kept for those who have as many subscriptions as they
// may have patterns, since others cannot have too many.
type patterns struct {
	of     map[uint64]uint32 // by patternKey: how many filters have it
	shared map[uint64]uint32 // by filterKey: how many shared subscriptions there are to one filter
}

// patternCost is what an element of either map takes.
const patternCost = 32

// full says whether a subscription with that key would be beyond most patterns.
func (p *patterns) full(key uint64, most int) bool { return p.of[key] == 0 && len(p.of) >= most }

// add counts a subscription and returns how many bytes that takes. filter is 0 if it is not a
// shared one.
func (p *patterns) add(key, filter uint64) int64 {
	n := len(p.of) + len(p.shared)
	p.of[key]++
	if filter != 0 {
		p.shared[filter]++
	}
	return int64(len(p.of)+len(p.shared)-n) * patternCost
}

// remove is the end of a subscription. It returns how many bytes more that takes: none, or less
// than none.
func (p *patterns) remove(t *Tree, group string, filter []byte) int64 {
	n := len(p.of) + len(p.shared)
	if f := t.filterKey(group, filter); f != 0 {
		countDown(p.shared, f) // the last of those to this filter, whichever has gone
	}
	countDown(p.of, t.patternKey(p, group, filter))
	return int64(len(p.of)+len(p.shared)-n) * patternCost
}

func countDown(m map[uint64]uint32, key uint64) {
	if m[key]--; m[key] == 0 {
		delete(m, key)
	}
}

// patternKey returns the key in patterns.of of the next subscription of that kind, or, where that
// has just been taken out of p.shared, of the last one.
func (t *Tree) patternKey(p *patterns, group string, filter []byte) uint64 {
	f := t.filterKey(group, filter)
	var h maphash.Hash
	h.SetSeed(t.seed)
	for more := !isExact(filter); more; {
		var level []byte
		level, filter, more = bytes.Cut(filter, levelSeparator)
		if isExact(level) {
			h.WriteByte('x')
		} else {
			h.Write(level)
		}
	}
	if f != 0 {
		n := p.shared[f]
		h.Write([]byte{0, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	}
	return h.Sum64()
}

// filterKey returns the key in patterns.shared of a shared subscription, 0 for others.
func (t *Tree) filterKey(group string, filter []byte) uint64 {
	if group == "" {
		return 0
	}
	return maphash.Bytes(t.seed, filter) | 1
}

// patternsOf returns the patterns of sub, nil if it has so few subscriptions that they do not
// matter.
func (t *Tree) patternsOf(sub uint32) *patterns {
	p, most := t.many[sub], t.limits.Overlapping
	if p != nil || most == 0 || t.count(sub) < most {
		return p
	}
	p = &patterns{of: make(map[uint64]uint32), shared: make(map[uint64]uint32)}
	var buf [256]byte
	i := t.subs.at(sub).newest
	for range t.count(sub) {
		e := t.entries.at(i)
		group := ""
		if g := t.ownerGroup(e.owner); g != nil {
			group = g.Name
		}
		b := t.appendFilter(buf[:0], t.ownerNode(e.owner))
		t.other += p.add(t.patternKey(p, group, b), t.filterKey(group, b))
		i = e.older
	}
	t.many[sub] = p
	return p
}

// forgetPatterns is for a subscriber that has few subscriptions again.
func (t *Tree) forgetPatterns(sub uint32) {
	if p := t.many[sub]; p != nil {
		t.other -= int64(len(p.of)+len(p.shared)) * patternCost
		delete(t.many, sub)
	}
}
