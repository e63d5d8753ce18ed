package clustertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// write commits batches of one to five records on a node until stop is closed, and returns them by
// partition in the order in which they must be in the log.
func (e *env) write(n *node, seed uint64, stop <-chan struct{}) ([][]*cluster.Record, error) {
	random := rand.New(rand.NewPCG(seed, uint64(n.at)))
	parts := n.limits.Partitions
	written := make([][]*cluster.Record, parts)
	for {
		select {
		case <-stop:
			return written, nil
		default:
		}
		var b []*cluster.Record
		for range 1 + random.IntN(5) {
			r := e.record(random.IntN(parts), fmt.Sprintf("%s/%d", name(n.at), random.IntN(3)))
			b = append(b, r)
		}
		if err := n.put(e.ctx, b...); err != nil {
			return nil, err
		}
		for _, r := range b {
			written[r.Part] = append(written[r.Part], r)
		}
		e.sleep(time.Duration(random.IntN(40)) * time.Millisecond)
	}
}

// verifyWritten compares the log with what the three nodes wrote.
func (e *env) verifyWritten(written [3][][]*cluster.Record) error {
	for part := range e.nodes[0].limits.Partitions {
		upTo := uint64(0)
		for i := range 3 {
			if all := written[i][part]; len(all) > 0 {
				upTo = max(upTo, all[len(all)-1].Pos)
			}
		}
		log, err := e.read(e.nodes[0], part, upTo)
		if err != nil {
			return err
		}
		total := 0
		for i := range 3 {
			var of []*cluster.Record
			for _, r := range log {
				if r.Message.Topic[:len(name(i))] == name(i) {
					of = append(of, r)
				}
			}
			if err := equal(of, written[i][part]); err != nil {
				return fmt.Errorf("the records of node %d in partition %d: %w", i, part, err)
			}
			total += len(of)
		}
		if total != len(log) {
			return fmt.Errorf("partition %d has %d records, want %d", part, len(log), total)
		}
		for i := range 3 {
			if err := e.verifyFeed(e.nodes[i], part, log, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// verifyFeed waits until a node has got the end of a partition, and compares what it got with the
// log. It must have got everything behind a position.
func (e *env) verifyFeed(n *node, part int, log []*cluster.Record, behind uint64) error {
	end := uint64(0)
	if len(log) > 0 {
		end = log[len(log)-1].Pos
	}
	what := fmt.Sprintf("Handler.Records of node %d gets partition %d up to %d", n.at, part, end)
	if err := e.until(what, patience, func() bool {
		_, upTo := n.fed(part)
		return upTo >= end || end <= behind
	}); err != nil {
		return err
	}
	got, _ := n.fed(part)
	first := len(log) - len(got)
	if first < 0 || first > 0 && log[first-1].Pos > behind {
		return fmt.Errorf("Handler.Records of node %d got %d records of partition %d, there are "+
			"%d in all, and it must get those behind position %d", n.at, len(got), part, len(log),
			behind)
	}
	if err := equal(got, log[first:]); err != nil {
		return fmt.Errorf("Handler.Records of node %d, partition %d: %w", n.at, part, err)
	}
	return nil
}

func checkOrder(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	faults := make(chan struct{})
	go func() { // this function waits for it
		defer close(faults)
		e.sleep(50 * time.Millisecond)
		e.LoseLeaders()
		e.sleep(e.Election + 100*time.Millisecond)
		e.Cut(1, 0)
		e.Cut(1, 2)
		e.sleep(time.Second)
		e.Heal()
		e.sleep(100 * time.Millisecond)
		e.isolate(2)
		e.sleep(time.Second)
		e.Heal()
		e.sleep(100 * time.Millisecond)
	}()
	var written [3][][]*cluster.Record
	seed := e.rand.Uint64()
	err := e.together(func(i int) (err error) {
		written[i], err = e.write(e.nodes[i], seed, faults)
		return err
	})
	<-faults
	if err != nil {
		return err
	}
	return e.verifyWritten(written)
}

// beginnings returns for each partition a position that a node has in its Retained.
func (e *env) beginnings(n *node) ([]uint64, error) {
	at := make([]uint64, n.limits.Partitions)
	for part := range at {
		if _, err := e.retained(n, part, &at[part]); err != nil {
			return nil, err
		}
	}
	return at, nil
}

func checkFeeds(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	seed, stop := e.rand.Uint64(), make(chan struct{})
	writing := make(chan error, 2)
	for _, n := range e.nodes[:2] {
		go func() { // this function waits for it
			_, err := e.write(n, seed, stop)
			writing <- err
		}()
	}
	var behind []uint64
	faults := func() (err error) {
		defer close(stop)
		e.nodes[2].slow.Store(int64(30 * time.Millisecond))
		e.sleep(300 * time.Millisecond)
		e.nodes[2].slow.Store(0)
		e.Pause(2)
		e.sleep(time.Second)
		e.Resume(2)
		e.sleep(100 * time.Millisecond)
		e.isolate(2)
		e.sleep(time.Second)
		e.Heal()
		e.sleep(100 * time.Millisecond)
		e.kill(2)
		e.sleep(100 * time.Millisecond)
		if err := e.start(2); err != nil {
			return err
		}
		behind, err = e.beginnings(e.nodes[2])
		e.sleep(500 * time.Millisecond)
		return err
	}
	err := errors.Join(faults(), <-writing, <-writing)
	if err != nil {
		return err
	}
	for part := range e.nodes[0].limits.Partitions {
		last := e.record(part, "end")
		if err := e.nodes[0].put(e.ctx, last); err != nil {
			return err
		}
		log, err := e.read(e.nodes[1], part, last.Pos)
		if err != nil {
			return err
		}
		for i := range 3 {
			from := uint64(0)
			if i == 2 {
				from = behind[part]
			}
			if err := e.verifyFeed(e.nodes[i], part, log, from); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkCommitted(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	for round := range 12 {
		i := round % 3
		r := e.record(0, "a")
		if err := e.nodes[i].put(e.ctx, r); err != nil {
			return err
		}
		for j := range 3 {
			page, err := e.nodes[j].Read(e.ctx, 0, r.Pos-1, []string{"a"}, 1)
			if err != nil {
				return err
			}
			if page.UpTo >= r.Pos && (len(page.Records) == 0 || page.Records[0].Pos != r.Pos) {
				return fmt.Errorf("a Read on node %d up to %d has not the record at %d, which was "+
					"committed", j, page.UpTo, r.Pos)
			}
		}
		last := e.record(0, "b")
		if err := e.nodes[i].put(e.ctx, last); err != nil {
			return err
		}
		e.kill(i)
		other := e.nodes[(i+1)%3]
		log, err := e.read(other, 0, last.Pos)
		if err != nil {
			return err
		}
		for _, want := range []*cluster.Record{r, last} {
			at := slices.IndexFunc(log, func(x *cluster.Record) bool { return x.Pos == want.Pos })
			if at < 0 {
				return fmt.Errorf("the record at %d was committed on node %d, which was killed "+
					"then, and it is not there", want.Pos, i)
			}
			if err := same(log[at], want); err != nil {
				return err
			}
		}
		if err := e.start(i); err != nil {
			return err
		}
	}
	return nil
}

// race commits one record with the same Once on all nodes, and returns how many were added.
func (e *env) race(key cluster.Key) (added int, err error) {
	var records [3]*cluster.Record
	err = e.together(func(i int) error {
		records[i] = e.record(key.Part, "once/"+key.Name)
		records[i].Once = key
		return e.nodes[i].put(e.ctx, records[i])
	})
	for _, r := range records {
		if !r.Repeated {
			added++
		}
	}
	return added, err
}

func checkOnce(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	parts := e.nodes[0].limits.Partitions
	for round := range 30 {
		key := cluster.Key{Part: round % parts, Name: fmt.Sprint("key ", round)}
		if round%10 == 9 {
			e.LoseLeaders()
		}
		for want := range 3 { // at first, after Forget, and after Forget in the same Batch
			added, err := e.race(key)
			if err != nil {
				return err
			}
			if added != 1 {
				return fmt.Errorf("of three Records with the same Once %d were added", added)
			}
			forget := []cluster.Key{key}
			if want == 0 {
				err = e.nodes[round%3].commit(e.ctx, &cluster.Batch{Forget: forget})
				if err != nil {
					return err
				}
				continue
			}
			two := []*cluster.Record{e.record(key.Part, "once/"+key.Name),
				e.record(key.Part, "once/"+key.Name)}
			two[0].Once, two[1].Once = key, key
			b := &cluster.Batch{Forget: forget, Records: two}
			if err := e.nodes[round%3].commit(e.ctx, b); err != nil {
				return err
			}
			if two[0].Repeated || !two[1].Repeated {
				return fmt.Errorf("a Batch with Forget and two Records of one Once: Repeated is "+
					"%v and %v, want false and true", two[0].Repeated, two[1].Repeated)
			}
			forgetAgain := &cluster.Batch{Forget: forget}
			if err := e.nodes[(round+1)%3].commit(e.ctx, forgetAgain); err != nil {
				return err
			}
		}
		if err := e.verifyOnce(key, 5); err != nil {
			return err
		}
	}
	return nil
}

// verifyOnce counts the records of race in the log.
func (e *env) verifyOnce(key cluster.Key, want int) error {
	end := e.record(key.Part, "end")
	if err := e.nodes[0].put(e.ctx, end); err != nil {
		return err
	}
	log, err := e.read(e.nodes[1], key.Part, end.Pos)
	if err != nil {
		return err
	}
	n := 0
	for _, r := range log {
		if r.Message.Topic == "once/"+key.Name {
			n++
		}
	}
	if n != want {
		return fmt.Errorf("%d records with one Once are in the log, want %d", n, want)
	}
	return nil
}

// retained collects Retained.
func (e *env) retained(n *node, part int, at *uint64) (all []*cluster.Record, err error) {
	for r, err := range n.Retained(e.ctx, part, at) {
		if err != nil {
			return nil, fmt.Errorf("a Retained on node %d: %w", n.at, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// fold returns the retained messages after a sequence up to a position.
func fold(log []*cluster.Record, upTo uint64) map[string]*cluster.Record {
	state := map[string]*cluster.Record{}
	for _, r := range log {
		switch {
		case r.Pos > upTo || !r.Retain:
		case len(r.Message.Payload) == 0:
			delete(state, r.Message.Topic)
		default:
			state[r.Message.Topic] = r
		}
	}
	return state
}

// A shot is what Retained yielded.
type shot struct {
	part int
	at   uint64
	all  []*cluster.Record
}

// verify compares a shot with the log.
func (s *shot) verify(log []*cluster.Record) error {
	want := fold(log, s.at)
	if len(want) != len(s.all) {
		return fmt.Errorf("a Retained at %d has %d messages, want %d", s.at, len(s.all), len(want))
	}
	for _, r := range s.all {
		w := want[r.Message.Topic]
		if w == nil {
			return fmt.Errorf("a Retained at %d has the topic %s", s.at, r.Message.Topic)
		}
		if err := same(r, w); err != nil {
			return fmt.Errorf("a Retained at %d: %w", s.at, err)
		}
	}
	return nil
}

func checkRetained(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	seed, parts := e.rand.Uint64(), e.nodes[0].limits.Partitions
	var shots [3][]shot
	err := e.together(func(i int) error {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		n := e.nodes[i]
		for range 60 {
			var b []*cluster.Record
			for range 3 {
				r := e.record(random.IntN(parts), fmt.Sprintf("topic/%d", random.IntN(5)))
				if r.Retain = random.IntN(4) > 0; r.Retain && random.IntN(3) == 0 {
					r.Message.Payload = nil
				}
				b = append(b, r)
			}
			if err := n.put(e.ctx, b...); err != nil {
				return err
			}
			s := shot{part: random.IntN(parts)}
			_, before := n.fed(s.part)
			var err error
			if s.all, err = e.retained(n, s.part, &s.at); err != nil {
				return err
			}
			if s.at < before {
				return fmt.Errorf("a Retained is at %d, and Records was at %d before", s.at, before)
			}
			shots[i] = append(shots[i], s)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for part := range parts {
		end := e.record(part, "end")
		if err := e.nodes[0].put(e.ctx, end); err != nil {
			return err
		}
		log, err := e.read(e.nodes[0], part, end.Pos)
		if err != nil {
			return err
		}
		for _, s := range slices.Concat(shots[:]...) {
			if s.part == part {
				if err := s.verify(log); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func checkFence(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	// a node that is cut off while it commits
	e.isolate(2)
	old := e.nodes[2].limits.Incarnation
	late := &cluster.Batch{Records: []*cluster.Record{e.record(0, "fenced")},
		Changes: []*cluster.Change{{Put: []cluster.Put{{Key: "late", Value: []byte("v")}}}}}
	done := make(chan error, 1)
	go func() { done <- e.nodes[2].commit(e.ctx, late) }() // this function waits for it
	if err := e.until("a node that is cut off is gone", patience, func() bool {
		return !e.nodes[0].lives(name(2), 0) && !e.nodes[1].lives(name(2), 0)
	}); err != nil {
		return err
	}
	e.Heal()
	if err := <-done; err != nil {
		return err
	}
	for _, err := range []error{late.Records[0].Err, late.Changes[0].Err} {
		if !errors.Is(err, cluster.ErrFenced) {
			return fmt.Errorf("what a node was committing when its lease ended has %v, want %v",
				err, cluster.ErrFenced)
		}
	}
	if err := e.until("the node is back with a larger Incarnation", patience, func() bool {
		return e.nodes[0].lives(name(2), old) && e.nodes[2].lives(name(2), old)
	}); err != nil {
		return err
	}
	mark := e.record(0, "mark")
	if err := e.nodes[2].put(e.ctx, mark); err != nil {
		return fmt.Errorf("after it has joined again: %w", err)
	}
	for range 10 {
		if err := e.dieCommitting(); err != nil {
			return err
		}
	}
	return e.verifyNotThere("late")
}

// verifyNotThere makes sure that a key has never had a value.
func (e *env) verifyNotThere(key string) error {
	_, conflict, err := e.nodes[0].changes(e.ctx, cluster.Put{Key: key, Value: []byte("x")})
	if err == nil && conflict {
		err = fmt.Errorf("the key %q has a value, although its Change was refused", key)
	}
	return err
}

// dieCommitting kills a node while it commits, and looks whether something came late.
func (e *env) dieCommitting() error {
	ctx, stop := context.WithCancel(e.ctx)
	go func(n *node) { // ends when the node is killed
		defer stop()
		for range 20 {
			_ = n.Commit(ctx, &cluster.Batch{Records: []*cluster.Record{e.record(0, "late")}})
		}
	}(e.nodes[2])
	e.sleep(time.Duration(e.rand.IntN(5000)) * time.Microsecond)
	e.kill(2)
	<-ctx.Done()
	if err := e.start(2); err != nil {
		return err
	}
	mark := e.record(0, "mark")
	if err := e.nodes[2].put(e.ctx, mark); err != nil {
		return err
	}
	e.sleep(time.Second)
	end := e.record(0, "end")
	if err := e.nodes[0].put(e.ctx, end); err != nil {
		return err
	}
	log, err := e.read(e.nodes[1], 0, end.Pos)
	if err != nil {
		return err
	}
	for _, r := range log {
		if r.Message.Topic == "fenced" {
			return errors.New("a record that was refused with ErrFenced is there")
		}
		if r.Message.Topic == "late" && r.Pos > mark.Pos {
			return errors.New("a record that a dead node was committing came after the node " +
				"had started again")
		}
	}
	return nil
}
