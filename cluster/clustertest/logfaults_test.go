package clustertest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

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
				p.UpTo += 2
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
