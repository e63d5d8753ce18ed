package memory

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// kind is a reason for which a node needs random numbers. Each kind of each node has a stream of
// its own, so that what one goroutine draws does not depend on what another one draws.
type kind int

const (
	kindCommit kind = iota
	kindFeed
	kindBus
	kindCall
	kindRead
	kindLead
	kinds
)

type stream struct {
	*rand.Rand
	events uint64
}

// An event is something that happens at a moment. Events of one moment have an order that does not
// depend on which goroutine was first.
type event struct {
	at     time.Duration // since the start
	stream int
	n      uint64 // of this stream
	run    func() // Engine.mu is held
}

type events []event

func (q events) Len() int      { return len(q) }
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q events) Less(i, j int) bool {
	a, b := &q[i], &q[j]
	if a.at != b.at {
		return a.at < b.at
	}
	if a.stream != b.stream {
		return a.stream < b.stream
	}
	return a.n < b.n
}

func (q *events) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = event{}
	*q = (*q)[:last]
	return x
}

// seed makes the streams of random numbers.
func (e *Engine) seed() {
	for i := range uint64(e.o.Nodes) * uint64(kinds) {
		e.streams = append(e.streams, stream{Rand: rand.New(rand.NewPCG(e.o.Seed, i+1))})
	}
}

func (e *Engine) draw(node int, k kind) *stream {
	return &e.streams[node*int(kinds)+int(k)]
}

// between returns a random time from low to high.
func (s *stream) between(low, high time.Duration) time.Duration {
	return low + time.Duration(s.Int64N(int64(high-low)+1))
}

func (e *Engine) now() time.Duration { return time.Since(e.start) }

// loop lets everything happen when it is due, until Close.
func (e *Engine) loop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-e.wake:
		case <-e.done:
			return
		}
		e.mu.Lock()
		for !e.closed && len(e.queue) > 0 && e.queue[0].at <= e.now() {
			heap.Pop(&e.queue).(event).run()
		}
		if len(e.queue) > 0 {
			timer.Reset(e.queue[0].at - e.now())
		}
		e.mu.Unlock()
	}
}

// after runs a function after d. Engine.mu is held, then too. node and k say on whose behalf.
func (e *Engine) after(node int, k kind, d time.Duration, run func()) {
	s := e.draw(node, k)
	s.events++
	e.push(event{e.now() + d, node*int(kinds) + int(k), s.events, run})
}

func (e *Engine) push(ev event) {
	if e.closed {
		return
	}
	heap.Push(&e.queue, ev)
	if e.queue[0].n == ev.n && e.queue[0].stream == ev.stream {
		poke(e.wake)
	}
}

// poke wakes the goroutine that waits for c, or that will look at it next.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// delay returns what a message takes.
func (e *Engine) delay(from int, k kind) time.Duration {
	return e.draw(from, k).between(e.o.Delay/2, e.o.Delay*3/2)
}

// send lets a message arrive at a node: arrive runs there, unless the message is lost. Messages of
// kindBus between two nodes keep their order. Engine.mu is held.
func (e *Engine) send(k kind, from, to int, arrive func()) {
	e.fly(k, [2]int{from, to}, func() {}, arrive)
}

// fly is send; landed runs when the message arrives, and also when it is lost.
func (e *Engine) fly(k kind, way [2]int, landed, arrive func()) {
	from, to := way[0], way[1]
	d := e.delay(from, k)
	if k == kindBus {
		d = max(d, e.fifo[from][to]-e.now()+1)
		e.fifo[from][to] = e.now() + d
	}
	e.after(from, k, d, func() {
		landed()
		e.arrive(from, to, arrive)
	})
}

// arrive runs what a message brings to a node. A node that is paused gets it when it goes on.
func (e *Engine) arrive(from, to int, run func()) {
	n := e.nodes[to]
	switch {
	case e.cut[from][to] || !n.up:
	case !n.paused:
		run()
	case len(n.frozen) < maxFrozen:
		n.frozen = append(n.frozen, event{stream: from, run: run})
	default:
		n.dropped++
	}
}

// A question is what a node asks the leader of a unit, again and again until it has the answer. The
// leader decides it once.
type question struct {
	b       *Backend
	unit    int
	kind    kind
	decide  func() bool // false: not yet, ask again
	decided bool
	answer  func() // what the answer does at the node that has asked
	done    bool
}

// ask sends a question to the leader, and again after a while. Engine.mu is held.
func (e *Engine) ask(q *question) {
	from := q.b.node.i
	if q.done || q.b.dead {
		return
	}
	leader := e.units[q.unit].leader
	if leader >= 0 && !q.b.node.paused {
		e.send(q.kind, from, leader, func() {
			if e.units[q.unit].leader != leader || !e.eligible(leader) {
				return
			}
			q.decided = q.decided || q.decide()
			if !q.decided {
				return
			}
			e.send(kindLead, leader, from, func() {
				if !q.done && !q.b.dead {
					q.done = true
					q.answer()
				}
			})
		})
	}
	e.after(from, q.kind, max(250*time.Millisecond, 4*e.o.Delay), func() { e.ask(q) })
}
