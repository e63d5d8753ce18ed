package journal

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is what the committer does when the store has no room, or fails.

const (
	// least payload of the message without effect that a full store is tried with
	probeSize = 4 << 10
	maxProbe  = 64 << 10 // and the most
)

// probeLocked adds a message without effect to x now and then while the store is full, to find out
// whether there is room again, and twice as much as was wanted. If x succeeds what it adds is
// durable. So it has nothing that came before its sender was told of a refusal, and would be sent
// again behind it.
func (j *Journal) probeLocked(x *Batch) {
	if now := j.o.Now(); j.full && !now.Before(j.probeAt) && j.released >= j.suspect {
		j.probeAt = now.Add(RetryDelay)
		x.probes = true
		payload := make([]byte, min(max(2*j.wanted, probeSize), maxProbe))
		m := packets.Message{Topic: "probe", Payload: payload}
		j.putLocked(x, &store.Publish{Message: &store.Message{Message: m}})
	}
}

// commit makes x durable, or as much of it as there is room for, and notes in it what became of it.
func (j *Journal) commit(x *Batch) {
	x.Waiters = append(x.Waiters, j.carried.waiters...)
	if h := j.health.Load(); h != nil && h.dead {
		x.err, x.stuck, x.dead = h.err, h.err, true
		return
	}
	x.ops = slices.DeleteFunc(x.ops, func(op store.Op) bool { return op == nil })
	err := j.commitCarried(x.probes)
	switch {
	case err != nil:
	case len(x.ops) == 0:
		return
	case j.full && !x.probes && x.adds():
		// It came before the caller refused what adds. It must not overtake what has been refused,
		// if that is sent again.
		err = j.Health()
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
func (j *Journal) try(ops []store.Op, n int) error {
	j.grown += n
	if j.o.Tried != nil {
		defer j.o.Tried(time.Now(), len(ops))
	}
	lock.NoneHeld("a call of the Store")
	return j.o.Store.Commit(context.Background(), ops)
}

// commitRest deals with a batch that there is no room for: what adds is given up, what follows is
// committed, or carried until it can be.
func (j *Journal) commitRest(x *Batch, full error) {
	if !j.full {
		j.wanted, j.probeAt = x.bytes, j.o.Now().Add(RetryDelay)
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
		x.err, x.stuck, x.keeps = full, err, true
		j.carry(x, follow)
	default:
		j.die(x, err)
		return
	}
	j.fail(full, false)
}

// A carriage is what follows and has found no room, and those that hold output for it. It is
// bounded by what there was when the store became full: while the store is full nothing is added,
// each operation ends or changes something that was there, and those that change the same thing
// become one.
type carriage struct {
	ops     []store.Op
	waiters []Waiter
	bytes   int
	compact int // how many ops there were when the last ones were made one
}

// carryBytes is how much of what is carried is committed at a time: a try that fails costs no more.
const carryBytes = 256 << 10

// carry keeps follow, which is of x, for later.
func (j *Journal) carry(x *Batch, follow []store.Op) {
	c := &j.carried
	c.ops = append(c.ops, follow...)
	c.waiters = distinct(x.Waiters) // x has those of before
	if len(c.ops) > 2*c.compact+64 {
		j.compact()
	} else {
		j.countCarried(c.bytes + weighAll(follow))
	}
}

// compact leaves out of what is carried what has become void.
func (j *Journal) compact() {
	c := &j.carried
	c.ops = current(c.ops)
	c.compact = len(c.ops)
	j.countCarried(weighAll(c.ops))
}

// countCarried makes the counts know that what is carried weighs n bytes.
func (j *Journal) countCarried(n int) {
	d := int64(n - j.carried.bytes)
	j.o.Memory.Add(budget.Uncommitted, d)
	j.Room.Add(d)
	j.carried.bytes = n
}

// commitCarried commits what is carried, a piece at a time, if tries says so. It returns why not
// all of it is durable, nil if all is.
func (j *Journal) commitCarried(tries bool) (err error) {
	c := &j.carried
	if len(c.ops) == 0 {
		return nil
	}
	if !tries {
		return j.Health()
	}
	j.compact()
	for len(c.ops) > 0 && err == nil {
		k, n := 0, 0
		for ; k < len(c.ops) && n < carryBytes; k++ {
			n += Weigh(c.ops[k])
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

// distinct returns a copy of all without repetitions.
func distinct(all []Waiter) (out []Waiter) {
	seen := make(map[Waiter]bool, len(all))
	for _, c := range all {
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

// current returns those of ops, which follow, that no later one makes void: of each thing the last
// that was said of it, of an entry that is done nothing else, and of a Session that has ended
// nothing else.
func current(ops []store.Op) []store.Op {
	seen := make(map[subject]bool, len(ops))
	keep := make([]store.Op, 0, len(ops))
	for _, op := range slices.Backward(ops) {
		x, ok := subjectOf(op)
		if ok {
			over := seen[x] ||
				x.session != 0 && seen[subject{session: x.session, kind: 'd'}] ||
				x.seq != 0 && x.kind != 'p' &&
					seen[subject{session: x.session, seq: x.seq, kind: 'e'}]
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
func (x *Batch) isAddition(op store.Op) bool {
	switch op := op.(type) {
	case *store.Publish, *store.Received, *store.PutSubscription, *store.PutRetained:
		return true
	case *store.PutSession:
		return slices.Contains(x.births, op.Session) || x.tied[op]
	}
	return x.tied[op]
}

// adds says whether x has an operation that adds.
func (x *Batch) adds() bool { return slices.ContainsFunc(x.ops, x.isAddition) }

// following returns those of the operations of x that follow what has happened already.
func (x *Batch) following() (f []store.Op) {
	for _, op := range x.ops {
		if !x.isAddition(op) {
			f = append(f, op)
		}
	}
	return f
}

// die is the end of a store that cannot go on: only what is in memory already is served.
func (j *Journal) die(x *Batch, err error) {
	x.err, x.stuck, x.dead = err, err, true
	j.countCarried(0)
	j.carried = carriage{}
	j.fail(err, true)
}

// fail refuses from now on what adds: for good if the store is dead.
func (j *Journal) fail(err error, dead bool) {
	before := j.health.Swap(&health{err, dead})
	j.full = !dead
	j.Room.Refuse()
	if before != nil && before.dead == dead {
		return
	}
	j.mu.Lock()
	j.suspect = j.pending.ticket
	j.mu.Unlock()
	j.o.Log.Error("the store failed: QoS 1 and 2 that need it are refused",
		"err", err, "untilRestart", dead)
	j.o.Handler.Failed(err)
}

// recovered ends what fail began.
func (j *Journal) recovered() {
	j.mu.Lock()
	j.errands++ // so that AwaitErrands waits for what Recovered begins
	j.mu.Unlock()
	defer j.endErrand()
	j.health.Store(nil)
	j.full = false
	j.o.Log.Info("the store works again")
	j.o.Handler.Recovered()
}
