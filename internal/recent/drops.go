package recent

import (
	"hash/maphash"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// Drops are the last messages that did not reach a client. All methods may be called from any
// goroutine.
type Drops struct {
	seed maphash.Seed

	mu   lock.Mutex[leaf]
	list list[hooks.Drop]
}

// NewDrops returns an empty list.
func NewDrops(l Limits) *Drops {
	return &Drops{seed: maphash.MakeSeed(), list: newList[hooks.Drop](l)}
}

// dropSize is what a Drop takes besides its strings.
const dropSize = 160

// Add notes that a message was dropped. topic may point to memory that is used again. It does not
// allocate if the same client has lost a message of the topic for that reason lately.
func (d *Drops) Add(clientID, topic string, why hooks.DropReason, now time.Time) {
	key := maphash.String(d.seed, clientID)*31 ^ maphash.String(d.seed, topic) + uint64(why)
	d.mu.Lock()
	defer d.mu.Unlock()
	if x := d.list.again(key); x != nil {
		x.Time = now
		x.Count++
		return
	}
	x := hooks.Drop{
		Time: now, First: now, Count: 1, Reason: why,
		ClientID: strings.Clone(Cut(clientID)), Topic: strings.Clone(Cut(topic)),
	}
	d.list.add(key, x, dropSize+len(x.ClientID)+len(x.Topic))
}

// All returns the Drops, the last one first.
func (d *Drops) All() []hooks.Drop {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]hooks.Drop, 0, len(d.list.index))
	for x := range d.list.each {
		all = append(all, *x)
	}
	return all
}

// Last returns the last Drop of a client and topic. ok is false if none is known.
func (d *Drops) Last(clientID, topic string) (last hooks.Drop, ok bool) {
	clientID, topic = Cut(clientID), Cut(topic)
	d.mu.Lock()
	defer d.mu.Unlock()
	for x := range d.list.each {
		if x.ClientID == clientID && x.Topic == topic {
			return *x, true
		}
	}
	return last, false
}
