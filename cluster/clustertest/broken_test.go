package clustertest

import (
	"context"
	"errors"
	"fmt"
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
	since time.Time
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

var logFaults = []*fault{
	{check: "L1 records keep their order", name: "a batch comes twice", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			err := b.Backend.Commit(ctx, x)
			if b.w.count("batch")%20 == 0 && err == nil {
				err = b.Backend.Commit(ctx, copied(x))
			}
			return err
		}
	}},
	{check: "L1 records keep their order", name: "the order of a batch", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			c := copied(x)
			slices.Reverse(c.Records)
			err := b.Backend.Commit(ctx, c)
			for i, r := range x.Records {
				r.Pos = c.Records[i].Pos
			}
			return err
		}
	}},
	{check: "L1 records keep their order", name: "a hole in the log", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			c := copied(x)
			if len(x.Records) > 1 && b.w.count("batch")%20 == 0 {
				c.Records = c.Records[1:]
			}
			err := b.Backend.Commit(ctx, c)
			missing := len(x.Records) - len(c.Records)
			for i, r := range c.Records {
				x.Records[missing+i].Pos = r.Pos
			}
			if missing > 0 {
				x.Records[0].Pos = c.Records[0].Pos - 1
			}
			return err
		}
	}},
	{check: "L2 every node follows the whole log", name: "a hole", breaks: func(b *broken) {
		b.handler = func(b *broken, h *cluster.Handler) {
			h.Records = func(part int, r []*cluster.Record, upTo uint64) {
				if len(r) > 0 && b.w.count("records")%50 == 0 {
					r = r[1:]
				}
				b.h.Records(part, r, upTo)
			}
		}
	}},
	{check: "L2 every node follows the whole log", name: "a record twice", breaks: func(b *broken) {
		b.handler = func(b *broken, h *cluster.Handler) {
			h.Records = func(part int, r []*cluster.Record, upTo uint64) {
				if len(r) > 0 && b.w.count("records")%50 == 0 {
					r = append(r, r[len(r)-1])
				}
				b.h.Records(part, r, upTo)
			}
		}
	}},
	{check: "L2 every node follows the whole log", name: "another order", breaks: func(b *broken) {
		b.handler = func(b *broken, h *cluster.Handler) {
			h.Records = func(part int, r []*cluster.Record, upTo uint64) {
				if len(r) > 1 && b.w.count("records")%20 == 0 {
					first, second := *r[0], *r[1]
					first.Pos, second.Pos = second.Pos, first.Pos
					r[0], r[1] = &second, &first
				}
				b.h.Records(part, r, upTo)
			}
		}
	}},
	{check: "L2 every node follows the whole log", name: "no filling after a cut",
		breaks: func(b *broken) {
			b.handler = func(b *broken, h *cluster.Handler) {
				h.Records = func(part int, r []*cluster.Record, upTo uint64) {
					for _, x := range r { // a message older than a second was lost on the way
						if time.Now().UnixNano()-x.Message.Expires < int64(time.Second) {
							b.h.Records(part, []*cluster.Record{x}, x.Pos)
						}
					}
					b.h.Records(part, nil, upTo)
				}
			}
			b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
				for _, r := range x.Records {
					r.Message.Expires = time.Now().UnixNano()
				}
				return b.Backend.Commit(ctx, x)
			}
		}},
	{check: "L3 what is committed is there", name: "acknowledged before it is committed",
		breaks: func(b *broken) {
			b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
				c := copied(x)
				b.guess(x)
				b.group.Go(func() {
					if b.Backend.Commit(ctx, c) == nil {
						b.learn(c)
					}
				})
				return nil
			}
		}},
	{check: "L3 what is committed is there", name: "a batch is lost", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			if b.w.count("batch")%7 == 0 {
				b.guess(x)
				return nil
			}
			err := b.Backend.Commit(ctx, x)
			b.learn(x)
			return err
		}
	}},
	{check: "L3 what is committed is there", name: "UpTo is too large", breaks: func(b *broken) {
		b.read = func(p *cluster.Page, err error) (cluster.Page, error) {
			p.UpTo += 3
			return *p, err
		}
	}},
	{check: "L4 once", name: "no Once", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			for _, r := range x.Records {
				r.Once = cluster.Key{}
			}
			return b.Backend.Commit(ctx, x)
		}
	}},
	{check: "L4 once", name: "Once of each node", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			for _, r := range x.Records {
				if r.Once.Name != "" {
					r.Once.Name += name(b.at)
				}
			}
			return b.Backend.Commit(ctx, x)
		}
	}},
	{check: "L4 once", name: "no Forget", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			x.Forget = nil
			return b.Backend.Commit(ctx, x)
		}
	}},
	{check: "L4 once", name: "Forget after the records", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			forget := x.Forget
			x.Forget = nil
			err := b.Backend.Commit(ctx, x)
			return errors.Join(err, b.Backend.Commit(ctx, &cluster.Batch{Forget: forget}))
		}
	}},
	{check: "L5 retained messages", name: "a position too far", breaks: func(b *broken) {
		b.retained = func(_ *broken, at *uint64, r []*cluster.Record) []*cluster.Record {
			*at += 4
			return r
		}
	}},
	{check: "L5 retained messages", name: "a topic is missing", breaks: func(b *broken) {
		b.retained = func(b *broken, _ *uint64, r []*cluster.Record) []*cluster.Record {
			if b.w.count("retained")%20 == 0 && len(r) > 0 {
				r = r[1:]
			}
			return r
		}
	}},
	{check: "L5 retained messages", name: "always that of the start", breaks: func(b *broken) {
		b.retained = func(b *broken, at *uint64, _ []*cluster.Record) []*cluster.Record {
			*at = 0
			return nil
		}
	}},
	{check: "L6 a node that is gone is fenced", name: "a late fence", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			for {
				err := b.Backend.Commit(ctx, x)
				if err != nil || !slices.ContainsFunc(x.Records, func(r *cluster.Record) bool {
					return errors.Is(r.Err, cluster.ErrFenced)
				}) {
					return err
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}},
	{check: "L6 a node that is gone is fenced", name: "what was on its way comes late",
		breaks: func(b *broken) {
			b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
				c := copied(x)
				err := b.Backend.Commit(ctx, x)
				if errors.Is(err, cluster.ErrClosed) {
					other := b.w.nodes[0]
					other.group.Go(func() {
						time.Sleep(100 * time.Millisecond)
						_ = other.Backend.Commit(context.Background(), c)
					})
				}
				return err
			}
		}},
	{check: "no space left", name: "what was refused comes later", breaks: func(b *broken) {
		var later []*cluster.Record
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			c := copied(x)
			c.Records = append(later, c.Records...)
			err := b.Backend.Commit(ctx, c)
			for i, r := range slices.Backward(x.Records) {
				d := c.Records[len(later)+i]
				r.Pos, r.Err, r.Repeated = d.Pos, d.Err, d.Repeated
				if errors.Is(r.Err, cluster.ErrFull) {
					later = []*cluster.Record{newRecord(r.Part, "t", "later")}
				}
			}
			return err
		}
	}},
	{check: "no space left", name: "only records are refused", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			err := b.Backend.Commit(ctx, x)
			for _, c := range x.Changes {
				if errors.Is(c.Err, cluster.ErrFull) {
					c.Err, c.Put[0].New = nil, 1
				}
			}
			return err
		}
	}},
	{check: "Read", name: "filters are ignored", breaks: func(b *broken) {
		inner := b.Backend
		b.Backend = readsAll{inner}
	}},
	{check: "Read", name: "the limit is ignored", breaks: func(b *broken) { b.limit = 1000 }},
	{check: "Read", name: "a record between two pages is lost", breaks: func(b *broken) {
		b.read = func(p *cluster.Page, err error) (cluster.Page, error) {
			if p.More {
				p.UpTo++
			}
			return *p, err
		}
	}},
	{check: "Batch", name: "one Record that is too large refuses all", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			for _, r := range x.Records {
				if r.Size() > 1<<20 {
					for _, r := range x.Records {
						r.Err = cluster.ErrTooLarge
					}
					return nil
				}
			}
			return b.Backend.Commit(ctx, x)
		}
	}},
	{check: "Batch", name: "a bad Batch is there in part", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			err := b.Backend.Commit(ctx, x)
			if err != nil {
				_ = b.Backend.Commit(ctx, &cluster.Batch{Records: x.Records[:1]})
				x.Records[0].Pos = 0
			}
			return err
		}
	}},
}

