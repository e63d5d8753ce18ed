// Package turns gives out a bounded number of turns in an order that is fair to peers. A peer that
// wants many turns waits behind its own turns, and not in front of all other peers.
package turns

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// ErrFull is the error of Take when too many claims wait.
var ErrFull = errors.New("too many are waiting for a turn")

// A Claim asks for one turn.
type Claim struct {
	// Peer is the peer that wants the turn, for instance an address.
	Peer string
	// Known peers wait in a line of their own. While peers wait in both lines, this line gets every
	// second turn.
	Known bool
	// Size is the room that the claim takes while it waits. Zero: 1.
	Size int
}

// A Queue gives out turns. In each of its two lines the peers take turns. The claims of one peer
// are served in the order of its calls.
type Queue struct {
	share int // how many turns one peer may have at a time
	room  int // the sum of the sizes of what may wait in each line

	mu sync.Mutex
	// Guarded by mu.
	free  int            // turns that nobody has
	held  map[string]int // turns, by the peer that has them
	lines [2]line        // of those that are not Known, and of those that are
	next  int            // the line whose turn it is
}

// A line holds waiting claims. Everything in it is guarded by the mu of its Queue.
type line struct {
	size     int                      // of all that wait
	rotation list.List                // of *group; the first is the next
	groups   map[string]*list.Element // of rotation, by peer
}

// A group holds the waiting claims of one peer.
type group struct {
	peer    string
	size    int       // of all waiters
	waiters list.List // of *waiter; the first has waited longest
}

// A waiter is one call of Take.
type waiter struct {
	size  int
	place *list.Element // in its group; nil: it waits no longer; guarded by the mu of the Queue
	ready chan struct{} // closed when it waits no longer
	err   error         // why it has no turn; set before ready is closed
}

// New returns a Queue of n turns. One peer has at most share of them at a time. room bounds the sum
// of the sizes of the waiting claims in each line.
func New(n, share, room int) *Queue {
	q := &Queue{share: share, room: room, free: n, held: map[string]int{}}
	for i := range q.lines {
		q.lines[i].groups = map[string]*list.Element{}
	}
	return q
}

// Take waits for a turn. The caller must call give once to end the turn. The error is that of ctx,
// or ErrFull. Take returns ErrFull at once if the line is full. It returns ErrFull later if a peer
// with fewer waiting claims needs the room.
func (q *Queue) Take(ctx context.Context, c Claim) (give func(), err error) {
	c.Size = max(c.Size, 1)
	give = func() { q.give(c.Peer) }
	q.mu.Lock()
	if q.free > 0 && q.held[c.Peer] < q.share {
		q.grantLocked(c.Peer)
		q.mu.Unlock()
		return give, nil
	}
	l := &q.lines[0]
	if c.Known {
		l = &q.lines[1]
	}
	if !l.makeRoomLocked(&c, q.room) {
		q.mu.Unlock()
		return nil, ErrFull
	}
	w := l.joinLocked(&c)
	q.mu.Unlock()
	select {
	case <-w.ready:
		if w.err != nil {
			return nil, w.err
		}
		return give, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	waits := w.place != nil
	if waits {
		l.leaveLocked(c.Peer, w)
	}
	q.mu.Unlock()
	if !waits && w.err == nil { // it was given a turn at the same moment
		give()
	}
	return nil, ctx.Err()
}

// give ends a turn of a peer.
func (q *Queue) give(peer string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free++
	if q.held[peer]--; q.held[peer] == 0 {
		delete(q.held, peer)
	}
	for q.free > 0 {
		switch {
		case q.serveLocked(&q.lines[q.next]):
			q.next = 1 - q.next
		case !q.serveLocked(&q.lines[1-q.next]):
			return
		}
	}
}

func (q *Queue) grantLocked(peer string) {
	q.free--
	q.held[peer]++
}

// serveLocked gives a turn to the first peer of l that may have one, and says whether it did.
func (q *Queue) serveLocked(l *line) bool {
	for e := l.rotation.Front(); e != nil; e = e.Next() {
		g := e.Value.(*group)
		if q.held[g.peer] >= q.share {
			continue
		}
		q.grantLocked(g.peer)
		l.rotation.MoveToBack(e)
		w := g.waiters.Front().Value.(*waiter)
		l.leaveLocked(g.peer, w)
		close(w.ready)
		return true
	}
	return false
}

// joinLocked adds a waiter.
func (l *line) joinLocked(c *Claim) *waiter {
	e := l.groups[c.Peer]
	if e == nil {
		e = l.rotation.PushBack(&group{peer: c.Peer})
		l.groups[c.Peer] = e
	}
	w, g := &waiter{size: c.Size, ready: make(chan struct{})}, e.Value.(*group)
	w.place = g.waiters.PushBack(w)
	g.size += w.size
	l.size += w.size
	return w
}

// leaveLocked removes a waiter of a peer.
func (l *line) leaveLocked(peer string, w *waiter) {
	e := l.groups[peer]
	g := e.Value.(*group)
	g.waiters.Remove(w.place)
	w.place = nil
	g.size -= w.size
	l.size -= w.size
	if g.waiters.Len() == 0 {
		l.rotation.Remove(e)
		delete(l.groups, peer)
	}
}

// makeRoomLocked says whether there is room for a claim. If there is none, it removes the last
// claims of the peers with the most waiting claims, as long as these peers have more than the new
// peer would have.
func (l *line) makeRoomLocked(c *Claim, room int) bool {
	with := c.Size // what the newcomer would have
	if e := l.groups[c.Peer]; e != nil {
		with += e.Value.(*group).size
	}
	for l.size > room-c.Size {
		var most *group
		for e := l.rotation.Front(); e != nil; e = e.Next() {
			if g := e.Value.(*group); most == nil || g.size > most.size {
				most = g
			}
		}
		if most == nil || most.size <= with {
			return false
		}
		w := most.waiters.Back().Value.(*waiter)
		l.leaveLocked(most.peer, w)
		w.err = ErrFull
		close(w.ready)
	}
	return true
}
