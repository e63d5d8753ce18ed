package admin

import (
	"container/list"
	"slices"
	"sync"
	"time"
)

// A ring keeps the last values that were added. Values with the same key are one that is counted,
// so that a flood of one thing does not push everything else out.
type ring[T any] struct {
	most int

	mu    sync.Mutex
	order list.List                // guarded by mu; of *counted[T], the newest in front
	by    map[string]*list.Element // guarded by mu; those with a key
}

// counted is a value of a ring: the last one of those with its key.
type counted[T any] struct {
	value T
	key   string
	at    time.Time // when it was added, and when the first one was
	first time.Time
	count uint64
}

// add adds a value. With an empty key it is one of its own.
func (r *ring[T]) add(key string, v T) { r.merge(key, v, nil) }

// merge is add. If keep is not nil, it copies what stays of the old value into the new one.
func (r *ring[T]) merge(key string, v T, keep func(old, v *T)) {
	x := &counted[T]{value: v, key: key, at: time.Now(), count: 1}
	x.first = x.at
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.by[key]; e != nil {
		old := r.order.Remove(e).(*counted[T])
		x.first, x.count = old.first, old.count+1
		if keep != nil {
			keep(&old.value, &x.value)
		}
	} else if r.order.Len() >= r.most {
		delete(r.by, r.order.Remove(r.order.Back()).(*counted[T]).key)
	}
	e := r.order.PushFront(x)
	if key == "" {
		return
	}
	if r.by == nil {
		r.by = make(map[string]*list.Element)
	}
	r.by[key] = e
}

// newest returns at most n values, the newest first.
func (r *ring[T]) newest(n int) []counted[T] {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]counted[T], 0, min(n, r.order.Len()))
	for e := r.order.Front(); e != nil && len(out) < n; e = e.Next() {
		out = append(out, *e.Value.(*counted[T]))
	}
	return out
}

// newestOf returns at most n values of several rings, the newest first.
func newestOf[T any](n int, rings ...*ring[T]) (out []counted[T]) {
	for _, r := range rings {
		out = append(out, r.newest(n)...)
	}
	slices.SortStableFunc(out, func(a, b counted[T]) int { return b.at.Compare(a.at) })
	return out[:min(n, len(out))]
}
