package acl

import (
	"math"
	"slices"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// errNoRule is the decision if no rule applies.
var errNoRule error = packets.Errorf(packets.NotAuthorized, "no rule allows it")

// A List is a list of rules in the order in which they decide. It is immutable. Nil and the zero
// value have no rules.
type List struct {
	// The rules, by the user they apply to.
	users     map[string]*node
	anonymous node // for clients without a name
	everybody node
	rules     int
}

// Len returns the number of rules. Each line of a file is one.
func (l *List) Len() int {
	if l == nil {
		return 0
	}
	return l.rules
}

// An entry is one filter of one rule.
type entry struct {
	order   int32 // the entry with the least one decides
	deny    bool
	plain   bool // if it allows, not for clients whose names hold + or #
	actions byte // a bit 1 << hooks.Action for each
	qos     byte // a bit 1 << QoS for each; 0: any
	retain  bool // only a publish to be retained
	uses    name // the names in the filter
	who     *Who // further conditions; nil: none
	err     error
}

// A node stands for the levels from the root to it. The nodes together are an index of entries by
// filter.
type node struct {
	literals map[string]*node
	plus     *node
	named    []branch
	here     []*entry // whose filter ends here, in order
	below    []*entry // whose filter goes on with #, in order

	// least is the lowest order of all entries here and below; leastDeny is the lowest of those
	// that deny.
	least, leastDeny int32
}

// A branch leads to the node of a named level.
type branch struct {
	level level
	node  *node
}

func newNode() *node { return &node{least: math.MaxInt32, leastDeny: math.MaxInt32} }

// add inserts e after all entries added before.
func (n *node) add(levels []level, e *entry) {
	for i := range levels {
		n.note(e)
		if levels[i].kind == hash {
			n.below = append(n.below, e)
			return
		}
		n = n.child(&levels[i])
	}
	n.note(e)
	n.here = append(n.here, e)
}

func (n *node) note(e *entry) {
	n.least = min(n.least, e.order)
	if e.deny {
		n.leastDeny = min(n.leastDeny, e.order)
	}
}

// child returns the node for level l below n, and creates it if needed.
func (n *node) child(l *level) *node {
	switch l.kind {
	case plus:
		if n.plus == nil {
			n.plus = newNode()
		}
		return n.plus
	case named:
		for _, b := range n.named {
			if b.level.text == l.text {
				return b.node
			}
		}
		n.named = append(n.named, branch{*l, newNode()})
		return n.named[len(n.named)-1].node
	}
	c := n.literals[l.text]
	if c == nil {
		if n.literals == nil {
			n.literals = map[string]*node{}
		}
		c = newNode()
		n.literals[l.text] = c
	}
	return c
}

// A builder makes a List.
type builder struct {
	entries []build
	rules   int
}

// A build is an entry with the keys that decide its place.
type build struct {
	entry
	user      string // of this user, if not empty
	anonymous bool   // of clients without a name
	levels    []level
	section   int // entries are ordered by section first
}

// list makes the List. The builder must not be used afterwards.
func (b *builder) list() *List {
	l := &List{users: map[string]*node{}, anonymous: *newNode(), everybody: *newNode(),
		rules: b.rules}
	slices.SortStableFunc(b.entries, func(x, y build) int { return x.section - y.section })
	for i := range b.entries {
		x := &b.entries[i]
		x.order = int32(i)
		root := &l.everybody
		switch {
		case x.user != "":
			if root = l.users[x.user]; root == nil {
				root = newNode()
				l.users[x.user] = root
			}
		case x.anonymous:
			root = &l.anonymous
		}
		e := x.entry
		root.add(x.levels, &e)
	}
	return l
}

// decide returns nil, the error of an entry, or errNoRule. qos is that of a question.
func (l *List) decide(r *hooks.AccessRequest, qos byte) error {
	if l == nil {
		return errNoRule
	}
	q := question{client: r.Client, action: 1 << r.Action, qos: qos, least: math.MaxInt32}
	q.retain = r.Retain && r.Action == hooks.ActionPublish
	q.user, _ = r.Client.User()
	if q.hasUser = q.user != ""; q.hasUser {
		if root := l.users[q.user]; root != nil {
			q.walk(root, r.Topic, true, true, true)
		}
	} else {
		q.walk(&l.anonymous, r.Topic, true, true, true)
	}
	q.walk(&l.everybody, r.Topic, true, true, true)
	switch {
	case q.best == nil:
		return errNoRule
	case q.best.deny:
		return q.best.err
	}
	return nil
}
