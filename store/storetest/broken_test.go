package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A flaw is a store in memory that does one thing wrong. It is made once per check, and lives
// across reopening.
type flaw struct {
	memory.Store
	edit  func(ops []store.Op) []store.Op // what is committed instead
	yield func(ops iter.Seq2[store.Op, error]) iter.Seq2[store.Op,
		error] // what is loaded instead
	commit func(ctx context.Context, f *flaw,
		ops []store.Op) error // the whole of Commit
	load func(ctx context.Context, f *flaw,
		n int) iter.Seq2[store.Op, error] // the whole of the n-th Load
	onClose   func(f *flaw) error // before Close
	onCheck   func(f *flaw) error // in place of Checkpoint
	onCommits func(f *flaw, n int,
		ops []store.Op) (instead []store.Op) // as edit, with the number of the commit
	commits int
	loads   int
	opened  bool
	over    chan struct{} // closed when its check has ended
}

func (f *flaw) reopen() (store.Store, error) {
	if f.opened {
		f.loads = 0
		return f, f.Open()
	}
	f.opened = true
	return f, nil
}

func (f *flaw) Commit(ctx context.Context, ops []store.Op) error {
	f.commits++
	if f.edit != nil {
		ops = f.edit(clone(ops))
	}
	if f.onCommits != nil {
		ops = f.onCommits(f, f.commits, clone(ops))
	}
	if f.commit != nil {
		return f.commit(ctx, f, ops)
	}
	return f.Store.Commit(ctx, ops)
}

func (f *flaw) Load(ctx context.Context) iter.Seq2[store.Op, error] {
	if f.load != nil {
		f.loads++
		return f.load(ctx, f, f.loads)
	}
	if f.yield != nil {
		return f.yield(f.Store.Load(ctx))
	}
	return f.Store.Load(ctx)
}

func (f *flaw) Checkpoint(ctx context.Context) error {
	if f.onCheck != nil {
		return f.onCheck(f)
	}
	return f.Store.Checkpoint(ctx)
}

func (f *flaw) Close() error {
	if f.onClose != nil {
		if err := f.onClose(f); err != nil {
			return err
		}
	}
	return f.Store.Close()
}

// each returns an edit that changes or, with nil, drops operations of one type.
func each[T store.Op](change func(op T) store.Op) func([]store.Op) []store.Op {
	return func(ops []store.Op) []store.Op {
		var out []store.Op
		for _, op := range ops {
			if o, ok := op.(T); ok {
				op = change(o)
			}
			if op != nil {
				out = append(out, op)
			}
		}
		return out
	}
}

func drop[T store.Op]() func([]store.Op) []store.Op { return each(func(T) store.Op { return nil }) }

// messages returns an edit of every message.
func messages(change func(m *store.Message)) func([]store.Op) []store.Op {
	return func(ops []store.Op) []store.Op {
		for _, op := range ops {
			switch op := op.(type) {
			case *store.Publish:
				change(op.Message)
			case *store.PutRetained:
				change(op.Message)
			}
		}
		return ops
	}
}

// loaded applies an edit to what Load yields.
func loaded(edit func([]store.Op) []store.Op) func(iter.Seq2[store.Op, error]) iter.Seq2[store.Op,
	error] {
	return func(ops iter.Seq2[store.Op, error]) iter.Seq2[store.Op, error] {
		return func(yield func(store.Op, error) bool) {
			for op, err := range ops {
				if err != nil {
					yield(nil, err)
					return
				}
				for _, o := range edit([]store.Op{op}) {
					if !yield(o, nil) {
						return
					}
				}
			}
		}
	}
}

func eachDelivery(change func(d *store.Delivery)) func([]store.Op) []store.Op {
	return each(func(p *store.Publish) store.Op {
		for i := range p.To {
			change(&p.To[i])
		}
		return p
	})
}

func eachSubscription(change func(s *store.PutSubscription)) func([]store.Op) []store.Op {
	return each(func(s *store.PutSubscription) store.Op { change(s); return s })
}

func eachSession(change func(s *store.PutSession)) func([]store.Op) []store.Op {
	return each(func(s *store.PutSession) store.Op { change(s); return s })
}

func eachWill(change func(w *store.Will)) func([]store.Op) []store.Op {
	return eachSession(func(s *store.PutSession) {
		if s.Will != nil {
			change(s.Will)
		}
	})
}

