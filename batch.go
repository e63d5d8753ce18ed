package dunlin

import "github.com/dunlin-mqtt/dunlin/store"

// This file is what the committer takes at a time: operations, and who waits for them.

// A batch is what one Commit makes durable, and who waits for it. Guarded by journal.mu until the committer has taken it and nobody pins
// it, then owned by the committer, then by the releaser.
type batch struct {
	n        uint64
	ops      []store.Op // nil: withdrawn
	bytes    int        // what the operations weigh
	counted  int        // how much of that the count of memory knows of
	urgent   bool       // somebody waits
	timed    bool       // journal.lazy runs for it
	pins     int        // turns that still fill in what they have added
	unpinned chan struct{}

	conns  []*conn         // that hold output
	locals []*Subscription // that wait for QoS 2 messages
	late   []late
	undo   []retainedUndo
	done   chan struct{} // not nil: goroutines wait
	births []uint64      // Sessions that begin in it
	err    error         // why nothing that was added is there; nil: it is durable
	stuck  error         // why what follows is not durable, with all that was carried; nil: it is
	dead   bool          // and never will be
	pinned bool          // operations live on in journal.carried
	probes bool          // a full store is tried with it

	publishes slab[store.Publish]
	sents     slab[store.Sent]
	releases  slab[store.Released]
	dones     slab[store.Done]
	forgets   slab[store.Forget]
}

// late is a QoS 2 message for receivers that the store does not know, or that get it at QoS 0: they get it once it is durable.
type late struct {
	msg     *message
	to      []target
	receipt *receipt // that counts a place for each of them; nil for most
}

// retainedUndo is what a change of a retained message is undone with.
type retainedUndo struct {
	topic    string
	now, old *message // nil: none
}

// enlist notes that c holds output for x. mu is held, and the lock of c's session.
func (x *batch) enlist(c *conn) {
	x.urgent = true
	if h := c.out.held; h == nil || len(h.marks) == 0 || h.marks[len(h.marks)-1].batch != x.n {
		x.conns = append(x.conns, c)
	}
}

// want makes a place to wait. mu is held.
func (x *batch) want() {
	x.urgent = true
	if x.done == nil {
		x.done = make(chan struct{})
	}
}

// recycle keeps the memory of x for another batch, unless somebody still has some of it.
func (j *journal) recycle(x *batch) {
	if x.done != nil || x.pinned || x.dead {
		return
	}
	for i := range x.publishes.n {
		op := x.publishes.at(i)
		clear(op.To)
		op.Message = nil
	}
	clear(x.ops)
	clear(x.late)
	clear(x.undo)
	clear(x.locals)
	y := batch{ops: x.ops[:0], conns: x.conns[:0], locals: x.locals[:0], late: x.late[:0], undo: x.undo[:0],
		publishes: x.publishes.emptied(), sents: x.sents.emptied(), releases: x.releases.emptied(), dones: x.dones.emptied(), forgets: x.forgets.emptied()}
	*x = y
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
