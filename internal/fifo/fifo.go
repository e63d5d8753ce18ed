// Package fifo is a queue that grows without copying.
package fifo

// A Queue is a queue in chunks: it grows without copying, and one that was never used owns nothing.
type Queue[T any] struct {
	first, last *chunk[T]
	n           int32
	from, to    uint8 // first.e[from:], last.e[:to]
}

type chunk[T any] struct {
	e    [14]T      // of elements of 32 bytes: with the rest 512 bytes
	at   [14]uint32 // see PushAt
	next *chunk[T]
}

// Len is how many elements there are.
func (q *Queue[T]) Len() int32 { return q.n }

// Push puts v at the end.
func (q *Queue[T]) Push(v T) { q.PushAt(v, 0) }

// PushAt puts v at the end, with a number that says when it came.
func (q *Queue[T]) PushAt(v T, at uint32) {
	if q.last == nil || int(q.to) == len(q.last.e) {
		c := new(chunk[T])
		if q.last == nil {
			q.first, q.from = c, 0
		} else {
			q.last.next = c
		}
		q.last, q.to = c, 0
	}
	q.last.e[q.to], q.last.at[q.to] = v, at
	q.to++
	q.n++
}

// Front is the oldest, nil if there is none. The pointer is good until the next call.
func (q *Queue[T]) Front() *T {
	if q.n == 0 {
		return nil
	}
	return &q.first.e[q.from]
}

// FrontAt is the number that the oldest, which must be there, was put with.
func (q *Queue[T]) FrontAt() uint32 { return q.first.at[q.from] }

// Pop takes the oldest, which must be there.
func (q *Queue[T]) Pop() T {
	var zero T
	v := q.first.e[q.from]
	q.first.e[q.from] = zero
	q.from++
	q.n--
	switch {
	case q.n == 0:
		q.from, q.to = 0, 0
	case int(q.from) == len(q.first.e):
		q.first, q.from = q.first.next, 0
	}
	return v
}

// All yields the elements, oldest first. f returns false to stop.
func (q *Queue[T]) All(f func(*T) bool) {
	q.AllAt(func(v *T, _ uint32) bool { return f(v) })
}

// AllAt is All with the numbers that the elements were put with.
func (q *Queue[T]) AllAt(f func(v *T, at uint32) bool) {
	i := int(q.from)
	for c, n := q.first, q.n; n > 0; n-- {
		if i == len(c.e) {
			c, i = c.next, 0
		}
		if !f(&c.e[i], c.at[i]) {
			return
		}
		i++
	}
}

// Filter takes out those for which keep returns false. The others keep their order.
func (q *Queue[T]) Filter(keep func(*T) bool) {
	if q.n == 0 {
		return
	}
	from, i := q.first, int(q.from) // read
	to, j := q.first, int(q.from)   // written
	kept := int32(0)
	for n := q.n; n > 0; n-- {
		if i == len(from.e) {
			from, i = from.next, 0
		}
		if keep(&from.e[i]) {
			if j == len(to.e) {
				to, j = to.next, 0
			}
			to.e[j], to.at[j] = from.e[i], from.at[i]
			j++
			kept++
		}
		i++
	}
	clear(to.e[j:])
	to.next = nil
	q.last, q.to, q.n = to, uint8(j), kept
	if kept == 0 {
		q.from, q.to = 0, 0
	}
}
