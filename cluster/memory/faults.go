package memory

import (
	"container/heap"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// Kill ends a node with its replica at once, as kill -9 does. Its Backend returns ErrClosed from
// all calls, and its Handler is not called again, except that a call that has begun may end later.
// What the node was committing may take effect or not. A node that does not run stays as it is.
func (e *Engine) Kill(at int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kill(e.nodes[at])
	e.settle()
}

// kill is Kill with Engine.mu held.
func (e *Engine) kill(n *node) {
	n.up = false
	e.resume(n)
	n.frozen = nil
	b := n.process
	if b == nil {
		return
	}
	n.process = nil
	b.dead = true
	close(b.closed)
	b.cancel()
}

// Restart is Kill and then Open.
func (e *Engine) Restart(at int) (cluster.Backend, error) {
	e.Kill(at)
	return e.Open(at)
}

// Pause stops a node with its replica, as SIGSTOP does, until Resume. Calls of its Backend wait,
// its Handler is not called, and messages to it wait. What the program itself does goes on.
func (e *Engine) Pause(at int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := e.nodes[at]; n.up && !n.paused {
		n.paused, n.resumed = true, make(chan struct{})
		e.settle()
	}
}

// Resume lets a node that is paused go on.
func (e *Engine) Resume(at int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.resume(e.nodes[at])
	e.settle()
}

// resume is Resume with Engine.mu held, without what follows from it.
func (e *Engine) resume(n *node) {
	if !n.paused {
		return
	}
	n.paused = false
	close(n.resumed)
	for _, f := range n.frozen {
		s := &e.streams[f.stream*int(kinds)+int(kindBus)]
		s.events++
		heap.Push(&e.queue, event{e.now(), f.stream*int(kinds) + int(kindBus), s.events, func() {
			e.arrive(f.stream, n.i, f.run)
		}})
	}
	n.frozen = nil
	poke(e.wake)
	if b := n.process; b != nil {
		for _, c := range b.feed {
			poke(c)
		}
		poke(b.nodes)
		poke(b.majority)
		poke(b.messages)
	}
}

// Cut loses everything that one node sends to another one from now on, and what is on its way. The
// other direction still works: cut it as well for a whole cut.
func (e *Engine) Cut(from, to int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if from != to {
		e.cut[from][to] = true
		e.settle()
	}
}

// Isolate cuts a node off from all others, in both directions.
func (e *Engine) Isolate(at int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.nodes {
		if i != at {
			e.cut[i][at], e.cut[at][i] = true, true
		}
	}
	e.settle()
}

// Heal ends all cuts.
func (e *Engine) Heal() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.cut {
		clear(e.cut[i])
	}
	e.settle()
}

// LoseLeaders makes every partition, and the register, lose its leader. Elections follow.
func (e *Engine) LoseLeaders() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, u := range e.units {
		u.leader = -1
	}
	e.settle()
}

// Leader returns the node that leads a partition, or, for Options.Partitions, the register. It
// returns -1 while there is none that works.
func (e *Engine) Leader(part int) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.led(part) {
		return -1
	}
	return e.units[part].leader
}

// SetDelay changes Options.Delay. A delay of 0 or less is 1 ms.
func (e *Engine) SetDelay(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d <= 0 {
		d = time.Millisecond
	}
	e.o.Delay = d
}

// SetFull makes the engine refuse with ErrFull what needs space, or ends that.
func (e *Engine) SetFull(full bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.full = full
}

// Dropped returns how many messages and calls to a node were dropped for want of room.
func (e *Engine) Dropped(at int) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.nodes[at].dropped
}
