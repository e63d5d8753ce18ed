package journal

import "github.com/dunlin-mqtt/dunlin/store"

// A Batch is what one Commit makes durable, and who waits for it. It is guarded by Journal.mu until
// the committer has taken it and nobody pins it. Then it is owned by the committer, and after that
// by the releaser.
type Batch struct {
	// Rest is for the caller: what is to do when the batch is decided. Whoever pins the batch may
	// set it, and guards it against others that pin it as well.
	Rest any
	// Waiters are those that hold output. The Handler reads them.
	Waiters []Waiter

	ticket   uint64
	ops      []store.Op // nil: withdrawn
	bytes    int        // what the operations weigh
	counted  int        // how much of that the count of memory knows of
	urgent   bool       // somebody waits
	timed    bool       // Journal.lazy runs for it
	pins     int        // Writes that still fill in what they have added
	unpinned chan struct{}

	tied   map[store.Op]bool // operations that follow only if what is added is
	births []uint64          // Sessions that begin in it
	errand bool              // Journal.errands counts it: more is to do when it is decided
	done   chan struct{}     // not nil: goroutines wait
	err    error             // why nothing that was added is there; nil: it is durable
	stuck  error             // why what follows is not durable, with all that was carried
	dead   bool              // and never will be
	keeps  bool              // operations live on in Journal.carried
	probes bool              // a full store is tried with it

	publishes slab[store.Publish]
	sents     slab[store.Sent]
	releases  slab[store.Released]
	dones     slab[store.Done]
	forgets   slab[store.Forget]
}

// Ticket is the number of x.
func (x *Batch) Ticket() uint64 { return x.ticket }

// Err is why nothing of what x adds is there, nil if it is durable. As the next four it is for the
// Handler.
func (x *Batch) Err() error { return x.err }

// Stuck is why what follows in x is not durable, nil if it is. It will be, unless x is Dead.
func (x *Batch) Stuck() error { return x.stuck }

// Dead says whether the store has failed for good.
func (x *Batch) Dead() bool { return x.dead }

// Ops are the operations of x.
func (x *Batch) Ops() []store.Op { return x.ops }

// Births are the Sessions that begin in x.
func (x *Batch) Births() []uint64 { return x.births }

// enlistLocked notes that w holds output for x.
func (x *Batch) enlistLocked(w Waiting) {
	x.urgent = true
	if w.Last != x.ticket {
		x.Waiters = append(x.Waiters, w.Waiter)
	}
}

// tieLocked makes op, which follows, a part of what x adds.
func (x *Batch) tieLocked(op store.Op) {
	if x.tied == nil {
		x.tied = make(map[store.Op]bool)
	}
	x.tied[op] = true
}

// wantLocked makes a place to wait.
func (x *Batch) wantLocked() {
	x.urgent = true
	if x.done == nil {
		x.done = make(chan struct{})
	}
}

// freshLocked returns an empty batch.
func (j *Journal) freshLocked(ticket uint64) *Batch {
	if k := len(j.free); k > 0 {
		x := j.free[k-1]
		j.free = j.free[:k-1]
		x.ticket = ticket
		return x
	}
	return &Batch{ticket: ticket}
}

// recycle keeps the memory of x for another batch, unless somebody still has some of it.
func (j *Journal) recycle(x *Batch) {
	if x.done != nil || x.keeps || x.dead {
		return
	}
	for i := range x.publishes.n {
		op := x.publishes.at(i)
		clear(op.To)
		op.Message = nil
	}
	clear(x.ops)
	clear(x.Waiters)
	*x = Batch{
		Waiters: x.Waiters[:0], ops: x.ops[:0],
		publishes: x.publishes.emptied(), sents: x.sents.emptied(),
		releases: x.releases.emptied(), dones: x.dones.emptied(), forgets: x.forgets.emptied(),
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.free) < 2 && cap(x.ops) <= 1<<16 {
		j.free = append(j.free, x)
	}
}

// A slab is memory for many T that are used and given up together.
type slab[T any] struct {
	chunks []*[64]T
	n      int
}

// next returns one that may have been used before.
func (s *slab[T]) next() *T {
	if s.n == len(s.chunks)*64 {
		s.chunks = append(s.chunks, new([64]T))
	}
	s.n++
	return s.at(s.n - 1)
}

func (s *slab[T]) at(i int) *T { return &s.chunks[i/64][i%64] }

func (s *slab[T]) emptied() slab[T] { return slab[T]{chunks: s.chunks} }