// readsAll is a Backend that does not know filters.
type readsAll struct{ cluster.Backend }

func (b readsAll) Read(ctx context.Context, part int, after uint64, _ []string, limit int) (
	cluster.Page, error) {
	return b.Backend.Read(ctx, part, after, []string{"#"}, limit)
}

var registerFaults = []*fault{
	{check: "R1 one change of several succeeds", name: "the last one wins", breaks: forces},
	{check: "R2 old values decide nothing", name: "a stale read that decides", breaks: forces},
	{check: "R1 one change of several succeeds", name: "half a change", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			for _, c := range x.Changes {
				for i := range c.Put {
					one := &cluster.Change{Put: c.Put[i : i+1 : i+1]}
					err := b.Backend.Commit(ctx, &cluster.Batch{Changes: []*cluster.Change{one}})
					if err != nil {
						return err
					}
					if c.Err = one.Err; c.Err != nil {
						break
					}
				}
			}
			return b.Backend.Commit(ctx, &cluster.Batch{Records: x.Records, Forget: x.Forget})
		}
	}},
	{check: "R2 old values decide nothing", name: "Rev 0 always fits", breaks: func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			for _, c := range x.Changes {
				if c.Put[0].Rev == 0 {
					v, err := b.Backend.Get(ctx, c.Put[0].Key)
					if err != nil {
						return err
					}
					c.Put[0].Rev = v.Rev
				}
			}
			return b.Backend.Commit(ctx, x)
		}
	}},
	{check: "R3 a TTL frees its key", name: "a lease that never ends",
		breaks: ttl(func(*cluster.Put) time.Duration { return 0 })},
	{check: "R3 a TTL frees its key", name: "too early", breaks: ttl(func(p *cluster.Put,
	) time.Duration {
		return p.TTL / 3 / time.Second * time.Second
	})},
	{check: "R3 a TTL frees its key", name: "too late", breaks: ttl(func(p *cluster.Put,
	) time.Duration {
		return p.TTL * 2
	})},
	{check: "R3 a TTL frees its key", name: "the TTL of the value before", breaks: ttl(func(
		p *cluster.Put) time.Duration {
		if p.Rev != 0 && p.TTL == 0 && p.Value != nil {
			return 3 * time.Second
		}
		return p.TTL
	})},
}