// simple flaws change what is committed.
var simple = map[string]func([]store.Op) []store.Op{
	"forgets DeleteSession":      drop[*store.DeleteSession](),
	"forgets PutSubscription":    drop[*store.PutSubscription](),
	"forgets DeleteSubscription": drop[*store.DeleteSubscription](),
	"forgets Sent":               drop[*store.Sent](),
	"forgets Released":           drop[*store.Released](),
	"forgets Done":               drop[*store.Done](),
	"forgets Received":           drop[*store.Received](),
	"forgets Forget":             drop[*store.Forget](),
	"forgets PutRetained":        drop[*store.PutRetained](),
	"forgets DeleteRetained":     drop[*store.DeleteRetained](),
	"forgets that a publish retains": each(func(p *store.Publish) store.Op {
		p.Retain = false
		return p
	}),
	"forgets whom a publish was from": each(func(p *store.Publish) store.Op {
		p.FromSession = 0
		return p
	}),
	"forgets a publish for nobody": each(func(p *store.Publish) store.Op {
		if len(p.To) == 0 {
			return nil
		}
		return p
	}),
	"forgets the Will":              eachSession(func(s *store.PutSession) { s.Will = nil }),
	"forgets the delay of the Will": eachWill(func(w *store.Will) { w.Delay = 0 }),
	"forgets when the Will is due":  eachWill(func(w *store.Will) { w.At = 0 }),
	"forgets the properties of the Will": eachWill(func(w *store.Will) {
		w.Message.Properties = nil
	}),
	"forgets the principal": eachSession(func(s *store.PutSession) { s.Principal = "" }),
	"forgets the User Name": eachSession(func(s *store.PutSession) { s.Username = "" }),
	"forgets the expiry of the Session": eachSession(func(s *store.PutSession) {
		s.Expiry &= 1<<31 - 1
	}),
	"keeps instants in milliseconds": eachSession(func(s *store.PutSession) {
		s.ExpiresAt -= s.ExpiresAt % 1e6
	}),
	"keeps expiry in milliseconds": messages(func(m *store.Message) {
		m.Expires -= m.Expires % 1e6
	}),
	"forgets the publisher":          messages(func(m *store.Message) { m.From = "" }),
	"forgets properties":             messages(func(m *store.Message) { m.Properties = nil }),
	"forgets the QoS of the publish": messages(func(m *store.Message) { m.QoS = 1 }),
	"forgets RETAIN of the publish":  messages(func(m *store.Message) { m.Retain = false }),
	"cuts payloads at 1 MiB": messages(func(m *store.Message) {
		m.Payload = m.Payload[:min(len(m.Payload), 1<<20)]
	}),
	"cuts topics at 32 KiB": messages(func(m *store.Message) {
		m.Topic = m.Topic[:min(len(m.Topic), 32<<10)]
	}),
	"folds the case of topics": messages(func(m *store.Message) {
		m.Topic = strings.ToLower(m.Topic)
	}),
	"trims topics": messages(func(m *store.Message) {
		m.Topic = strings.TrimSpace(m.Topic)
	}),
	"forgets the QoS of a delivery": eachDelivery(func(d *store.Delivery) {
		d.QoS = min(d.QoS, 1)
	}),
	"forgets RETAIN of a delivery": eachDelivery(func(d *store.Delivery) { d.Retain = false }),
	"forgets Subscription Identifiers": eachDelivery(func(d *store.Delivery) {
		d.IDs = d.IDs[:min(len(d.IDs), 1)]
	}),
	"forgets the group": eachDelivery(func(d *store.Delivery) { d.Group = "" }),
	"keeps sessions in 32 bits": eachDelivery(func(d *store.Delivery) {
		d.Session &= 1<<32 - 1
	}),
	"keeps Seq in 32 bits": eachDelivery(func(d *store.Delivery) {
		d.Seq &= 1<<32 - 1
	}),
	"forgets the QoS of a subscription": eachSubscription(func(s *store.PutSubscription) {
		s.QoS = min(s.QoS, 1)
	}),
	"forgets No Local": eachSubscription(func(s *store.PutSubscription) {
		s.NoLocal = false
	}),
	"forgets Retain As Published": eachSubscription(func(s *store.PutSubscription) {
		s.RetainAsPublished = false
	}),
	"forgets Retain Handling": eachSubscription(func(s *store.PutSubscription) {
		s.RetainHandling = min(s.RetainHandling, 1)
	}),
	"forgets the Subscription Identifier": eachSubscription(func(s *store.PutSubscription) {
		s.ID &= 1<<16 - 1
	}),
	"keeps ten operations of a batch": func(ops []store.Op) []store.Op {
		return ops[:min(len(ops), 10)]
	},
	"keeps 16,384 operations of a batch": func(ops []store.Op) []store.Op {
		return ops[:min(len(ops), 16_384)]
	},
	"applies a batch backwards": func(ops []store.Op) []store.Op { slices.Reverse(ops); return ops },
	"puts before it deletes": func(ops []store.Op) []store.Op {
		slices.SortStableFunc(ops, func(a, b store.Op) int {
			rank := func(op store.Op) int {
				if strings.Contains(fmt.Sprintf("%T", op), "Delete") {
					return 1
				}
				return 0
			}
			return rank(a) - rank(b)
		})
		return ops
	},
}

