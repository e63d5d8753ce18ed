package clustertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/store"
)

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
