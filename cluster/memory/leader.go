package memory

// A unit is what has one leader: a partition, or the register with the list of members.
type unit struct {
	leader   int // -1: none
	electing bool
	pos      uint64 // the last position; of the register, the last Rev
}

// alive says whether a node runs. Engine.mu is held, as in this whole file.
func (e *Engine) alive(i int) bool { return e.nodes[i].up && !e.nodes[i].paused }

// mutual says whether two nodes reach each other.
func (e *Engine) mutual(i, j int) bool {
	return e.alive(i) && e.alive(j) && !e.cut[i][j] && !e.cut[j][i]
}

// reached returns how many nodes a node reaches, itself included.
func (e *Engine) reached(i int) (n int) {
	for j := range e.nodes {
		if e.mutual(i, j) {
			n++
		}
	}
	return n
}

// majority says whether a node reaches more than half of all nodes.
func (e *Engine) majority(i int) bool { return e.reached(i) > len(e.nodes)/2 }

// eligible says whether a node can lead.
func (e *Engine) eligible(i int) bool { return i >= 0 && e.majority(i) }

// better says whether a node should lead rather than another one. With equal chances it is not.
func (e *Engine) better(i, than int) bool {
	switch {
	case !e.eligible(i):
		return false
	case !e.eligible(than):
		return true
	case e.nodes[i].drained != e.nodes[than].drained:
		return e.nodes[than].drained
	}
	return e.reached(i) > e.reached(than)
}

// best returns the node that should lead a unit, and -1 if none can. The present leader stays if no
// other node is better.
func (e *Engine) best(leader int) int {
	first := e.draw(0, kindLead).IntN(len(e.nodes))
	for k := range e.nodes {
		if i := (first + k) % len(e.nodes); e.better(i, leader) {
			leader = i
		}
	}
	if !e.eligible(leader) {
		return -1
	}
	return leader
}

// led says whether a unit has a leader that works.
func (e *Engine) led(u int) bool { return e.eligible(e.units[u].leader) }

// register is the unit of the register and of the members.
func (e *Engine) registerUnit() int { return len(e.units) - 1 }

// settle begins what follows from a change of which nodes run, reach each other, or lead:
// elections, leases that end, replicas that catch up.
func (e *Engine) settle() {
	for u, x := range e.units {
		if x.electing {
			continue
		}
		for i := range e.nodes {
			if e.better(i, x.leader) {
				e.elect(u)
				break
			}
		}
	}
	e.renew()
	e.watchMajority()
	for u := range e.units {
		e.spread(u)
	}
	for i := range e.nodes {
		e.tellInterest(i)
	}
}

// elect gives a unit another leader, after the time of an election. If the old one works again by
// then, it stays.
func (e *Engine) elect(u int) {
	x := e.units[u]
	x.electing = true
	d := e.draw(0, kindLead).between(e.o.Election/2, e.o.Election)
	e.after(0, kindLead, d, func() {
		x.electing = false
		x.leader = e.best(x.leader)
		e.settle()
	})
}

// handOver lets a node that drains lead nothing, without an election.
func (e *Engine) handOver() {
	for _, x := range e.units {
		x.leader = e.best(x.leader)
	}
	e.settle()
}

// spread lets all replicas that the leader of a unit reaches catch up.
func (e *Engine) spread(u int) {
	x := e.units[u]
	if !e.led(u) {
		return
	}
	pos := x.pos
	e.advance(x.leader, u, pos)
	for j, n := range e.nodes {
		if n.seen[u] < pos && e.alive(j) && !e.cut[x.leader][j] {
			e.send(kindFeed, x.leader, j, func() { e.advance(j, u, pos) })
		}
	}
}

// advance notes that the replica of a node has a unit up to pos.
func (e *Engine) advance(i, u int, pos uint64) {
	n := e.nodes[i]
	if n.seen[u] >= pos {
		return
	}
	n.seen[u] = pos
	if b := n.process; b != nil {
		b.caughtUp()
		if u < len(b.feed) {
			poke(b.feed[u])
		}
	}
}

// lowest returns the position of a unit that all replicas of running nodes have.
func (e *Engine) lowest(u int) uint64 {
	low := e.units[u].pos
	for _, n := range e.nodes {
		if n.process != nil {
			low = min(low, n.seen[u])
			if u < len(n.process.given) {
				low = min(low, n.process.given[u])
			}
		}
	}
	return low
}
