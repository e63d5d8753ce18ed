package dunlin

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/retained"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is how retained messages (3.3.1.3) change and expire. Where they are kept is in package
// internal/retained.

// walkLook is how much work it may be, see retained.Found, to look for retained messages with their
// lock held.
const walkLook = 512

// newRetained returns the Store for the retained messages, which counts them in b.memory.
func (b *Broker) newRetained() *retained.Store {
	return retained.New(retained.Options{
		MaxMessages: b.cfg.MaxRetained,
		MaxBytes:    int64(b.cfg.MaxRetainedBytes),
		Hold: func(m *message) {
			b.memory.Hold(&m.Holders, budget.Retained, heldSize(m), retainedCost)
		},
		Release: func(m *message) {
			b.memory.Release(&m.Holders, budget.Retained, heldSize(m), retainedCost)
		},
	})
}

// topicLocks make the publishers of one topic take turns while its retained message changes, is given
// to the journal, and is delivered: so all three happen in one order. Several topics share a lock. Nobody
// takes one while holding another lock, and no hook that decides is asked while one is held.
type topicLocks [256]sync.Mutex

// lockTopic locks the topic for a change of its retained message.
func (b *Broker) lockTopic(topic []byte) *sync.Mutex {
	mu := &b.topics[maphash.Bytes(b.seed, topic)%uint64(len(b.topics))]
	mu.Lock()
	return mu
}

// publishRetained is publish for a message that becomes the retained one of its topic, or removes it.
func (t *turn) publishRetained(o *outgoing, r *route) (matched int, err error) {
	t.askMembers(o, r)
	defer t.b.lockTopic(o.pub.Topic).Unlock() // after a panic as well
	defer func() { t.asked = false }()
	return t.pass(o, r)
}

// retain makes o the retained message of its topic, or, with no payload, removes that one
// [MQTT-3.3.1-5] [MQTT-3.3.1-6]. It returns the retained message that there was, nil for none. The
// topic is locked.
func (t *turn) retain(o *outgoing) (old *message, err error) {
	if len(o.pub.Payload) == 0 {
		return t.b.retained.Remove(string(o.pub.Topic)), nil
	}
	if old, err = t.b.retained.Set(o.message()); err != nil {
		return nil, packets.Errorf(packets.QuotaExceeded, "%v", err)
	}
	return old, nil
}

// renew looks again who gets a message that has become the retained one: who subscribed after r was resolved may have looked for retained
// messages before this one was there, and has to get it now.
func (t *turn) renew(r *route) {
	if r.version != r.watch.Version() {
		r.fill(t, r.topic, r.from)
		t.found = len(r.targets) + len(r.shared)
	}
}

// retainStored is retain for what outlives the Broker.
func (t *turn) retainStored(o *outgoing) error {
	old, err := t.retain(o)
	if err != nil || !lasts(o.pub.Topic) {
		return err
	}
	j, u := t.b.journal, retainedUndo{topic: string(o.pub.Topic), old: old}
	if old == nil && len(o.pub.Payload) == 0 {
		t.follow()
		return nil
	}
	if len(o.pub.Payload) > 0 {
		u.now = o.message()
		t.operation(u.now, 0).Retain = true
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	t.pin()
	if u.now == nil {
		j.put(t.write.batch, &store.DeleteRetained{Topic: u.topic})
	}
	t.write.batch.undo = append(t.write.batch.undo, u)
	return nil
}

// lasts says whether a retained message of the topic outlives the Broker.
func lasts[T string | []byte](topic T) bool {
	return len(topic) < 5 || string(topic[:5]) != "$SYS/"
}

// restoreRetained undoes a change of a retained message, unless there has been another one.
func (b *Broker) restoreRetained(u *retainedUndo) {
	defer b.lockTopic([]byte(u.topic)).Unlock()
	old := b.journal.standing(u.old)
	switch {
	case u.now == nil: // a removal is tried again
	case b.retained.Get(u.topic) != u.now: // by a later batch, which may fail as well
		b.journal.undone[u.now] = old
	case old != nil:
		b.retained.Restore(old)
	default:
		b.retained.Remove(u.topic)
	}
}

// watchRetained has retained messages removed when they expire.
func (b *Broker) watchRetained() {
	b.retained.OnExpiry(func(at time.Time) { b.due.Set(&b.retainedDue, at, b.expireRetained) })
}

// expireRetained removes the retained messages that have expired.
func (b *Broker) expireRetained(now time.Time) {
	for {
		expired := b.retained.Expired(now, 64)
		for _, m := range expired {
			if b.removeExpired(m) && b.obs.Dropped != nil {
				b.obs.Dropped("", &m.Message, hooks.DropExpired)
			}
		}
		if len(expired) == 0 {
			return
		}
	}
}

// removeExpired removes m if it still is the retained message of its topic, and says whether it was.
func (b *Broker) removeExpired(m *message) bool {
	defer b.lockTopic([]byte(m.Topic)).Unlock()
	if !b.retained.RemoveExactly(m) {
		return false
	}
	if b.journal != nil && lasts(m.Topic) {
		b.journal.add(&store.DeleteRetained{Topic: m.Topic})
	}
	return true
}
