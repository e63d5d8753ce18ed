// Package queue holds events until one goroutine has time for them. Adding to a queue never waits.
package queue

import "sync"

// A Queue is bounded in number and in bytes. An item that does not fit is lost; its number is then
// missing. The last quarter is for peers that have at most an eighth of the queue, so one peer
// cannot fill the queue.
type Queue[T any] struct {
	most, mostBytes int           // immutable
	ready           chan struct{} // capacity 1

	mu sync.Mutex
	// Guarded by mu.
	items  []item[T]
	bytes  int
	peers  map[string]load // those that have something in the queue
	number uint64          // of the last call of Add
	closed bool
}

type item[T any] struct {
	value T
	peer  string
	bytes int
}

// A load is the share of one peer in the queue.
type load struct{ items, bytes int }

// New returns an empty Queue for at most most items, of at most mostBytes together.
func New[T any](most, mostBytes int) *Queue[T] {
	return &Queue[T]{most: most, mostBytes: mostBytes, ready: make(chan struct{}, 1),
		peers: map[string]load{}}
}

// Add adds the result of value, and says whether there was room. It calls value only if there is
// room, with a lock held. value gets the number of this call of Add; the first call has number 1.
// So the items are in the order of their numbers. bytes is the size of the item, peer the peer that
// it is about.
func (q *Queue[T]) Add(peer string, bytes int, value func(number uint64) T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.number++
	if q.closed || !q.fitsLocked(peer, bytes) {
		return false
	}
	q.items = append(q.items, item[T]{value(q.number), peer, bytes})
	q.bytes += bytes
	l := q.peers[peer]
	q.peers[peer] = load{l.items + 1, l.bytes + bytes}
	q.signal()
	return true
}

func (q *Queue[T]) fitsLocked(peer string, bytes int) bool {
	fits := func(all, own, more, most int) bool {
		return all+more <= most && (all+more <= most-most/4 || own+more <= max(1, most/8))
	}
	l := q.peers[peer]
	return fits(len(q.items), l.items, 1, q.most) && fits(q.bytes, l.bytes, bytes, q.mostBytes)
}

// Take removes and returns the first items: at most most, and at most mostBytes together. It
// returns at least one, if there is one.
func (q *Queue[T]) Take(most, mostBytes int) (values []T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, bytes := 0, 0
	for n < min(most, len(q.items)) && (n == 0 || bytes+q.items[n].bytes <= mostBytes) {
		x := &q.items[n]
		bytes += x.bytes
		values = append(values, x.value)
		if l := q.peers[x.peer]; l.items == 1 {
			delete(q.peers, x.peer)
		} else {
			q.peers[x.peer] = load{l.items - 1, l.bytes - x.bytes}
		}
		n++
	}
	clear(q.items[:n])
	q.items = q.items[n:]
	q.bytes -= bytes
	return values
}

// Ready returns a channel that receives a value after an Add or Close. One value may stand for
// several calls.
func (q *Queue[T]) Ready() <-chan struct{} { return q.ready }

// Load returns the number of items, their size in bytes, and whether the queue is closed.
func (q *Queue[T]) Load() (items, bytes int, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items), q.bytes, q.closed
}

// Close makes every later Add fail. Items in the queue stay.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

// signal wakes the goroutine that reads from Ready.
func (q *Queue[T]) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}
