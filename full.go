package dunlin

import (
	"context"
	"errors"
	"slices"
	"time"

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

// commitRest deals with a batch that there is no room for: what adds is given up, what follows is committed or kept for later.
func (j *journal) commitRest(x *batch, ops []store.Op, full error) {
	if !j.full {
		j.wanted, j.probeAt = x.bytes, time.Now().Add(retryDelay)
	}
	follow := x.following(ops)
	err := full
	if len(follow) < len(ops) {
		x.err, err = full, nil
		if len(follow) > 0 {
			err = j.store.Commit(context.Background(), follow)
		}
	}
	switch {
	case err == nil:
		j.carried, j.carriedConns = nil, nil
	case errors.Is(err, store.ErrFull):
		x.err, x.stuck, x.pinned = full, err, true // also of what only follows nothing is durable yet: it is no success
		j.carried, j.carriedConns = current(follow), distinct(x.conns)
	default:
		j.die(x, err)
		return
	}
	j.fail(full, false)
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

// current leaves out of ops, which follow, those that a later one makes void, so that what is carried does not grow with the time that the
// store is full.
func current(ops []store.Op) []store.Op {
	type subject struct {
		session uint64
		name    string
		kind    byte
	}
	seen := make(map[subject]bool)
	for i := len(ops) - 1; i >= 0; i-- {
		var x subject
		switch op := ops[i].(type) {
		case *store.PutSession:
			x = subject{session: op.Session, kind: 's'}
		case *store.DeleteSubscription:
			x = subject{op.Session, op.Filter, 'f'}
		case *store.DeleteRetained:
			x = subject{name: op.Topic, kind: 'r'}
		default:
			continue
		}
		if seen[x] {
			ops[i] = nil
		}
		seen[x] = true
	}
	return slices.DeleteFunc(ops, func(op store.Op) bool { return op == nil })
}

// following returns those of ops that follow what has happened already.
func (x *batch) following(ops []store.Op) (f []store.Op) {
	for _, op := range ops {
		switch op := op.(type) {
		case *store.Publish, *store.Received, *store.PutSubscription, *store.PutRetained:
		case *store.PutSession:
			if !slices.Contains(x.births, op.Session) {
				f = append(f, op)
			}
		default:
			f = append(f, op)
		}
	}
	return f
}

// die is the end of a store that cannot go on: only what is in memory already is served.
func (j *journal) die(x *batch, err error) {
	x.err, x.stuck, x.dead = err, err, true
	j.carried, j.carriedConns = nil, nil
	j.fail(err, true)
}

// fail refuses from now on what adds.
func (j *journal) fail(err error, dead bool) {
	j.mu.Lock()
	first := j.failure == nil || dead && !j.dead
	j.failure, j.dead = err, dead
	j.mu.Unlock()
	j.full = !dead
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
