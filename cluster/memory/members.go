package memory

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// A member is a node that has joined, as the leader of the register knows it. Engine.mu is held in
// this whole file.
type member struct {
	cluster.Node
	b       *Backend
	hidden  bool // has drained: it is not in the list, but what it commits counts
	renewed bool // it reaches the leader
	check   uint64
}

// join makes a Backend a member, with a new Incarnation. It returns false if another node has its
// name and may still be alive.
func (e *Engine) join(b *Backend) bool {
	i := slices.IndexFunc(e.members, func(m *member) bool { return m.Name == b.name })
	if i >= 0 && e.members[i].b.node != b.node {
		if e.members[i].renewed {
			b.taken = true
		}
		return b.taken
	}
	b.taken = false
	if i >= 0 {
		if e.members[i].b == b {
			return true
		}
		e.members = slices.Delete(e.members, i, i+1)
	}
	e.incarnation++
	b.incarnation = e.incarnation
	m := &member{b: b, renewed: true, Node: cluster.Node{
		Name: b.name, Incarnation: e.incarnation, Info: b.info,
	}}
	e.members = append(e.members, m)
	slices.SortFunc(e.members, func(a, b *member) int { return strings.Compare(a.Name, b.Name) })
	e.relist()
	e.renew()
	return true
}

// member says whether a Backend is a member, with an Incarnation.
func (e *Engine) member(b *Backend, incarnation uint64) bool {
	return slices.ContainsFunc(e.members, func(m *member) bool {
		return m.b == b && m.Incarnation == incarnation
	})
}

// memberOf returns the member that a Backend is, or nil.
func (e *Engine) memberOf(b *Backend) *member {
	for _, m := range e.members {
		if m.b == b {
			return m
		}
	}
	return nil
}

// relist makes a new version of the list and sends it to all.
func (e *Engine) relist() {
	e.listed++
	e.tellList()
}

// list returns the nodes of the list.
func (e *Engine) list() (all []cluster.Node) {
	for _, m := range e.members {
		if !m.hidden {
			all = append(all, m.Node)
		}
	}
	return all
}

// tellList sends the list to the nodes that have an older one.
func (e *Engine) tellList() {
	u := e.registerUnit()
	if !e.led(u) {
		return
	}
	leader, version, all := e.units[u].leader, e.listed, e.list()
	for _, n := range e.nodes {
		b := n.process
		if b == nil || b.listed >= version {
			continue
		}
		e.send(kindLead, leader, n.i, func() {
			if !b.dead && b.listed < version {
				b.listed, b.live = version, all
				b.left()
				poke(b.nodes)
			}
		})
	}
}

// renew notes which members can renew their leases now. It stands for a message twice a second
// from each member. While nothing changes, no message is needed.
func (e *Engine) renew() {
	u := e.registerUnit()
	led := e.led(u)
	for _, m := range e.members {
		renews := led && !m.b.dead && e.mutual(m.b.node.i, e.units[u].leader)
		if renews {
			m.renewed = true
			m.check++
			continue
		}
		if m.renewed {
			m.renewed = false
			e.lapse(m)
		}
	}
	if !led {
		return
	}
	for _, n := range e.nodes {
		if b := n.process; b != nil && b.joined && !b.drained && !b.joining &&
			e.memberOf(b) == nil && e.mutual(n.i, e.units[u].leader) {
			e.rejoin(b)
		}
	}
	e.tellList()
}

// lapse ends the lease of a member that cannot renew it, unless it can again in time. Time without
// a leader does not count: a new leader waits for a second before it ends a lease.
func (e *Engine) lapse(m *member) {
	m.check++
	check := m.check
	end := e.now() + cluster.Lease - e.draw(0, kindLead).between(0, 500*time.Millisecond)
	var try func()
	try = func() {
		u := e.registerUnit()
		switch {
		case m.check != check || !slices.Contains(e.members, m):
		case !e.led(u):
			e.after(0, kindLead, 200*time.Millisecond, try)
			end = e.now() + time.Second
		case e.now() < end:
			e.after(0, kindLead, end-e.now(), try)
		default:
			e.members = slices.DeleteFunc(e.members, func(x *member) bool { return x == m })
			e.relist()
		}
	}
	e.after(0, kindLead, end-e.now(), try)
}

// rejoin makes a Backend a member again whose lease has ended although it is alive.
func (e *Engine) rejoin(b *Backend) {
	b.joining = true
	e.ask(&question{
		b: b, unit: e.registerUnit(), kind: kindLead,
		decide: func() bool { return e.join(b) },
		answer: func() {
			b.joining = false
			e.renew() // the lease may have ended again before the answer came
		},
	})
}

// watchMajority tells each node whether it reaches a majority.
func (e *Engine) watchMajority() {
	for _, n := range e.nodes {
		b := n.process
		if b == nil {
			continue
		}
		if e.majority(n.i) {
			b.alone++ // what is under way says nothing any more
			b.isolated = false
			if b.lonely {
				b.lonely = false
				poke(b.majority)
			}
			continue
		}
		if b.isolated || n.paused {
			continue
		}
		b.isolated = true
		b.alone++
		alone := b.alone
		e.after(n.i, kindLead, time.Second, func() {
			if b.alone == alone && !b.dead {
				b.lonely = true
				poke(b.majority)
			}
		})
	}
}

var errAlone = errors.New("cluster/memory: this node does not reach a majority of the nodes")
