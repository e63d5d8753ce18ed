// Package turns gives out a bounded number of turns in an order that is fair to peers: a peer that wants many turns
// waits for them behind its own, not in front of everybody else.
package turns

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// ErrFull is the error of Take when too many wait.
var ErrFull = errors.New("too many are waiting for a turn")

// A Peer wants turns.
type Peer struct {
	// Key tells peers apart, for instance an address.
	Key string
	// Known peers wait in a line of their own. While both lines have somebody in them, they get every second turn.
	Known bool
}

// A Queue gives out turns. In each of its two lines, peers take turns in rotation, and the turns of one peer are given
// in the order in which it asked.
type Queue struct {
	share int // how many turns one peer may have at a time
	room  int // how many may wait in each line

	mu sync.Mutex
	// Guarded by mu.
	free  int            // turns that nobody has
	held  map[string]int // turns, by the Key of the peer that has them
	lines [2]line        // of those that are not Known, and of those that are
	next  int            // the line whose turn it is
}

// A line is those that wait. All of it is guarded by the mu of its Queue.
type line struct {
	waiting  int
	rotation list.List                // of *group; the first is the next
	groups   map[string]*list.Element // of rotation, by Key
}

// A group is those that wait for one peer.
type group struct {
	key     string
	waiters list.List // of *waiter; the first has waited longest
}

// A waiter is one call of Take.
type waiter struct {
	place *list.Element // in its group; nil: it waits no longer; guarded by the mu of the Queue
	ready chan struct{} // closed when it waits no longer
	err   error         // why it has no turn; set before ready is closed
}

// New returns a Queue of n turns. One peer has at most share of them at a time. room bounds how many wait in each line.
func New(n, share, room int) *Queue {
	q := &Queue{share: share, room: room, free: n, held: map[string]int{}}
	for i := range q.lines {
		q.lines[i].groups = map[string]*list.Element{}
	}
	return q
}

// Take waits for a turn of the peer, which the caller must end with give, once. The error is that of ctx, or ErrFull.
// ErrFull is returned at once if the line is full, or later, when somebody else came whose peer has fewer waiting than p
// has.
func (q *Queue) Take(ctx context.Context, p Peer) (give func(), err error) {
	give = func() { q.give(p.Key) }
	q.mu.Lock()
	if q.free > 0 && q.held[p.Key] < q.share {
		q.grantLocked(p.Key)
		q.mu.Unlock()
		return give, nil
	}
	l := q.line(p)
	if l.waiting >= q.room && !l.makeRoomLocked(p.Key) {
		q.mu.Unlock()
		return nil, ErrFull
	}
	w := l.joinLocked(p.Key)
	q.mu.Unlock()
	select {
	case <-w.ready:
		return give, w.err
	case <-ctx.Done():
	}
	q.mu.Lock()
	waits := w.place != nil
	if waits {
		l.leaveLocked(p.Key, w)
	}
	q.mu.Unlock()
	if !waits && w.err == nil { // it was given a turn at the same moment
		give()
	}
	return nil, ctx.Err()
}

// give ends a turn of a peer.
func (q *Queue) give(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free++
	if q.held[key]--; q.held[key] == 0 {
		delete(q.held, key)
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

func (q *Queue) line(p Peer) *line {
	if p.Known {
		return &q.lines[1]
	}
	return &q.lines[0]
}

func (q *Queue) grantLocked(key string) {
	q.free--
	q.held[key]++
}

// serveLocked gives a turn to the first peer of l that may have one, and says whether there was one.
func (q *Queue) serveLocked(l *line) bool {
	for e := l.rotation.Front(); e != nil; e = e.Next() {
		g := e.Value.(*group)
		if q.held[g.key] >= q.share {
			continue
		}
		q.grantLocked(g.key)
		l.rotation.MoveToBack(e)
		w := g.waiters.Front().Value.(*waiter)
		l.leaveLocked(g.key, w)
		close(w.ready)
		return true
	}
	return false
}

// joinLocked adds a waiter for a peer.
func (l *line) joinLocked(key string) *waiter {
	e := l.groups[key]
	if e == nil {
		e = l.rotation.PushBack(&group{key: key})
		l.groups[key] = e
	}
	w := &waiter{ready: make(chan struct{})}
	w.place = e.Value.(*group).waiters.PushBack(w)
	l.waiting++
	return w
}

// leaveLocked removes a waiter of a peer.
func (l *line) leaveLocked(key string, w *waiter) {
	e := l.groups[key]
	g := e.Value.(*group)
	g.waiters.Remove(w.place)
	w.place = nil
	l.waiting--
	if g.waiters.Len() == 0 {
		l.rotation.Remove(e)
		delete(l.groups, key)
	}
}

// makeRoomLocked sends the last waiter of the peer away that has most of them, and says whether it did: not if that
// would leave the peer with no more than the newcomer's has.
func (l *line) makeRoomLocked(newcomer string) bool {
	own := 0
	if e := l.groups[newcomer]; e != nil {
		own = e.Value.(*group).waiters.Len()
	}
	var most *group
	for e := l.rotation.Front(); e != nil; e = e.Next() {
		if g := e.Value.(*group); most == nil || g.waiters.Len() > most.waiters.Len() {
			most = g
		}
	}
	if most == nil || most.waiters.Len() <= own+1 {
		return false
	}
	w := most.waiters.Back().Value.(*waiter)
	l.leaveLocked(most.key, w)
	w.err = ErrFull
	close(w.ready)
	return true
}
