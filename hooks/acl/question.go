package acl

import (
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
)

// A name is %u, %c or ${attribute}; also a set of them.
type name byte

const (
	userName name = 1 << iota
	clientID
	attribute // of the Identity
)

// percent maps the character after % to its name.
var percent = [256]name{'u': userName, 'c': clientID}

// A question is one decision in progress.
type question struct {
	client  *hooks.Client
	user    string // of the client
	hasUser bool
	action  byte // one bit
	qos     byte // a bit 1 << QoS; 0: the request has none
	retain  bool

	// Of which names it is known whether they can be used, and which of these can
	known, usable name
	wild          answer

	best  *entry // the first of those that decide, as far as the walk has come
	least int32  // its order
}

// answer of a question that is asked at most once, or not with a plain no.
type answer byte

const (
	unknown answer = iota
	yes
	no
	unusable // yes or no, but for a name that must not be used
)

// walk looks for the entries that decide about the Topic Filter s. A Topic Name is a filter that
// matches just itself. walk looks for entries that deny something that s matches, and for entries
// that allow all of it.
//
// n is the node of the levels before s. s is the rest, and empty if more is false. first is true at
// the first level. whole is true if the path to n matches everything that the levels before s
// match; otherwise it matches some of it.
func (q *question) walk(n *node, s string, more, first, whole bool) {
	if n.leastDeny >= q.least && (!whole || n.least >= q.least) {
		return
	}
	dollar := first && strings.HasPrefix(s, "$")
	if !dollar {
		q.try(n.below, whole)
	}
	if !more {
		q.try(n.here, whole)
		return
	}
	text, rest, more := next(s)
	switch text {
	case "#":
		if first && whole && n.plus != nil {
			q.try(n.plus.below, true) // +/# is #: there is no Topic Name without a level
		}
		q.denials(n, first)
		return
	case "+":
		for text, c := range n.literals {
			if !first || !strings.HasPrefix(text, "$") {
				q.walk(c, rest, more, false, false)
			}
		}
	default:
		if c := n.literals[text]; c != nil {
			q.walk(c, rest, more, false, whole)
		}
	}
	if n.plus != nil && !dollar {
		q.walk(n.plus, rest, more, false, whole)
	}
	for i := range n.named {
		b := &n.named[i]
		if first && b.level.dollar() != dollar {
			continue
		}
		switch q.spells(b.level.parts, text) {
		case yes:
			q.walk(b.node, rest, more, false, whole && text != "+")
		case unusable:
			q.denials(b.node, false)
		}
	}
}

// try takes the first of the entries that applies, if it precedes the best so far. If whole is
// false, only entries that deny count.
func (q *question) try(entries []*entry, whole bool) {
	for _, e := range entries {
		if e.order >= q.least {
			return
		}
		if (whole || e.deny) && q.applies(e) {
			q.best, q.least = e, e.order
			return
		}
	}
}

// denials tries the entries that deny, at n and below. first is true if n is a root, and leaves out
// filters that begin with $.
func (q *question) denials(n *node, first bool) {
	if n.leastDeny >= q.least {
		return
	}
	q.try(n.here, false)
	q.try(n.below, false)
	for text, c := range n.literals {
		if !first || !strings.HasPrefix(text, "$") {
			q.denials(c, false)
		}
	}
	if n.plus != nil {
		q.denials(n.plus, false)
	}
	for i := range n.named {
		if !first || !n.named[i].level.dollar() {
			q.denials(n.named[i].node, false)
		}
	}
}

// applies reports whether e applies to the client and action.
func (q *question) applies(e *entry) bool {
	return e.actions&q.action != 0 &&
		(e.qos == 0 || e.qos&q.qos != 0 || q.qos == 0 && e.deny) &&
		(!e.retain || q.retain) &&
		(e.uses&userName == 0 || q.hasUser) &&
		!(e.plain && !e.deny && q.hasWild()) &&
		(e.who == nil || e.who.is(q.client))
}

// hasWild reports whether one of the names contains + or #.
func (q *question) hasWild() bool {
	if q.wild == unknown {
		q.wild = no
		if strings.ContainsAny(q.user, "+#") || strings.ContainsAny(q.client.ID, "+#") {
			q.wild = yes
		}
	}
	return q.wild == yes
}

// spells reports whether text equals the parts with the client's names filled in, or is +, which
// matches anything.
func (q *question) spells(parts []part, text string) answer {
	anything := text == "+"
	for _, p := range parts {
		s := p.text
		if p.name != 0 {
			var ok bool
			if s, ok = q.value(p); !ok {
				return unusable
			}
		}
		if anything {
			continue
		}
		if !strings.HasPrefix(text, s) {
			return no
		}
		text = text[len(s):]
	}
	if text != "" && !anything {
		return no
	}
	return yes
}

// value returns the value of the name p. ok is false if the value must not become part of a filter,
// because it would not fit into one level or not keep its meaning there.
func (q *question) value(p part) (s string, ok bool) {
	n := p.name
	switch n {
	case userName:
		s = q.user
	case clientID:
		s = q.client.ID
	default: // an attribute; known and usable are for the other two names
		s = q.client.Identity.Attributes[p.text]
		return s, fits(s)
	}
	if q.known&n == 0 {
		q.known |= n
		if fits(s) {
			q.usable |= n
		}
	}
	return s, q.usable&n != 0
}

// fits reports whether s can stand for a name within a level.
func fits(s string) bool { return s != "" && !strings.ContainsAny(s, "+#/\x00") }
