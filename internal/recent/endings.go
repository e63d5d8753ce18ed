package recent

import (
	"hash/maphash"
	"net"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// Endings are the last connections that ended, and apart from them the last that were refused, so
// that a flood of refusals does not push out the others. All methods may be called from any
// goroutine.
type Endings struct {
	seed maphash.Seed

	mu    lock.Mutex[leaf]
	lists [2]list[hooks.Ending] // those that were refused are in the second one
	n     uint64                // Number of the last one
}

// NewEndings returns an empty list. The limits hold for those that ended and for those that were
// refused.
func NewEndings(l Limits) *Endings {
	return &Endings{
		seed:  maphash.MakeSeed(),
		lists: [2]list[hooks.Ending]{newList[hooks.Ending](l), newList[hooks.Ending](l)},
	}
}

// endingSize is what an Ending takes besides its strings.
const endingSize = 288

// Add notes that a connection has ended at x.EndedAt. It sets x.First, x.Count and x.Number.
func (e *Endings) Add(x hooks.Ending) {
	host := x.Address
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	key := maphash.String(e.seed, x.ClientID)*31 ^ maphash.String(e.seed, host) + uint64(x.Cause)
	list := &e.lists[0]
	if x.Refused {
		list = &e.lists[1]
	}
	size := endingSize
	for _, s := range []*string{&x.ClientID, &x.Principal, &x.User, &x.Address, &x.Listener,
		&x.Err} {
		*s = strings.Clone(Cut(*s))
		size += len(*s)
	}
	x.First, x.Count = x.EndedAt, 1
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := list.again(key); old != nil {
		x.First, x.Count = old.First, old.Count+1
		list.remove(list.newest) // its strings are others
	}
	e.n++
	x.Number = e.n
	list.add(key, x, size)
}

// All returns the Endings of a client, or of all if clientID is empty, the last one first.
func (e *Endings) All(clientID string) []hooks.Ending {
	clientID = Cut(clientID)
	e.mu.Lock()
	defer e.mu.Unlock()
	var of [2][]hooks.Ending
	for i := range e.lists {
		for x := range e.lists[i].each {
			if clientID == "" || x.ClientID == clientID {
				of[i] = append(of[i], *x)
			}
		}
	}
	return merge(of[0], of[1])
}

// merge returns what is in both, the last one first, as they are.
func merge(a, b []hooks.Ending) []hooks.Ending {
	all := make([]hooks.Ending, 0, len(a)+len(b))
	for len(a)+len(b) > 0 {
		from := &a
		if len(a) == 0 || len(b) > 0 && b[0].Number > a[0].Number {
			from = &b
		}
		all = append(all, (*from)[0])
		*from = (*from)[1:]
	}
	return all
}
