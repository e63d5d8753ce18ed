package memory

import (
	"context"
	"iter"
	"slices"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// split returns the part of a Batch for each unit, with copies of what the caller owns.
func (e *Engine) split(batch *cluster.Batch, incarnation uint64) []*group {
	groups := make([]*group, len(e.units))
	of := func(u int) *group {
		if groups[u] == nil {
			groups[u] = &group{incarnation: incarnation}
		}
		return groups[u]
	}
	for _, k := range batch.Forget {
		of(k.Part).forget = append(of(k.Part).forget, k)
	}
	for _, r := range batch.Records {
		c := *r
		c.Message = copyMessage(r.Message)
		g := of(r.Part)
		g.records, g.copies = append(g.records, r), append(g.copies, &c)
	}
	for _, c := range batch.Changes {
		o := cluster.Change{Put: slices.Clone(c.Put), Err: c.Err}
		for i := range o.Put {
			o.Put[i].Value = slices.Clone(o.Put[i].Value)
		}
		g := of(e.registerUnit())
		g.changes, g.outcomes = append(g.changes, c), append(g.outcomes, o)
	}
	return groups
}

// tell writes what has been decided to the Records and Changes of the caller.
func (g *group) tell() {
	for i, r := range g.records {
		r.Pos, r.Repeated, r.Err = g.copies[i].Pos, g.copies[i].Repeated, g.copies[i].Err
	}
	for i, c := range g.changes {
		c.Err = g.outcomes[i].Err
		for k := range c.Put {
			c.Put[k].New = g.outcomes[i].Put[k].New
		}
	}
}

// Commit is that of cluster.Backend.
func (b *Backend) Commit(ctx context.Context, batch *cluster.Batch) error {
	if err := batch.Check(b.e.limits()); err != nil {
		return err
	}
	if err := b.enter(ctx); err != nil {
		return err
	}
	if b.committing || b.broken {
		defer b.e.mu.Unlock()
		if b.broken {
			return cluster.ErrClosed
		}
		return errCommits
	}
	groups := b.e.split(batch, b.incarnation)
	waiting, done := 1, make(chan struct{})
	answer := func() {
		if waiting--; waiting == 0 {
			close(done)
		}
	}
	for u, g := range groups {
		if g == nil {
			continue
		}
		waiting++
		b.e.ask(&question{
			b: b, unit: u, kind: kindCommit, answer: answer,
			decide: func() bool {
				if u == b.e.registerUnit() {
					b.e.decideChanges(b, g)
				} else {
					b.e.decideRecords(u, b, g)
				}
				return true
			},
		})
	}
	answer()
	b.committing = true
	b.e.mu.Unlock()
	err := b.wait(ctx, done)
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	b.committing = false
	if waiting > 0 {
		b.broken = true
		return err
	}
	for _, g := range groups {
		if g != nil {
			g.tell()
		}
	}
	return nil
}

// look waits as long as a look at the replica takes, and locks Engine.mu.
func (b *Backend) look(ctx context.Context) error {
	if err := b.enter(ctx); err != nil {
		return err
	}
	d := b.e.delay(b.node.i, kindRead)
	b.e.mu.Unlock()
	if err := b.pause(ctx, d); err != nil {
		return err
	}
	return b.enter(ctx)
}

// Read is that of cluster.Backend.
func (b *Backend) Read(ctx context.Context, part int, after uint64, filters []string,
	limit int) (cluster.Page, error) {
	if part < 0 || part >= b.e.o.Partitions {
		return cluster.Page{}, errPart
	}
	if err := b.look(ctx); err != nil {
		return cluster.Page{}, err
	}
	defer b.e.mu.Unlock()
	return b.e.parts[part].page(after, b.node.seen[part], filters, max(limit, 1)), nil
}

// Retained is that of cluster.Backend.
func (b *Backend) Retained(ctx context.Context, part int, at *uint64,
) iter.Seq2[*cluster.Record, error] {
	return func(yield func(*cluster.Record, error) bool) {
		if part < 0 || part >= b.e.o.Partitions {
			yield(nil, errPart)
			return
		}
		if err := b.look(ctx); err != nil {
			yield(nil, err)
			return
		}
		*at = b.node.seen[part]
		all := b.e.parts[part].retainedAt(*at)
		b.e.mu.Unlock()
		for _, r := range all {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// Get is that of cluster.Backend.
func (b *Backend) Get(ctx context.Context, key string) (cluster.Entry, error) {
	if err := b.look(ctx); err != nil {
		return cluster.Entry{}, err
	}
	defer b.e.mu.Unlock()
	return b.e.reg.entry(key, b.node.seen[b.e.registerUnit()]), nil
}

// List is that of cluster.Backend.
func (b *Backend) List(ctx context.Context, prefix string) iter.Seq2[cluster.Entry, error] {
	return func(yield func(cluster.Entry, error) bool) {
		if err := b.look(ctx); err != nil {
			yield(cluster.Entry{}, err)
			return
		}
		all := b.e.reg.list(prefix, b.node.seen[b.e.registerUnit()])
		b.e.mu.Unlock()
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// Drain is that of cluster.Backend. If the lease of the node ends after Drain, its Commits are
// refused with cluster.ErrFenced for good.
func (b *Backend) Drain(ctx context.Context) error {
	if err := b.enter(ctx); err != nil {
		return err
	}
	b.drained, b.node.drained = true, true
	b.e.handOver()
	left := make(chan struct{})
	b.e.ask(&question{
		b: b, unit: b.e.registerUnit(), kind: kindLead,
		decide: func() bool {
			if m := b.e.memberOf(b); m != nil && !m.hidden {
				m.hidden = true
				b.e.relist()
			}
			return true
		},
		answer: func() { close(left) },
	})
	b.e.mu.Unlock()
	return b.wait(ctx, left)
}
