package dunlin

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what the committer does when the store has no room, or fails.
//
// An operation either adds (Publish, Received, a new Session or subscription, retained messages),
// and a client or a caller waits for it and can be told that it failed; or it follows what has
// happened already (Sent, Released, Done, Forget, the end of something). When there is no room for
// a batch, what adds is taken back and refused, and what follows is kept and tried again, until it
// is committed.

// probe adds a message without effect to x now and then while the store is full, to find out whether there is room again, and twice as
// much as was wanted. mu is held.
func (j *journal) probe(x *batch) {
	if now := time.Now(); j.full && !now.Before(j.probeAt) {
		j.probeAt = now.Add(retryDelay)
		x.probes = true
		payload := make([]byte, min(max(2*j.wanted, probeSize), maxProbe))
		j.put(x, &store.Publish{Message: &message{Message: packets.Message{Topic: "probe", Payload: payload}}})
	}
}

// commit makes x durable, or as much of it as there is room for, and notes in it what became of it.
func (j *journal) commit(x *batch) {
	x.conns = append(x.conns, j.carried.conns...)
	if j.dead {
		x.err, x.stuck, x.dead = j.failure, j.failure, true
		return
	}
	x.ops = slices.DeleteFunc(x.ops, func(op store.Op) bool { return op == nil })
	err := j.commitCarried(x.probes)
	switch {
	case err != nil:
	case len(x.ops) == 0:
		return
	case j.full && !x.probes && x.adds():
		// It came before the broker refused what adds. It must not overtake what has been refused,
		// if that is sent again.
		err = j.failure
	default:
		if err = j.try(x.ops, x.bytes); err == nil {
			if j.full && x.adds() {
				j.recovered()
			}
			return
		}
	}
	if !passes(err) {
		j.die(x, err)
		return
	}
	j.commitRest(x, err)
}

// passes says whether the store goes on after err, with which a batch has had no effect.
func passes(err error) bool {
	return errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrTooLarge)
}

// try commits ops, which weigh n bytes.
func (j *journal) try(ops []store.Op, n int) error {
	j.grown += n
	return j.store.Commit(context.Background(), ops)
}

// commitRest deals with a batch that there is no room for: what adds is given up, what follows is
// committed, or carried until it can be.
func (j *journal) commitRest(x *batch, full error) {
	if !j.full {
		j.wanted, j.probeAt = x.bytes, time.Now().Add(retryDelay)
	}
	follow, adds := x.following(), x.adds()
	err := full
	if adds {
		x.err = full
		if len(j.carried.ops) == 0 {
			if err = nil; len(follow) > 0 {
				err = j.try(follow, x.bytes)
			}
		}
	}
	switch {
	case err == nil:
	case passes(err):
		// What only follows is not durable either: it is no success.
		x.err, x.stuck, x.pinned = full, err, true
		j.carry(x, follow)
	default:
		j.die(x, err)
		return
	}
	j.fail(full, false)
}

// A carriage is what follows and has found no room, and the connections that hold output for it. It
// is bounded by what there was when the store became full: while the store is full nothing is added,
// each operation ends or changes something that was there, and those that change the same thing
// become one.
type carriage struct {
	ops     []store.Op
	conns   []*conn
	bytes   int
	compact int // how many ops there were when the last ones were made one
}

// carryBytes is how much of what is carried is committed at a time: a try that fails costs no more.
const carryBytes = 256 << 10

// carry keeps follow, which is of x, for later.
func (j *journal) carry(x *batch, follow []store.Op) {
	c := &j.carried
	c.ops = append(c.ops, follow...)
	c.conns = distinct(x.conns) // x has those of before
	if len(c.ops) > 2*c.compact+64 {
		j.compact()
	} else {
		j.countCarried(c.bytes + weighAll(follow))
	}
}

// compact leaves out of what is carried what has become void.
func (j *journal) compact() {
	c := &j.carried
	c.ops = current(c.ops)
	c.compact = len(c.ops)
	j.countCarried(weighAll(c.ops))
}

// countCarried makes the counts know that what is carried weighs n bytes.
func (j *journal) countCarried(n int) {
	d := int64(n - j.carried.bytes)
	j.b.memory.Add(budget.Uncommitted, d)
	j.room.add(d)
	j.carried.bytes = n
}

