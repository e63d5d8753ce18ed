package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func checkRead(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	topics := []string{"a", "a/b", "a/b/c", "b", "$x/a", "a/+", "a b", "A", "/", "a//b", "ä/\u00a0"}
	topics = slices.DeleteFunc(topics, func(s string) bool { return s == "a/+" })
	var want []*cluster.Record
	for round := range 3 {
		for i, topic := range topics {
			r := e.record(0, topic)
			if err := e.nodes[(i+round)%3].put(e.ctx, r); err != nil {
				return err
			}
			want = append(want, r)
		}
	}
	end := want[len(want)-1].Pos
	for _, filters := range [][]string{
		{"#"}, {"a"}, {"a/#"}, {"+"}, {"+/b"}, {"a/+"}, {"$x/#"}, {"$x/+", "b"}, {"none"}, nil,
		{"a b", "A", "/", "a//b", "ä/\u00a0"}, {"+/+"}, {"a/#", "a/b", "#"},
	} {
		var match []*cluster.Record
		for _, r := range want {
			if slices.ContainsFunc(filters, func(f string) bool {
				return packets.MatchTopic(f, r.Message.Topic)
			}) {
				match = append(match, r)
			}
		}
		for _, limit := range []int{1, 2, 100} {
			if err := e.pages(filters, limit, match, end); err != nil {
				return fmt.Errorf("a Read of %q with limit %d: %w", filters, limit, err)
			}
		}
	}
	return nil
}

// pages reads with a limit, page by page, until everything up to a position has been seen.
func (e *env) pages(filters []string, limit int, want []*cluster.Record, end uint64) error {
	after, began := uint64(0), time.Now()
	for after < end {
		page, err := e.nodes[0].Read(e.ctx, 0, after, filters, limit)
		if err != nil {
			return err
		}
		if len(page.Records) > limit || page.More && len(page.Records) != limit {
			return fmt.Errorf("%d records, and More is %v", len(page.Records), page.More)
		}
		n := 0
		for n < len(want) && want[n].Pos <= page.UpTo {
			n++
		}
		if err := equal(page.Records, want[:n]); err != nil {
			return fmt.Errorf("after %d up to %d: %w", after, page.UpTo, err)
		}
		want = want[n:]
		if page.UpTo == after {
			if time.Since(began) > patience {
				return fmt.Errorf("it does not come beyond position %d", after)
			}
			e.sleep(5 * time.Millisecond)
		}
		after = page.UpTo
	}
	return nil
}

func checkBatch(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	n := e.nodes[0]
	small, large, behind := e.record(0, "s"), e.record(0, "l"), e.record(0, "s")
	large.Message.Payload = make([]byte, n.limits.Record)
	exact := e.record(0, "e")
	exact.Message.Payload = bytes.Repeat([]byte("x"), n.limits.Record-exact.Size()+
		len(exact.Message.Payload))
	fits := &cluster.Change{Put: []cluster.Put{{Key: "v/1", Value: make([]byte, n.limits.Value)}}}
	tooLarge := &cluster.Change{Put: []cluster.Put{{Key: "v/2", Value: []byte("half")},
		{Key: "v/3", Value: make([]byte, n.limits.Value+1)}}}
	second := &cluster.Change{Put: []cluster.Put{{Key: "v/4", Value: []byte("1")}}}
	third := &cluster.Change{Put: []cluster.Put{{Key: "v/4", Value: []byte("2")}}}
	b := &cluster.Batch{Records: []*cluster.Record{small, large, exact, behind},
		Changes: []*cluster.Change{fits, tooLarge, second, third}}
	if err := n.commit(e.ctx, b); err != nil {
		return err
	}
	for what, err := range map[string]error{
		"a small Record": small.Err, "the largest Record": exact.Err,
		"a Record behind one that is too large": behind.Err, "the largest value": fits.Err,
		"the first of two Changes of a key": second.Err,
	} {
		if err != nil {
			return fmt.Errorf("%s is refused: %w", what, err)
		}
	}
	if !errors.Is(large.Err, cluster.ErrTooLarge) || !errors.Is(tooLarge.Err, cluster.ErrTooLarge) ||
		!errors.Is(third.Err, cluster.ErrConflict) {
		return fmt.Errorf("a Record and a value that are too large, and the second of two Changes "+
			"of a key, have Err %v, %v and %v", large.Err, tooLarge.Err, third.Err)
	}
	if err := e.verifyNotThere("v/2"); err != nil {
		return err
	}
	// what the caller does with its memory afterwards is nothing to the Backend
	kept := newRecord(0, "s", string(behind.Message.Payload))
	kept.Pos = behind.Pos
	for i := range behind.Message.Payload {
		behind.Message.Payload[i]++
	}
	for i := range fits.Put[0].Value {
		fits.Put[0].Value[i]++
	}
	log, err := e.read(e.nodes[1], 0, behind.Pos)
	if err != nil {
		return err
	}
	if err := equal(log, []*cluster.Record{small, exact, kept}); err != nil {
		return err
	}
	was := cluster.Put{Key: "v/1", Value: make([]byte, n.limits.Value), New: fits.Put[0].New}
	if err := e.settled(e.nodes[1], was); err != nil {
		return err
	}
	return e.batchesThatAreRefused(n, len(log))
}

