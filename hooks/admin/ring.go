package admin

import "sync"

// A ring keeps the last values that were added.
type ring[T any] struct {
	most int

	mu    sync.Mutex
	all   []T    // guarded by mu; oldest at next%most once it is full
	total uint64 // guarded by mu
}

func (r *ring[T]) add(v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) < r.most {
		r.all = append(r.all, v)
	} else {
		r.all[r.total%uint64(r.most)] = v
	}
	r.total++
}

// newest returns at most n values, the newest first.
func (r *ring[T]) newest(n int) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]T, 0, min(n, len(r.all)))
	for i := range uint64(cap(out)) {
		out = append(out, r.all[(r.total-1-i)%uint64(r.most)])
	}
	return out
}
