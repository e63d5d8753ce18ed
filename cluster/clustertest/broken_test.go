package clustertest

import (
	"context"
	"iter"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/cluster/memory"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A broken is a Backend with a fault: each function that is not nil stands for a method.
type broken struct {
	cluster.Backend
	w        *world
	at       int
	h        cluster.Handler
	handler  func(b *broken, h *cluster.Handler)
	start    func(b *broken, ctx context.Context, n cluster.Node) (cluster.Limits, error)
	commit   func(b *broken, ctx context.Context, x *cluster.Batch) error
	read     func(p *cluster.Page, err error) (cluster.Page, error)
	retained func(b *broken, at *uint64, r []*cluster.Record) []*cluster.Record
	synced   func() error
	send     func(b *broken, m *store.Message) bool
	call     func(b *broken, ctx context.Context, node string, body []byte) ([]byte, error)
	drain    func(b *broken, ctx context.Context) error
	get      func(v cluster.Entry, err error) (cluster.Entry, error)
	group    sync.WaitGroup
	limit    int
}

// A world is what the broken Backends of an engine share.
type world struct {
	mu    sync.Mutex
	last  map[int]uint64 // a position that was seen
	seen  map[string]int
	nodes [3]*broken
	e     *Engine
}

func (w *world) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// count counts things by name, over all nodes.
func (w *world) count(of string) (n int) {
	w.locked(func() {
		w.seen[of]++
		n = w.seen[of]
	})
	return n
}

func (b *broken) Start(ctx context.Context, n cluster.Node, h cluster.Handler) (cluster.Limits,
	error) {
	b.h = h
	if b.handler != nil {
		b.handler(b, &h)
	}
	if b.start != nil {
		b.h = h
		return b.start(b, ctx, n)
	}
	return b.Backend.Start(ctx, n, h)
}

func (b *broken) Commit(ctx context.Context, x *cluster.Batch) error {
	if b.commit != nil {
		return b.commit(b, ctx, x)
	}
	return b.Backend.Commit(ctx, x)
}

func (b *broken) Read(ctx context.Context, part int, after uint64, filters []string, limit int) (
	cluster.Page, error) {
	if b.limit > 0 {
		limit = b.limit
	}
	p, err := b.Backend.Read(ctx, part, after, filters, limit)
	if b.read != nil {
		return b.read(&p, err)
	}
	return p, err
}

func (b *broken) Retained(ctx context.Context, part int, at *uint64,
) iter.Seq2[*cluster.Record, error] {
	if b.retained == nil {
		return b.Backend.Retained(ctx, part, at)
	}
	return func(yield func(*cluster.Record, error) bool) {
		var all []*cluster.Record
		for r, err := range b.Backend.Retained(ctx, part, at) {
			if err != nil {
				yield(nil, err)
				return
			}
			all = append(all, r)
		}
		for _, r := range b.retained(b, at, all) {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (b *broken) Get(ctx context.Context, key string) (cluster.Entry, error) {
	v, err := b.Backend.Get(ctx, key)
	if b.get != nil {
		return b.get(v, err)
	}
	return v, err
}

func (b *broken) Synced(ctx context.Context) error {
	if b.synced != nil {
		return b.synced()
	}
	return b.Backend.Synced(ctx)
}

func (b *broken) Send(m *store.Message) {
	if b.send == nil || b.send(b, m) {
		b.Backend.Send(m)
	}
}

func (b *broken) Call(ctx context.Context, node string, body []byte) ([]byte, error) {
	if b.call != nil {
		return b.call(b, ctx, node, body)
	}
	return b.Backend.Call(ctx, node, body)
}

func (b *broken) Drain(ctx context.Context) error {
	if b.drain != nil {
		return b.drain(b, ctx)
	}
	return b.Backend.Drain(ctx)
}

func (b *broken) Close() error {
	err := b.Backend.Close()
	b.group.Wait()
	return err
}

// guess gives records positions that might be theirs.
func (b *broken) guess(x *cluster.Batch) {
	b.w.locked(func() {
		for _, r := range x.Records {
			b.w.last[r.Part] += 2
			r.Pos = b.w.last[r.Part]
		}
	})
}

// learn notes positions.
func (b *broken) learn(x *cluster.Batch) {
	b.w.locked(func() {
		for _, r := range x.Records {
			b.w.last[r.Part] = max(b.w.last[r.Part], r.Pos)
		}
	})
}

// copied returns a Batch that is committed instead of another one.
func copied(x *cluster.Batch) *cluster.Batch {
	c := &cluster.Batch{Forget: x.Forget, Changes: x.Changes}
	for _, r := range x.Records {
		d := *r
		c.Records = append(c.Records, &d)
	}
	return c
}

// A fault is a way to break the rules, with the check that must find it.
type fault struct {
	check, name string
	breaks      func(b *broken)
	engine      func(e *Engine, w *world)
}

var faults = slices.Concat(logFaults, registerFaults, nodeFaults)

// brokenEngine returns an engine whose Backends have a fault.
func brokenEngine(t *testing.T, f *fault) Engine {
	inner, err := memory.New(memory.Options{Seed: 1, Partitions: 2})
	require.NoError(t, err)
	e := Memory(inner, 2*time.Second)
	w := &world{last: map[int]uint64{}, seen: map[string]int{}, e: &e}
	open := e.Open
	e.Open = func(node int) (cluster.Backend, error) {
		b, err := open(node)
		x := &broken{Backend: b, w: w, at: node}
		if f.breaks != nil {
			f.breaks(x)
		}
		w.locked(func() { w.nodes[node] = x })
		return x, err
	}
	if f.engine != nil {
		f.engine(&e, w)
	}
	return e
}

func TestEachFaultIsFound(t *testing.T) {
	for _, f := range faults {
		t.Run(f.check+"/"+f.name, func(t *testing.T) {
			at := slices.IndexFunc(checks, func(c *check) bool { return c.name == f.check })
			require.GreaterOrEqual(t, at, 0, f.check)
			synctest.Test(t, func(t *testing.T) {
				err := checks[at].verify(brokenEngine(t, f), 1)
				require.Error(t, err)
				t.Log(err)
			})
		})
	}
}

func TestEachCheckFindsAFault(t *testing.T) {
	for _, c := range checks {
		require.True(t, slices.ContainsFunc(faults, func(f *fault) bool { return f.check == c.name }),
			"no fault is for %s", c.name)
	}
}

func TestAChecksNeedsItsFaults(t *testing.T) {
	ran := 0
	for _, c := range checks {
		if c.faults == "" {
			continue
		}
		ran++
		e := Engine{Election: time.Second}
		require.False(t, e.has(c.faults), c.name)
	}
	require.Greater(t, ran, 8)
	all := Engine{
		Kill: func(int) {}, Pause: func(int) {}, Resume: func(int) {}, Cut: func(int, int) {},
		Heal: func() {}, LoseLeaders: func() {}, SetFull: func(bool) {},
	}
	require.True(t, all.has("kpclf"))
}
