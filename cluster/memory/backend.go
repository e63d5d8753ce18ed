package memory

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A Backend is the process of a node.
type Backend struct {
	e      *Engine
	node   *node
	closed chan struct{}
	ctx    context.Context // of calls of Handler.Called
	cancel context.CancelFunc
	all    sync.WaitGroup

	// immutable after the beginning of Start
	name string
	info []byte
	h    cluster.Handler

	// what wakes the goroutines
	feed                      []chan struct{} // by partition
	nodes, majority, messages chan struct{}

	// guarded by Engine.mu
	dead, began, ready     bool
	joined, joining, taken bool
	drained                bool
	incarnation            uint64
	given                  []uint64 // by partition: up to where Records got everything
	starting               *starting
	listed                 uint64 // version of live
	live                   []cluster.Node
	alone                  uint64 // number of the last change of isolated
	isolated, lonely       bool   // reaches no majority; for a second
	committing, broken     bool
	bus
}

// starting is what Start waits for: that the replica has all units up to some positions.
type starting struct {
	upTo []uint64
	done chan struct{}
}

var (
	errNotStarted = errors.New("cluster/memory: the Backend has not been started")
	errStarted    = errors.New("cluster/memory: Start was called before")
	errCommits    = errors.New("cluster/memory: Commit was called while another Commit waits")
	errPart       = errors.New("cluster/memory: no such partition")
)

