package clustertest

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// gone waits until a node is gone from the lists of the others, and returns an error if that takes
// longer than the rule says.
func (e *env) gone(i int, since time.Time) error {
	limit := cluster.Lease + time.Second + e.Election - time.Since(since)
	return e.until(fmt.Sprintf("node %d is gone from the lists of the others", i), limit,
		func() bool {
			for j, n := range e.nodes {
				if j != i && n.lives(name(i), 0) {
					return false
				}
			}
			return true
		})
}

// allLive waits until all nodes have all nodes in their lists.
func (e *env) allLive() error {
	return e.until("all nodes are in all lists", patience, func() bool {
		for _, n := range e.nodes {
			for j := range 3 {
				if !n.lives(name(j), 0) {
					return false
				}
			}
		}
		return true
	})
}

func checkNodes(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	if err := e.allLive(); err != nil {
		return err
	}
	e.nodes[0].mu.Lock()
	list := e.nodes[0].lists[len(e.nodes[0].lists)-1].live
	e.nodes[0].mu.Unlock()
	for i, n := range list {
		if n.Name != name(i) || string(n.Info) != name(i) ||
			n.Incarnation != e.nodes[i].limits.Incarnation {
			return fmt.Errorf("the list has %v, want %s with its Info and Incarnation %d", n,
				name(i), e.nodes[i].limits.Incarnation)
		}
	}
	began := time.Now()
	e.LoseLeaders()
	e.sleep(2*e.Election + cluster.Lease)
	for i := range 3 {
		for _, n := range e.nodes {
			if n.missed(name(i), began) {
				return fmt.Errorf("node %d leaves the list of node %d during an election", i, n.at)
			}
		}
	}
	for i := range 3 {
		if err := e.leaves(i); err != nil {
			return err
		}
	}
	for i := range 3 {
		if err := e.cutOff(i); err != nil {
			return err
		}
	}
	return nil
}

// leaves kills a node, and starts it again.
func (e *env) leaves(i int) error {
	old, began := e.nodes[i].limits.Incarnation, time.Now()
	e.kill(i)
	e.nodes[i] = nil
	limit := cluster.Lease + time.Second + e.Election
	var others []*node
	for _, n := range e.nodes {
		if n != nil {
			others = append(others, n)
		}
	}
	if err := e.until(fmt.Sprintf("node %d, which was killed, is gone", i), limit, func() bool {
		return !slices.ContainsFunc(others, func(n *node) bool { return n.lives(name(i), 0) })
	}); err != nil {
		return err
	}
	for _, n := range others {
		for _, x := range others {
			if n.missed(name(x.at), began) {
				return fmt.Errorf("node %d leaves a list when node %d dies", x.at, i)
			}
		}
	}
	if err := e.start(i); err != nil {
		return err
	}
	if again := e.nodes[i].limits.Incarnation; again <= old {
		return fmt.Errorf("a node that was restarted has Incarnation %d after %d", again, old)
	}
	return e.allLive()
}

// cutOff cuts a node off, and heals the cut.
func (e *env) cutOff(i int) error {
	n, began := e.nodes[i], time.Now()
	told := func(since time.Time, alone bool) (yes bool) {
		n.locked(func() {
			last := len(n.majority) - 1
			yes = last >= 0 && !n.majority[last].at.Before(since) &&
				(n.majority[last].err != nil) == alone
		})
		return yes
	}
	e.isolate(i)
	if err := e.until(fmt.Sprintf("node %d, which is cut off, hears Majority with an error", i),
		2*time.Second, func() bool { return told(began, true) }); err != nil {
		return err
	}
	if err := e.gone(i, began); err != nil {
		return err
	}
	began = time.Now()
	e.Heal()
	if err := e.until(fmt.Sprintf("node %d hears Majority with nil after the cut", i), patience,
		func() bool { return told(began, false) }); err != nil {
		return err
	}
	return e.allLive()
}

func checkShortPause(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	if err := e.allLive(); err != nil {
		return err
	}
	began := time.Now()
	for i := range 3 {
		e.Pause(i)
		e.sleep(time.Second)
		e.Resume(i)
		e.sleep(cluster.Lease + e.Election)
	}
	for _, n := range e.nodes {
		for i := range 3 {
			if n.missed(name(i), began) {
				return fmt.Errorf("node %d leaves the list of node %d when one was paused for a "+
					"second", i, n.at)
			}
		}
	}
	return nil
}

func checkDrain(e *env) error {
	for i := range 3 {
		if i == 0 {
			if err := e.startAll(); err != nil {
				return err
			}
		} else if err := e.start(i - 1); err != nil {
			return err
		}
		if err := e.allLive(); err != nil {
			return err
		}
		if err := e.drains(i); err != nil {
			return err
		}
	}
	return nil
}

// drains drains a node while the others commit, and closes it.
func (e *env) drains(i int) error {
	var stop atomic.Bool
	slowest := make(chan time.Duration, 2)
	failed := make(chan error, 2)
	for _, j := range []int{(i + 1) % 3, (i + 2) % 3} {
		go func(n *node) { // this function waits for it
			most := time.Duration(0)
			for !stop.Load() {
				began := time.Now()
				r := make([]*cluster.Record, n.limits.Partitions)
				for part := range r {
					r[part] = e.record(part, "while")
				}
				if err := n.put(e.ctx, r...); err != nil {
					failed <- err
					break
				}
				most = max(most, time.Since(began))
				e.sleep(time.Millisecond)
			}
			slowest <- most
		}(e.nodes[j])
	}
	began := time.Now()
	e.sleep(100 * time.Millisecond)
	err := e.nodes[i].Drain(e.ctx)
	if err == nil {
		err = e.until(fmt.Sprintf("node %d, which drains, is gone from the lists", i), time.Second,
			func() bool {
				return !e.nodes[(i+1)%3].lives(name(i), 0) && !e.nodes[(i+2)%3].lives(name(i), 0)
			})
	}
	if err == nil {
		err = e.nodes[i].put(e.ctx, e.record(0, "after"))
	}
	if err == nil {
		_, err = e.nodes[i].Get(e.ctx, "key")
	}
	e.sleep(500 * time.Millisecond)
	err = errors.Join(err, e.nodes[i].Close())
	e.nodes[i].dies()
	e.sleep(2 * time.Second)
	stop.Store(true)
	most := max(<-slowest, <-slowest)
	e.nodes[i] = nil
	select {
	case e := <-failed:
		err = errors.Join(err, e)
	default:
	}
	if err == nil && most > time.Second {
		err = fmt.Errorf("a Commit has waited %v because node %d drained, %v ago", most, i,
			time.Since(began))
	}
	return err
}