// commitCarried commits what is carried, a piece at a time, if tries says so. It returns why not all
// of it is durable, nil if all is.
func (j *journal) commitCarried(tries bool) (err error) {
	c := &j.carried
	if len(c.ops) == 0 {
		return nil
	}
	if !tries {
		return j.failure
	}
	j.compact()
	for len(c.ops) > 0 && err == nil {
		k, n := 0, 0
		for ; k < len(c.ops) && n < carryBytes; k++ {
			n += weigh(c.ops[k])
		}
		if err = j.try(c.ops[:k], n); err == nil {
			c.ops = c.ops[k:]
			j.countCarried(c.bytes - n)
		}
	}
	if err == nil {
		*c = carriage{}
	}
	return err
}

// distinct returns a copy of conns without repetitions.
func distinct(conns []*conn) (out []*conn) {
	seen := make(map[*conn]bool, len(conns))
	for _, c := range conns {
		if !seen[c] {
			seen[c] = true
			out = append(out, c)
		}
	}
	return out
}

// A subject is what an operation that follows changes.
type subject struct {
	session uint64
	seq     uint64
	name    string
	kind    byte
}

// subjectOf returns what op changes.
func subjectOf(op store.Op) (x subject, ok bool) {
	switch op := op.(type) {
	case *store.PutSession:
		return subject{session: op.Session, kind: 's'}, true
	case *store.DeleteSession:
		return subject{session: op.Session, kind: 'd'}, true
	case *store.DeleteSubscription:
		return subject{session: op.Session, name: op.Filter, kind: 'f'}, true
	case *store.DeleteRetained:
		return subject{name: op.Topic, kind: 'r'}, true
	case *store.Sent:
		return subject{session: op.Session, seq: op.Seq, kind: 'i'}, true
	case *store.Released:
		return subject{session: op.Session, seq: op.Seq, kind: 'l'}, true
	case *store.Done:
		return subject{session: op.Session, seq: op.Seq, kind: 'e'}, true
	case *store.Forget:
		return subject{session: op.Session, seq: uint64(op.ID), kind: 'p'}, true
	}
	return x, false
}

// current returns those of ops, which follow, that no later one makes void: with each thing the last
// that was said of it, of an entry that is done nothing else, and of a Session that has ended nothing
// else.
func current(ops []store.Op) []store.Op {
	seen := make(map[subject]bool, len(ops))
	keep := make([]store.Op, 0, len(ops))
	for _, op := range slices.Backward(ops) {
		x, ok := subjectOf(op)
		if ok {
			over := seen[x] ||
				x.session != 0 && seen[subject{session: x.session, kind: 'd'}] ||
				x.seq != 0 && x.kind != 'p' && seen[subject{session: x.session, seq: x.seq, kind: 'e'}]
			if over {
				continue
			}
			seen[x] = true
		}
		keep = append(keep, op)
	}
	slices.Reverse(keep)
	return keep
}

// isAddition says whether op, of x, makes more of what is stored.
func (x *batch) isAddition(op store.Op) bool {
	switch op := op.(type) {
	case *store.Publish, *store.Received, *store.PutSubscription, *store.PutRetained:
		return true
	case *store.PutSession:
		return slices.Contains(x.births, op.Session)
	}
	return false
}

// adds says whether x has an operation that adds.
func (x *batch) adds() bool { return slices.ContainsFunc(x.ops, x.isAddition) }

// following returns those of the operations of x that follow what has happened already.
func (x *batch) following() (f []store.Op) {
	for _, op := range x.ops {
		if !x.isAddition(op) {
			f = append(f, op)
		}
	}
	return f
}

// die is the end of a store that cannot go on: only what is in memory already is served.
func (j *journal) die(x *batch, err error) {
	x.err, x.stuck, x.dead = err, err, true
	j.countCarried(0)
	j.carried = carriage{}
	j.fail(err, true)
}

// fail refuses from now on what adds.
func (j *journal) fail(err error, dead bool) {
	j.mu.Lock()
	first := j.failure == nil || dead && !j.dead
	j.failure, j.dead = err, dead
	j.mu.Unlock()
	j.full = !dead
	j.room.refuse()
	if !first {
		return
	}
	j.b.log.Error("the store failed: QoS 1 and 2 that need it are refused", "err", err, "untilRestart", dead)
	if f := j.b.obs.StoreFailed; f != nil {
		f(err)
	}
}

// recovered ends what fail began.
func (j *journal) recovered() {
	j.mu.Lock()
	j.failure = nil
	j.mu.Unlock()
	j.full = false
	j.b.log.Info("the store works again")
	if f := j.b.obs.StoreRecovered; f != nil {
		f()
	}
}
