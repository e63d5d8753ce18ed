package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A node is a Backend with everything that its Handler has got.
type node struct {
	cluster.Backend
	at     int
	limits cluster.Limits
	slow   atomic.Int64 // what a call of Records takes

	mu       sync.Mutex // guards the rest
	feeds    map[int]*feed
	messages []string
	lists    []listing
	majority []told
	bad      error
	dead     bool
	called   func(ctx context.Context, from string, body []byte) ([]byte, error)
}

// A feed is what Handler.Records got of a partition.
type feed struct {
	records []*cluster.Record
	upTo    uint64
	running bool
}

type listing struct {
	at   time.Time
	live []cluster.Node
}

type told struct {
	at  time.Time
	err error
}

func newNode(b cluster.Backend, at int) *node {
	return &node{Backend: b, at: at, feeds: map[int]*feed{}}
}

// locked runs f while the lock of the node is held.
func (n *node) locked(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) wrong() (err error) {
	n.locked(func() { err = n.bad })
	return err
}

func (n *node) dies() { n.locked(func() { n.dead = true }) }

// fails notes the first thing that is wrong. The lock of the node is held.
func (n *node) fails(format string, args ...any) {
	if n.bad == nil {
		n.bad = fmt.Errorf(format, args...)
	}
}

func (n *node) handler() cluster.Handler {
	return cluster.Handler{
		Records: n.records,
		Message: func(m *store.Message) {
			n.locked(func() { n.messages = append(n.messages, string(m.Payload)) })
		},
		Called: func(ctx context.Context, from string, body []byte) ([]byte, error) {
			var f func(context.Context, string, []byte) ([]byte, error)
			n.locked(func() { f = n.called })
			if f == nil {
				return append([]byte(from+":"), body...), nil
			}
			return f(ctx, from, body)
		},
		Nodes: func(live []cluster.Node) {
			n.locked(func() { n.lists = append(n.lists, listing{time.Now(), live}) })
		},
		Majority: func(err error) {
			n.locked(func() {
				if last := len(n.majority) - 1; (err == nil) == (last < 0 || n.majority[last].err == nil) {
					n.fails("Handler.Majority is told the same twice: %v", err)
				}
				n.majority = append(n.majority, told{time.Now(), err})
			})
		},
	}
}

// records is Handler.Records.
func (n *node) records(part int, r []*cluster.Record, upTo uint64) {
	n.locked(func() {
		f := n.feeds[part]
		if f == nil {
			f = &feed{}
			n.feeds[part] = f
		}
		if f.running {
			n.fails("Handler.Records runs twice at once for partition %d", part)
		}
		f.running = true
		for _, x := range r {
			last := f.upTo
			if k := len(f.records); k > 0 {
				last = max(last, f.records[k-1].Pos)
			}
			if x.Pos <= last {
				n.fails("Handler.Records gets position %d of partition %d after %d", x.Pos, part,
					last)
			}
			if x.Pos > upTo || x.Part != part {
				n.fails("Handler.Records gets position %d of partition %d, in a call for "+
					"partition %d up to %d", x.Pos, x.Part, part, upTo)
			}
			f.records = append(f.records, x)
		}
		if upTo < f.upTo {
			n.fails("Handler.Records has upTo %d after %d", upTo, f.upTo)
		}
		f.upTo = upTo
	})
	if d := n.slow.Load(); d > 0 {
		<-time.After(time.Duration(d))
	}
	n.locked(func() { n.feeds[part].running = false })
}

// fed returns what Records got of a partition, and up to where.
func (n *node) fed(part int) (r []*cluster.Record, upTo uint64) {
	n.locked(func() {
		if f := n.feeds[part]; f != nil {
			r, upTo = slices.Clone(f.records), f.upTo
		}
	})
	return r, upTo
}

// lives says whether the newest list of a node has another one; with an Incarnation above one.
func (n *node) lives(name string, above uint64) (found bool) {
	n.locked(func() {
		if last := len(n.lists) - 1; last >= 0 {
			found = slices.ContainsFunc(n.lists[last].live, func(x cluster.Node) bool {
				return x.Name == name && x.Incarnation > above
			})
		}
	})
	return found
}

// missed says whether a list since a moment lacked a node.
func (n *node) missed(name string, since time.Time) (found bool) {
	n.locked(func() {
		for _, l := range n.lists {
			if l.at.After(since) && !slices.ContainsFunc(l.live, func(x cluster.Node) bool {
				return x.Name == name
			}) {
				found = true
			}
		}
	})
	return found
}

// got says whether Message got a payload.
func (n *node) got(payload string) (found bool) {
	n.locked(func() { found = slices.Contains(n.messages, payload) })
	return found
}

// record returns a record with a payload that no other one has.
func (e *env) record(part int, topic string) *cluster.Record {
	return newRecord(part, topic, fmt.Sprintf("payload %d", e.count.Add(1)))
}