// deep flaws are about more than one operation.
func deep() map[string]*flaw {
	return map[string]*flaw{
		"loses the last commit unless there was a checkpoint": lastLost(),
		"keeps what it was given":                             {commit: keepsGiven()},
		"commits half when the context is done": {commit: func(ctx context.Context, f *flaw,
			ops []store.Op) error {
			if ctx.Err() != nil {
				return joinErr(f.Store.Commit(context.Background(), ops[:len(ops)/2]), ctx.Err())
			}
			return f.Store.Commit(ctx, ops)
		}},
		"fails after a commit with a context that was done": {commit: func() func(context.Context,
			*flaw, []store.Op) error {
			var failed error
			return func(ctx context.Context, f *flaw, ops []store.Op) error {
				if failed == nil {
					failed = f.Store.Commit(ctx, ops)
				}
				return failed
			}
		}()},
		"commits after Close": {commit: func(ctx context.Context, f *flaw, ops []store.Op) error {
			if err := f.Store.Commit(ctx, ops); err != memory.ErrClosed {
				return err
			}
			return nil
		}},
		"loads once": {load: func(ctx context.Context, f *flaw, n int) iter.Seq2[store.Op, error] {
			if n > 1 {
				return func(func(store.Op, error) bool) {}
			}
			return f.Store.Load(ctx)
		}},
		"does not load after a broken off Load": {load: brokenOff()},
		"ignores the context of Load": {load: func(_ context.Context, f *flaw,
			_ int) iter.Seq2[store.Op, error] {
			return f.Store.Load(context.Background())
		}},
		"stops silently when the context of Load is done": {load: func(ctx context.Context, f *flaw,
			_ int) iter.Seq2[store.Op, error] {
			return func(yield func(store.Op, error) bool) {
				for op, err := range f.Store.Load(context.Background()) {
					if ctx.Err() != nil || !yield(op, err) {
						return
					}
				}
			}
		}},
		"yields one message per queue": {yield: loaded(split)},
		"reuses what it has yielded":   {yield: reuses},
		"yields a nil operation":       {yield: loaded(func(ops []store.Op) []store.Op { return append(ops, nil) })},
		"yields publishes twice": {yield: loaded(func(ops []store.Op) []store.Op {
			return append(ops, each(func(p *store.Publish) store.Op { return p })(ops)...)
		})},
		"joins equal messages":           {onCommits: joinEqual()},
		"puts a Session anew each time":  {onCommits: anew()},
		"never gives a Seq back":         {onCommits: seqOnce()},
		"never gives a Session back":     {onCommits: sessionOnce()},
		"makes missing Sessions":         {onCommits: makesMissing},
		"confuses Session and filter":    {edit: confusedKeys()},
		"empties itself at a checkpoint": {onCheck: func(f *flaw) error { return forgetRetained(f) }},
		"leaves a goroutine":             {onClose: func(f *flaw) error { go func() { <-f.over }(); return nil }},
		"fails a batch of nothing": {commit: func(ctx context.Context, f *flaw,
			ops []store.Op) error {
			if len(ops) == 0 {
				return fmt.Errorf("nothing to commit")
			}
			return f.Store.Commit(ctx, ops)
		}},
		"cannot be closed": {onClose: func(*flaw) error { return fmt.Errorf("busy") }},
	}
}

func joinErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// lastLost answers before it has written: a batch is there once the next one has come.
func lastLost() *flaw {
	var waiting []store.Op
	return &flaw{
		commit: func(ctx context.Context, f *flaw, ops []store.Op) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			w := waiting
			waiting = clone(ops)
			return f.Store.Commit(ctx, w)
		},
		onClose: func(*flaw) error { waiting = nil; return nil },
	}
}