func newBackend(e *Engine, n *node) *Backend {
	b := &Backend{
		e: e, node: n, closed: make(chan struct{}), given: make([]uint64, e.o.Partitions),
		nodes: make(chan struct{}, 1), majority: make(chan struct{}, 1),
		messages: make(chan struct{}, 1), bus: newBus(e.o.Nodes),
	}
	for range e.o.Partitions {
		b.feed = append(b.feed, make(chan struct{}, 1))
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// goes starts a goroutine that Close waits for. Engine.mu is held.
func (b *Backend) goes(f func()) {
	b.all.Add(1)
	b.e.all.Go(func() { // Backend.Close and Engine.Close wait for it
		defer b.all.Done()
		f()
	})
}

// Start is that of cluster.Backend.
func (b *Backend) Start(ctx context.Context, n cluster.Node, h cluster.Handler) (
	cluster.Limits, error) {
	if err := n.Check(); err != nil {
		return cluster.Limits{}, err
	}
	b.e.mu.Lock()
	if b.dead || b.began {
		defer b.e.mu.Unlock()
		if b.dead {
			return cluster.Limits{}, cluster.ErrClosed
		}
		return cluster.Limits{}, errStarted
	}
	b.began, b.name, b.info, b.h = true, n.Name, slices.Clone(n.Info), h
	answered := make(chan struct{})
	b.e.ask(&question{
		b: b, unit: b.e.registerUnit(), kind: kindLead,
		decide: func() bool { return b.e.join(b) },
		answer: func() {
			b.joined = !b.taken
			close(answered)
		},
	})
	b.e.mu.Unlock()
	if err := b.wait(ctx, answered); err != nil {
		return cluster.Limits{}, err
	}
	b.e.mu.Lock()
	if b.taken {
		b.e.mu.Unlock()
		return cluster.Limits{}, cluster.ErrNameTaken
	}
	s := &starting{done: make(chan struct{})}
	for _, u := range b.e.units {
		s.upTo = append(s.upTo, u.pos)
	}
	b.starting = s
	b.caughtUp()
	b.e.settle()
	b.e.mu.Unlock()
	if err := b.wait(ctx, s.done); err != nil {
		return cluster.Limits{}, err
	}
	if err := b.hearInterest(ctx); err != nil {
		return cluster.Limits{}, err
	}
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	l := b.e.limits()
	l.Incarnation = b.incarnation
	return l, nil
}

func (e *Engine) limits() cluster.Limits {
	return cluster.Limits{
		Partitions: e.o.Partitions, Record: maxRecord, Value: maxValue, Batch: maxBatch,
		Durability: store.DurabilityNone, Replicas: len(e.nodes)/2 + 1,
	}
}

// caughtUp lets Start go on if the replica has all that it waits for, and starts the goroutines.
// Engine.mu is held.
func (b *Backend) caughtUp() {
	s := b.starting
	if s == nil || b.dead {
		return
	}
	for u, pos := range s.upTo {
		if b.node.seen[u] < pos {
			return
		}
	}
	b.starting, b.ready = nil, true
	copy(b.given, b.node.seen)
	for part := range b.feed {
		b.goes(func() { b.follow(part) })
	}
	b.goes(b.tellNodes)
	b.goes(b.tellMajority)
	b.goes(b.tellMessages)
	close(s.done)
}

// wait waits until c is closed.
func (b *Backend) wait(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.closed:
		return cluster.ErrClosed
	}
}

// enter locks Engine.mu when the Backend works, or returns why it does not. It waits while the node
// is paused.
func (b *Backend) enter(ctx context.Context) error {
	for {
		b.e.mu.Lock()
		switch {
		case b.dead:
			b.e.mu.Unlock()
			return cluster.ErrClosed
		case !b.ready:
			b.e.mu.Unlock()
			return errNotStarted
		case !b.node.paused:
			return nil
		}
		resumed := b.node.resumed
		b.e.mu.Unlock()
		if err := b.wait(ctx, resumed); err != nil {
			return err
		}
	}
}

// Close is that of cluster.Backend. It may be called again, and after Engine.Kill.
func (b *Backend) Close() error {
	b.e.mu.Lock()
	if !b.dead {
		b.e.kill(b.node)
		b.e.settle()
	}
	b.e.mu.Unlock()
	b.all.Wait()
	return nil
}

// idle waits until a goroutine of the Backend is woken. It returns false when it shall end.
func (b *Backend) idle(wake chan struct{}) bool {
	select {
	case <-wake:
		return true
	case <-b.closed:
		return false
	}
}

// works says whether functions of the Handler may be called. Engine.mu is held.
func (b *Backend) works() bool { return !b.dead && !b.node.paused }

// follow gives the records of a partition to the Handler.
func (b *Backend) follow(part int) {
	for {
		var some []*cluster.Record
		var upTo uint64
		b.e.mu.Lock()
		if seen := b.node.seen[part]; b.works() && seen > b.given[part] {
			some, upTo = b.e.parts[part].unseen(b.given[part], seen, 256)
			b.given[part] = upTo
		}
		b.e.mu.Unlock()
		switch {
		case upTo == 0:
			if !b.idle(b.feed[part]) {
				return
			}
		case b.h.Records != nil:
			b.h.Records(part, some, upTo)
		}
	}
}

// tellNodes gives the newest list of the nodes to the Handler.
func (b *Backend) tellNodes() {
	told := uint64(0)
	for {
		b.e.mu.Lock()
		version, live := b.listed, b.live
		works := b.works()
		b.e.mu.Unlock()
		switch {
		case !works || version == told:
			if !b.idle(b.nodes) {
				return
			}
		default:
			if told = version; b.h.Nodes != nil {
				b.h.Nodes(slices.Clone(live))
			}
		}
	}
}

// tellMajority tells the Handler whether there is a majority.
func (b *Backend) tellMajority() {
	told := false
	for {
		b.e.mu.Lock()
		lonely, works := b.lonely, b.works()
		b.e.mu.Unlock()
		switch {
		case !works || lonely == told:
			if !b.idle(b.majority) {
				return
			}
		default:
			var err error
			if told = lonely; lonely {
				err = errAlone
			}
			if b.h.Majority != nil {
				b.h.Majority(err)
			}
		}
	}
}

// pause waits for d, as for an answer of the node's own replica.
func (b *Backend) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.closed:
		return cluster.ErrClosed
	}
}
