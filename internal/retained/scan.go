package retained

import (
	"sort"
	"strings"
)

// A Found is what one call of Scan has found.
type Found struct {
	// Messages are in the order of their topics.
	Messages []*Message
	// Next is where to go on; empty: there is nothing more.
	Next string
	// Looked is how much work it was, about the number of topics and nodes that were looked at.
	Looked int
	// Version is that of the Store, for Current.
	Version uint64
}

// Scan appends to dst up to limit messages whose topics match filter, from the topic from on
// (empty: from the beginning), in the order of the topics' bytes. It looks at about look topics
// and nodes at most, and may find nothing although there is more. It holds the lock of the Store
// meanwhile, so look should be small. The filter must be valid, limit and look at least 1.
//
// To see all messages that match, call it again with Found.Next until that is empty. A message
// that is there all the time is found exactly once, whatever is set and removed meanwhile.
func (s *Store) Scan(filter, from string, limit, look int, dst []*Message) Found {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := Found{Messages: dst, Version: s.version.Load()}
	first := strings.IndexAny(filter, "+#")
	if first < 0 {
		f.Looked = cost(filter) * searches
		if it := s.tree.get(filter); it != nil && from <= filter {
			f.Messages = append(dst, it.msg)
		}
		return f
	}
	w := walk{pattern: compile(filter), limit: limit, left: look, found: dst}
	// What comes before the first wildcard bounds the walk; a/# begins at a.
	begin := filter[:first]
	if filter[first] == '#' {
		begin = strings.TrimSuffix(begin, "/")
	}
	w.at = append(w.at, max(begin, from)...)
	if !w.excludes(&s.tree.root.topics) {
		w.visit(s.tree.root)
	}
	f.Messages, f.Next, f.Looked = w.found, w.next, look-w.left
	return f
}

// searches is about how often a search of the tree compares topics.
const searches = 8

// cost is the work that it is to compare a topic: topics may have up to 64 KiB, and nearly as many
// levels.
func cost(topic string) int { return 1 + len(topic)/32 }

// A walk is one Scan.
type walk struct {
	pattern
	at    []byte // topics before it are passed over
	limit int    // messages to find
	left  int    // work to do
	moved bool   // something was looked at, so that the walk may pause
	found []*Message
	next  string // set when the walk is to go on another time
}

// visit visits what is below n and not before w.at. It returns false when the walk is over.
func (w *walk) visit(n *node) bool {
	if n.leaf() {
		return w.visitLeaf(n)
	}
	for i := w.kid(n); i < len(n.kids); i++ {
		if i+1 < len(n.kids) && n.kids[i+1].first <= string(w.at) {
			i = w.kid(n)
		}
		k := &n.kids[i]
		if w.tired() {
			return w.pause(k.first)
		}
		w.left -= cost(k.first)
		if w.excludes(&k.n.topics) {
			w.moved = true
		} else if !w.visit(k.n) {
			return false
		}
	}
	return true
}

func (w *walk) visitLeaf(n *node) bool {
	for i := w.item(n, 0); i < len(n.items); {
		it := &n.items[i]
		if w.tired() {
			return w.pause(it.topic)
		}
		w.left -= cost(it.topic)
		w.moved = true
		match, next := w.compare(it.topic)
		if match {
			w.limit--
			w.found = append(w.found, it.msg)
		}
		switch i++; {
		case next == nowhere:
			return false
		case next == forward && i < len(n.items) && n.items[i].topic < string(w.at):
			w.left -= cost(it.topic)
			i = w.item(n, i+1)
		}
	}
	return true
}

// kid returns the index of the child of n from which on there may be w.at and what comes after it.
func (w *walk) kid(n *node) int {
	i := sort.Search(len(n.kids), func(i int) bool { return n.kids[i].first > string(w.at) })
	return max(i-1, 0)
}

// item returns the index of the first item of a leaf, at least from, that is not before w.at.
func (w *walk) item(n *node, from int) int {
	items := n.items[from:]
	return from + sort.Search(len(items),
		func(i int) bool { return items[i].topic >= string(w.at) })
}

// tired says that the walk has to go on another time. It has come further by then.
func (w *walk) tired() bool { return w.moved && (w.left <= 0 || w.limit == 0) }

// pause ends the walk for now, before topic.
func (w *walk) pause(topic string) bool {
	if string(w.at) > topic {
		w.next = string(w.at)
	} else {
		w.next = strings.Clone(topic) // of its own: topic is part of a message that may be removed
	}
	return false
}