// batchesThatAreRefused makes Commits that are no good as a whole. The partition has some records.
func (e *env) batchesThatAreRefused(n *node, some int) error {
	many := &cluster.Batch{}
	for range n.limits.Batch + 1 {
		many.Records = append(many.Records, e.record(0, "many"))
	}
	bad := &cluster.Batch{Records: []*cluster.Record{e.record(0, "bad"),
		e.record(n.limits.Partitions, "bad")}}
	for what, b := range map[string]*cluster.Batch{"too many Records": many,
		"a Record of no partition": bad} {
		if err := n.Commit(e.ctx, b); err == nil || errors.Is(err, cluster.ErrClosed) {
			return fmt.Errorf("a Commit of %s returns %v", what, err)
		}
	}
	many.Records = many.Records[1:]
	if err := n.put(e.ctx, many.Records...); err != nil {
		return fmt.Errorf("a Commit of as many Records as allowed: %w", err)
	}
	log, err := e.read(n, 0, many.Records[len(many.Records)-1].Pos)
	if err != nil {
		return err
	}
	return equal(log[some:], many.Records)
}

func checkFull(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	n, key := e.nodes[0], cluster.Key{Name: "full"}
	before := e.record(0, "t")
	if err := n.put(e.ctx, before); err != nil {
		return err
	}
	e.SetFull(true)
	refused := []*cluster.Record{e.record(0, "t"), e.record(0, "t")}
	refused[1].Once = key
	change := &cluster.Change{Put: []cluster.Put{{Key: "f", Value: []byte("v")}}}
	b := &cluster.Batch{Records: refused, Changes: []*cluster.Change{change}}
	if err := n.commit(e.ctx, b); err != nil {
		return err
	}
	for _, err := range []error{refused[0].Err, refused[1].Err, change.Err} {
		if !errors.Is(err, cluster.ErrFull) {
			return fmt.Errorf("without space a Record or Change has Err %v, want %v", err,
				cluster.ErrFull)
		}
	}
	e.SetFull(false)
	var after *cluster.Record
	if err := e.until("Commit succeeds when there is space again", patience, func() bool {
		after = e.record(0, "t")
		after.Once = key
		return n.put(e.ctx, after) == nil
	}); err != nil {
		return err
	}
	if after.Repeated {
		return errors.New("a Record that was refused with ErrFull has used its Once")
	}
	log, err := e.read(e.nodes[1], 0, after.Pos)
	if err != nil {
		return err
	}
	if err := equal(log, []*cluster.Record{before, after}); err != nil {
		return err
	}
	return e.verifyNotThere("f")
}

func checkLife(e *env) error {
	b, err := e.Open(0)
	if err != nil {
		return err
	}
	n := newNode(b, 0)
	e.nodes[0] = n
	ctx, stop := context.WithTimeout(e.ctx, patience)
	defer stop()
	if _, err := b.Start(ctx, cluster.Node{Name: "no name"}, n.handler()); err == nil {
		return errors.New("a Start takes a name with a blank")
	}
	err = b.Close()
	e.nodes[0] = nil
	if err != nil {
		return fmt.Errorf("a Close before Start: %w", err)
	}
	if err := e.startAll(); err != nil {
		return err
	}
	l := e.nodes[0].limits
	if l.Partitions < 1 || l.Record < 1 || l.Value < 1 || l.Batch < 1 || l.Replicas < 1 ||
		l.Incarnation == 0 {
		return fmt.Errorf("the Limits are %+v", l)
	}
	if err := e.takenName(ctx); err != nil {
		return err
	}
	n = e.nodes[0]
	done := make(chan error, 1)
	go func() { // this function waits for it
		_, err := n.Call(e.ctx, name(0), nil)
		done <- err
	}()
	<-done
	err = n.Close()
	e.nodes[0] = nil
	if err != nil {
		return fmt.Errorf("a Close: %w", err)
	}
	return e.closed(ctx, n)
}

// closed makes all calls to a Backend that is closed.
func (e *env) closed(ctx context.Context, n *node) error {
	_, read := n.Read(ctx, 0, 0, nil, 1)
	_, get := n.Get(ctx, "k")
	_, call := n.Call(ctx, name(1), nil)
	var list, retained error
	for _, list = range n.List(ctx, "k/") {
		break
	}
	at := uint64(0)
	for _, retained = range n.Retained(ctx, 0, &at) {
		break
	}
	n.Send(e.record(0, "t").Message)
	n.Interest([]string{"t"}, nil)
	for what, err := range map[string]error{
		"Commit": n.Commit(ctx, &cluster.Batch{Records: []*cluster.Record{e.record(0, "t")}}),
		"Read":   read, "Get": get, "Call": call, "List": list, "Retained": retained,
		"Synced": n.Synced(ctx), "Drain": n.Drain(ctx),
	} {
		if !errors.Is(err, cluster.ErrClosed) {
			return fmt.Errorf("%s after Close returns %v, want %v", what, err, cluster.ErrClosed)
		}
	}
	return nil
}

// takenName starts a node under the name of another one.
func (e *env) takenName(ctx context.Context) error {
	err := e.nodes[2].Close()
	e.nodes[2] = nil
	if err != nil {
		return fmt.Errorf("a Close: %w", err)
	}
	b, err := e.Open(2)
	if err != nil {
		return err
	}
	thief := newNode(b, 2)
	e.nodes[2] = thief
	_, err = b.Start(ctx, cluster.Node{Name: name(1)}, thief.handler())
	if !errors.Is(err, cluster.ErrNameTaken) {
		return fmt.Errorf("a Start under the name of a live node returns %v, want %v", err,
			cluster.ErrNameTaken)
	}
	if err := e.nodes[1].put(ctx, e.record(0, "t")); err != nil {
		return fmt.Errorf("after another node wanted its name: %w", err)
	}
	err = b.Close()
	e.nodes[2] = nil
	return err
}