// keepsGiven applies batches when the store is closed, from the memory of the caller.
func keepsGiven() func(context.Context, *flaw, []store.Op) error {
	var kept []store.Op
	return func(ctx context.Context, f *flaw, ops []store.Op) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		f.onClose = func(f *flaw) error {
			defer func() { kept = nil }()
			return f.Store.Commit(ctx, slices.DeleteFunc(kept,
				func(op store.Op) bool { return op == nil }))
		}
		kept = append(kept, ops...)
		return nil
	}
}

func brokenOff() func(context.Context, *flaw, int) iter.Seq2[store.Op, error] {
	off := false
	return func(ctx context.Context, f *flaw, n int) iter.Seq2[store.Op, error] {
		if n == 1 {
			off = false
		}
		return func(yield func(store.Op, error) bool) {
			for op, err := range f.Store.Load(ctx) {
				if off {
					return
				}
				if !yield(op, err) {
					off = true
					return
				}
			}
		}
	}
}

func split(ops []store.Op) []store.Op {
	p, ok := ops[0].(*store.Publish)
	if !ok {
		return ops
	}
	var out []store.Op
	for _, d := range p.To {
		out = append(out, &store.Publish{Message: cloneMessage(p.Message), To: []store.Delivery{d}})
	}
	p.To = nil
	return append(out, p)
}

func reuses(ops iter.Seq2[store.Op, error]) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) {
		var m store.Message
		for op, err := range ops {
			if p, ok := op.(*store.Publish); ok {
				m.Message, m.Expires, m.From = p.Message.Message, p.Message.Expires, p.Message.From
				p.Message = &m
			}
			if !yield(op, err) {
				return
			}
		}
	}
}

// joinEqual takes a publish that equals one before for the same.
func joinEqual() func(*flaw, int, []store.Op) []store.Op {
	seen := make(map[string]bool)
	return func(_ *flaw, _ int, ops []store.Op) []store.Op {
		return each(func(p *store.Publish) store.Op {
			key := fmt.Sprintf("%q %q", p.Message.Topic, p.Message.Payload)
			if seen[key] {
				return nil
			}
			seen[key] = true
			return p
		})(ops)
	}
}

// anew deletes a Session before it is put again.
func anew() func(*flaw, int, []store.Op) []store.Op {
	return func(_ *flaw, _ int, ops []store.Op) []store.Op {
		var out []store.Op
		for _, op := range ops {
			if p, ok := op.(*store.PutSession); ok {
				out = append(out, &store.DeleteSession{Session: p.Session})
			}
			out = append(out, op)
		}
		return out
	}
}

// seqOnce keeps in mind which entries are done.
func seqOnce() func(*flaw, int, []store.Op) []store.Op {
	type place struct{ session, seq uint64 }
	done := make(map[place]bool)
	return func(_ *flaw, _ int, ops []store.Op) []store.Op {
		for _, op := range ops {
			switch op := op.(type) {
			case *store.Done:
				done[place{op.Session, op.Seq}] = true
			case *store.Publish:
				op.To = slices.DeleteFunc(op.To, func(d store.Delivery) bool {
					return done[place{d.Session, d.Seq}]
				})
			}
		}
		return ops
	}
}

// sessionOnce keeps in mind which Sessions were deleted.
func sessionOnce() func(*flaw, int, []store.Op) []store.Op {
	gone := make(map[uint64]bool)
	return func(_ *flaw, _ int, ops []store.Op) []store.Op {
		var out []store.Op
		for _, op := range ops {
			switch op := op.(type) {
			case *store.DeleteSession:
				gone[op.Session] = true
			case *store.PutSession:
				if gone[op.Session] {
					continue
				}
			}
			out = append(out, op)
		}
		return out
	}
}

func makesMissing(_ *flaw, _ int, ops []store.Op) []store.Op {
	var out []store.Op
	known := make(map[uint64]bool)
	for _, op := range ops {
		switch op := op.(type) {
		case *store.PutSession:
			known[op.Session] = true
		case *store.Received:
			if !known[op.Session] {
				out = append(out, &store.PutSession{Session: op.Session})
			}
		}
		out = append(out, op)
	}
	return out
}