func newRecord(part int, topic, payload string) *cluster.Record {
	m := packets.Message{Topic: topic, Payload: []byte(payload), QoS: 1}
	m.SetContentType("type of " + payload)
	return &cluster.Record{
		Part:    part,
		Message: &store.Message{Message: m, Expires: int64(len(payload)), From: "client"},
	}
}

// commit commits a Batch, and fails if that does not end, or if the outcome makes no sense.
func (n *node) commit(ctx context.Context, b *cluster.Batch) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	if err := n.Commit(ctx, b); err != nil {
		return fmt.Errorf("a Commit on node %d: %w", n.at, err)
	}
	last := map[int]uint64{}
	for _, r := range b.Records {
		if (r.Pos != 0) == (r.Err != nil || r.Repeated) {
			return fmt.Errorf("a Record has Pos %d, Err %v and Repeated %v", r.Pos, r.Err,
				r.Repeated)
		}
		if r.Pos != 0 && r.Pos <= last[r.Part] {
			return fmt.Errorf("the positions of a Batch go from %d to %d", last[r.Part], r.Pos)
		}
		last[r.Part] = max(last[r.Part], r.Pos)
	}
	return nil
}

// put commits records, none of which may be refused.
func (n *node) put(ctx context.Context, r ...*cluster.Record) error {
	if err := n.commit(ctx, &cluster.Batch{Records: r}); err != nil {
		return err
	}
	for _, x := range r {
		if x.Err != nil {
			return fmt.Errorf("a Record is refused: %w", x.Err)
		}
	}
	return nil
}

// change commits one Change, and returns its error.
func (n *node) change(ctx context.Context, puts ...cluster.Put) ([]cluster.Put, error) {
	c := &cluster.Change{Put: puts}
	if err := n.commit(ctx, &cluster.Batch{Changes: []*cluster.Change{c}}); err != nil {
		return nil, err
	}
	if c.Err == nil {
		for _, p := range c.Put {
			if (p.New == 0) != (p.Value == nil) {
				return nil, fmt.Errorf("a Put with %d bytes has New %d", len(p.Value), p.New)
			}
		}
	}
	return c.Put, c.Err
}

// changes is change for one value; conflict says whether it was refused with ErrConflict.
func (n *node) changes(ctx context.Context, p cluster.Put) (rev uint64, conflict bool, err error) {
	puts, err := n.change(ctx, p)
	if errors.Is(err, cluster.ErrConflict) {
		return 0, true, nil
	}
	if err != nil {
		return 0, false, err
	}
	return puts[0].New, false, nil
}

// read returns all records of a partition, which reach at least up to a position.
func (e *env) read(n *node, part int, upTo uint64) (all []*cluster.Record, err error) {
	after := uint64(0)
	began := time.Now()
	for {
		page, err := n.Read(e.ctx, part, after, []string{"#", "$x/#"}, 17)
		if err != nil {
			return nil, fmt.Errorf("a Read on node %d: %w", n.at, err)
		}
		if page.UpTo < after {
			return nil, fmt.Errorf("a Read after %d has UpTo %d", after, page.UpTo)
		}
		if page.Lost != 0 {
			return nil, fmt.Errorf("a Read has Lost %d, although nobody removed anything", page.Lost)
		}
		for _, r := range page.Records {
			if r.Pos <= after || r.Pos > page.UpTo {
				return nil, fmt.Errorf("a Read after %d has position %d and UpTo %d", after, r.Pos,
					page.UpTo)
			}
			after = r.Pos
		}
		all = append(all, page.Records...)
		after = page.UpTo
		switch {
		case page.More:
		case page.UpTo >= upTo:
			return all, nil
		case time.Since(began) > patience:
			return nil, fmt.Errorf("a Read on node %d reaches position %d of %d only", n.at,
				page.UpTo, upTo)
		default:
			e.sleep(5 * time.Millisecond)
		}
	}
}

// same says how a record differs from another one.
func same(got, want *cluster.Record) error {
	a, b := got.Message, want.Message
	if got.Pos != want.Pos || a.Topic != b.Topic || !bytes.Equal(a.Payload, b.Payload) ||
		!bytes.Equal(a.Properties, b.Properties) || a.QoS != b.QoS || got.Retain != want.Retain ||
		a.Expires != b.Expires || a.From != b.From || a.Retain != b.Retain {
		return fmt.Errorf("record %d (%s %q), want %d (%s %q)", got.Pos, a.Topic, a.Payload,
			want.Pos, b.Topic, b.Payload)
	}
	return nil
}

// equal compares two sequences.
func equal(got, want []*cluster.Record) error {
	for i := range min(len(got), len(want)) {
		if err := same(got[i], want[i]); err != nil {
			return err
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d records, want %d", len(got), len(want))
	}
	return nil
}

// together runs f for the three nodes at once.
func (e *env) together(f func(i int) error) error {
	errs := make([]error, 3)
	var group sync.WaitGroup
	for i := range 3 {
		group.Go(func() { errs[i] = f(i) })
	}
	group.Wait()
	return errors.Join(errs...)
}
