package memory

import (
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// register is the truth of all values. Engine.mu is held in this whole file.
type register struct {
	values map[string][]value // by key: the newest value is the last one
	bytes  int                // of the newest values
	free   int                // keys whose newest value is that they are free
}

// A value is what a key has, or had, from a Rev on.
type value struct {
	rev  uint64 // of the register, when the value came to be
	is   []byte // nil: the key is free
	size int    // in register.bytes
}

// now returns the present value of a key.
func (r *register) now(key string) value {
	all := r.values[key]
	if len(all) == 0 {
		return value{}
	}
	return all[len(all)-1]
}

// entry returns the value of a key as a replica has it that has seen the register up to a Rev. If
// the engine does not keep that any more, it is a newer one.
func (r *register) entry(key string, seen uint64) cluster.Entry {
	all := r.values[key]
	for i, v := range slices.Backward(all) {
		if v.rev <= seen || i == 0 && len(all) == maxVersions {
			if v.is == nil {
				break
			}
			return cluster.Entry{Key: key, Value: slices.Clone(v.is), Rev: v.rev}
		}
	}
	return cluster.Entry{Key: key}
}

// list returns the entries with a prefix, in the order of their keys, so that two runs with one
// seed do the same.
func (r *register) list(prefix string, seen uint64) (all []cluster.Entry) {
	for key := range r.values {
		if strings.HasPrefix(key, prefix) {
			if v := r.entry(key, seen); v.Rev != 0 {
				all = append(all, v)
			}
		}
	}
	slices.SortFunc(all, func(a, b cluster.Entry) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// set gives a key its next value.
func (r *register) set(key string, v value) {
	old := r.now(key)
	if v.is != nil {
		v.size = len(key) + len(v.is) + overhead
	}
	r.bytes += v.size - old.size
	if old.rev != 0 && old.is == nil {
		r.free--
	}
	if v.is == nil {
		r.free++
	}
	all := append(r.values[key], v)
	if len(all) > maxVersions {
		all = slices.Clone(all[1:])
	}
	r.values[key] = all
	if r.free > 1000 && r.free > len(r.values)/2 {
		r.sweep()
	}
}

// sweep lets go of keys that are free. Replicas that lag see that early, which is no harm: what
// they see is a hint.
func (r *register) sweep() {
	for key, all := range r.values {
		if all[len(all)-1].is == nil {
			delete(r.values, key)
		}
	}
	r.free = 0
}

// decideChanges is the moment at which the Changes of a group are there, or are not.
func (e *Engine) decideChanges(b *Backend, g *group) {
	for i := range g.outcomes {
		c := &g.outcomes[i]
		switch {
		case c.Err != nil:
		case !e.member(b, g.incarnation):
			c.Err = cluster.ErrFenced
		default:
			c.Err = e.change(c.Put)
		}
	}
	e.spread(e.registerUnit())
}

// change makes one Change, or returns why not.
func (e *Engine) change(puts []cluster.Put) error {
	grows := 0
	for i := range puts {
		old := e.reg.now(puts[i].Key)
		if old.is == nil {
			old.rev = 0
		}
		if old.rev != puts[i].Rev {
			return cluster.ErrConflict
		}
		grows -= old.size
		if puts[i].Value != nil {
			grows += len(puts[i].Key) + len(puts[i].Value) + overhead
		}
	}
	if grows > 0 && (e.full || e.reg.bytes+grows > e.o.MaxBytes) {
		return cluster.ErrFull
	}
	x := e.units[e.registerUnit()]
	x.pos++
	for i := range puts {
		p := &puts[i]
		if p.Value == nil && p.Rev == 0 {
			continue // it is free, and stays free
		}
		e.reg.set(p.Key, value{rev: x.pos, is: p.Value})
		if p.Value != nil {
			p.New = x.pos
		}
		if p.TTL > 0 {
			e.expire(p.Key, x.pos, p.TTL)
		}
	}
	return nil
}

// expire frees a key after its TTL, or soon after that, if it still has the value of then.
func (e *Engine) expire(key string, rev uint64, ttl time.Duration) {
	d := ttl + e.draw(0, kindLead).between(0, cluster.Slack/2)
	var try func()
	try = func() {
		u := e.registerUnit()
		switch {
		case e.reg.now(key).rev != rev:
		case !e.led(u):
			e.after(0, kindLead, 200*time.Millisecond, try)
		default:
			e.units[u].pos++
			e.reg.set(key, value{rev: e.units[u].pos})
			e.spread(u)
		}
	}
	e.after(0, kindLead, d, try)
}