// confusedKeys keeps subscriptions by Session and filter written one after the other.
func confusedKeys() func([]store.Op) []store.Op {
	owner := make(map[string]store.PutSubscription)
	return func(ops []store.Op) []store.Op {
		var out []store.Op
		for _, op := range ops {
			if s, ok := op.(*store.PutSubscription); ok {
				key := fmt.Sprint(s.Session, s.Filter)
				if old, ok := owner[key]; ok {
					out = append(out, &store.DeleteSubscription{Session: old.Session,
						Filter: old.Filter})
				}
				owner[key] = *s
			}
			out = append(out, op)
		}
		return out
	}
}

func forgetRetained(f *flaw) error {
	s, err := Fold(f.Store.Load(context.Background()))
	if err != nil {
		return err
	}
	var ops []store.Op
	for topic := range s.Retained {
		ops = append(ops, &store.DeleteRetained{Topic: topic})
	}
	return f.Store.Commit(context.Background(), ops)
}

// caught runs all checks, in a bubble, and returns the first that fails.
func caught(flawed func() *flaw) error {
	for _, c := range checks {
		f := flawed()
		f.over = make(chan struct{})
		e := &env{open: f.reopen, seed: 1, rounds: 2, patience: 200 * time.Millisecond}
		err := c.run(e)
		if err == nil {
			err = e.close()
		}
		close(f.over)
		synctest.Wait()
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func TestBrokenStoresAreCaught(t *testing.T) {
	for name, edit := range simple {
		t.Run("a store that "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				err := caught(func() *flaw { return &flaw{edit: edit} })
				require.Error(t, err)
				t.Log(err)
			})
		})
	}
	for name := range deep() {
		t.Run("a store that "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				err := caught(func() *flaw { return deep()[name] })
				require.Error(t, err)
				t.Log(err)
			})
		})
	}
}

func TestRightStorePasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		require.NoError(t, caught(func() *flaw { return new(flaw) }))
	})
}

func TestHistoryDependsOnItsSeedAlone(t *testing.T) {
	a, b, c := NewHistory(7), NewHistory(7), NewHistory(8)
	for range 300 {
		a.Batch()
		b.Batch()
		c.Batch()
	}
	require.Empty(t, a.State.Diff(b.State))
	require.NotEmpty(t, a.State.Diff(c.State))
}

func TestDiffNamesWhatDiffers(t *testing.T) {
	ops := eachOperation()
	want, got := NewState(), NewState()
	want.Apply(ops...)
	got.Apply(ops...)
	require.Empty(t, want.Diff(got))
	got.Apply(&store.Done{Session: 2, Seq: 1}, &store.Received{Session: 2, ID: 9},
		&store.PutSession{Session: 3, ClientID: "other"},
		&store.PutRetained{Message: &store.Message{Message: packets.Message{Topic: "r",
			Payload: []byte("changed")}}})
	d := want.Diff(got)
	for _, line := range []string{
		`session 2, queue entry 1 is missing:`, `session 2, received 9 should not be there`,
		"session 3\n   want client \"c3\"",
		"retained \"r\"\n   want from \"publisher\"", `"changed"`,
	} {
		require.Contains(t, d, line)
	}
	broken := want.Clone()
	broken.Apply(publish(message("a", ""), 1, 2))
	require.Contains(t, want.Diff(broken), "session 2 gets two entries with Seq 1")
}

func TestInterceptFailsAndDelays(t *testing.T) {
	broken := errors.New("broken")
	var fail error
	s := Intercept(new(memory.Store), func(_ context.Context, call string, n int) error {
		if call == "commit" && n == 2 {
			return store.ErrFull
		}
		return fail
	})
	commit := func() error {
		return s.Commit(context.Background(), []store.Op{&store.PutSession{Session: 1}})
	}
	require.NoError(t, commit())
	require.ErrorIs(t, commit(), store.ErrFull)
	require.NoError(t, commit(), "the store goes on after ErrFull")
	fail = broken
	require.ErrorIs(t, commit(), broken)
	require.ErrorIs(t, s.Checkpoint(context.Background()), broken)
	_, err := Fold(s.Load(context.Background()))
	require.ErrorIs(t, err, broken)
	fail = nil
	require.ErrorIs(t, commit(), broken, "the store does not go on after any other error")
	require.NoError(t, s.Checkpoint(context.Background()))
	got, err := Fold(s.Load(context.Background()))
	require.NoError(t, err)
	require.Len(t, got.Sessions, 1)
	require.NoError(t, s.Close())
}