// forces makes a Change succeed by the Rev that Get returns.
func forces(b *broken) {
	b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
		for _, c := range x.Changes {
			for i := range c.Put {
				v, err := b.Backend.Get(ctx, c.Put[i].Key)
				if err != nil {
					return err
				}
				c.Put[i].Rev = v.Rev
			}
		}
		return b.Backend.Commit(ctx, x)
	}
}

// ttl changes every TTL.
func ttl(to func(p *cluster.Put) time.Duration) func(*broken) {
	return func(b *broken) {
		b.commit = func(b *broken, ctx context.Context, x *cluster.Batch) error {
			for _, c := range x.Changes {
				for i := range c.Put {
					c.Put[i].TTL = to(&c.Put[i])
				}
			}
			return b.Backend.Commit(ctx, x)
		}
	}
}

var nodeFaults = []*fault{
	{check: "B1 messages follow Interest", name: "Synced does not wait", breaks: func(b *broken) {
		b.synced = func() error { return nil }
	}},
	{check: "B1 messages follow Interest", name: "a new node does not know Interest",
		breaks: func(b *broken) {
			opened := time.Now()
			b.send = func(*broken, *store.Message) bool {
				return time.Since(opened) > 50*time.Millisecond
			}
		}},
	{check: "B1 messages follow Interest", name: "an echo", breaks: func(b *broken) {
		b.send = func(b *broken, m *store.Message) bool {
			b.h.Message(m)
			return true
		}
	}},
	{check: "N1 the list of live nodes", name: "a lease that never ends", breaks: func(b *broken) {
		b.handler = func(b *broken, h *cluster.Handler) {
			var all []cluster.Node
			h.Nodes = func(live []cluster.Node) {
				for _, n := range live {
					all = slices.DeleteFunc(all, func(x cluster.Node) bool { return x.Name == n.Name })
					all = append(all, n)
				}
				b.h.Nodes(slices.Clone(all))
			}
		}
	}},
	{check: "N1 the list of live nodes", name: "an election ends leases",
		engine: func(e *Engine, w *world) {
			lose := e.LoseLeaders
			e.LoseLeaders = func() {
				lose()
				time.Sleep(time.Millisecond)
				w.nodes[1].h.Nodes(nil)
			}
		}},
	{check: "N1 the list of live nodes", name: "no Majority", breaks: func(b *broken) {
		b.handler = func(_ *broken, h *cluster.Handler) { h.Majority = nil }
	}},
	{check: "N1 the list of live nodes", name: "Majority says only what is bad",
		breaks: func(b *broken) {
			b.handler = func(b *broken, h *cluster.Handler) {
				h.Majority = func(err error) {
					if err != nil {
						b.h.Majority(err)
					}
				}
			}
		}},
	{check: "N1 the list of live nodes", name: "the same Incarnation", breaks: func(b *broken) {
		b.start = func(b *broken, ctx context.Context, n cluster.Node) (cluster.Limits, error) {
			l, err := b.Backend.Start(ctx, n, b.h)
			l.Incarnation = 1
			return l, err
		}
	}},
	{check: "N1 a short pause", name: "a pause ends a lease", engine: func(e *Engine, w *world) {
		resume := e.Resume
		e.Resume = func(node int) {
			resume(node)
			time.Sleep(time.Millisecond)
			w.nodes[(node+1)%3].h.Nodes([]cluster.Node{{Name: name((node + 1) % 3)}})
		}
	}},
	{check: "D1 a node that drains delays nobody", name: "an election", breaks: func(b *broken) {
		b.drain = func(b *broken, ctx context.Context) error {
			err := b.Backend.Drain(ctx)
			b.w.e.LoseLeaders()
			return err
		}
	}},
	{check: "D1 a node that drains delays nobody", name: "it stays in the list",
		breaks: func(b *broken) {
			b.drain = func(*broken, context.Context) error { return nil }
		}},
	{check: "Call", name: "one at a time", breaks: func(b *broken) {
		b.handler = func(b *broken, h *cluster.Handler) {
			turn := make(chan struct{}, 1)
			h.Called = func(ctx context.Context, from string, body []byte) ([]byte, error) {
				select {
				case turn <- struct{}{}:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				defer func() { <-turn }()
				return b.h.Called(ctx, from, body)
			}
		}
	}},
	{check: "Call", name: "an error is an answer", breaks: func(b *broken) {
		b.handler = func(b *broken, h *cluster.Handler) {
			h.Called = func(ctx context.Context, from string, body []byte) ([]byte, error) {
				back, _ := b.h.Called(ctx, from, body)
				return back, nil
			}
		}
	}},
	{check: "Call", name: "no ErrNoNode", breaks: func(b *broken) {
		b.call = func(b *broken, ctx context.Context, node string, body []byte) ([]byte, error) {
			back, err := b.Backend.Call(ctx, node, body)
			if errors.Is(err, cluster.ErrNoNode) {
				err = fmt.Errorf("node %s does not answer", node)
			}
			return back, err
		}
	}},
	{check: "Start and Close", name: "a name twice", breaks: func(b *broken) {
		b.start = func(b *broken, ctx context.Context, n cluster.Node) (cluster.Limits, error) {
			l, err := b.Backend.Start(ctx, n, b.h)
			if errors.Is(err, cluster.ErrNameTaken) {
				return l, nil
			}
			return l, err
		}
	}},
	{check: "Start and Close", name: "Get works after Close", breaks: func(b *broken) {
		b.get = func(v cluster.Entry, err error) (cluster.Entry, error) {
			if errors.Is(err, cluster.ErrClosed) {
				err = nil
			}
			return v, err
		}
	}},
}
