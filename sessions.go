package dunlin

import (
	"iter"
	"net"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/lock"
	"github.com/google/btree"
)

// A registry is who is there: all Sessions, connections and listeners.
type registry struct {
	mu        lock.Mutex[brokerLock] // guards what follows
	closed    bool                   // no new listeners and connections
	sessions  sessionIndex
	listeners map[net.Listener]struct{} // being served
	doors     map[*hooks.Listener]*door // being served, and described
	// Connections before they are accepted; true: see dismissLocked
	early map[*conn]bool
	conns map[*conn]struct{} // and after

	locals     map[*Subscription]struct{} // those that are open
	localCount uint64                     // for the names of those that have none
}

func newRegistry() registry {
	return registry{
		sessions: newSessionIndex(), listeners: make(map[net.Listener]struct{}),
		early: make(map[*conn]bool), conns: make(map[*conn]struct{}),
		locals: make(map[*Subscription]struct{}),
	}
}

// A sessionIndex holds Sessions in the order of their places: by Client Identifier, and then by
// principal, because no Client Identifier holds the byte 0 that stands between the two. It has no
// lock.
type sessionIndex struct{ tree *btree.BTreeG[sessionPlace] }

type sessionPlace struct {
	place string // session.place
	s     *session
}

func newSessionIndex() sessionIndex {
	return sessionIndex{btree.NewG(32, func(a, b sessionPlace) bool { return a.place < b.place })}
}

// get returns the Session with a place, nil if there is none.
func (x sessionIndex) get(place string) *session {
	at, _ := x.tree.Get(sessionPlace{place: place})
	return at.s
}

// put adds a Session, in the place of the one that has its place.
func (x sessionIndex) put(place string, s *session) {
	x.tree.ReplaceOrInsert(sessionPlace{place, s})
}

// remove takes s out, unless another Session has its place.
func (x sessionIndex) remove(place string, s *session) {
	if x.get(place) == s {
		x.tree.Delete(sessionPlace{place: place})
	}
}

func (x sessionIndex) len() int { return x.tree.Len() }

// from yields the Sessions from a place on.
func (x sessionIndex) from(place string) iter.Seq[sessionPlace] {
	return func(yield func(sessionPlace) bool) {
		x.tree.AscendGreaterOrEqual(sessionPlace{place: place}, yield)
	}
}

// sessionPage is how many Sessions are copied at a time.
const sessionPage = 128

// sessionsAfter appends to dst the next Sessions, at most a page of them, whose places come after a
// place. It appends none when there are no more.
func (b *Broker) sessionsAfter(place string, dst []sessionPlace) []sessionPlace {
	b.mu.Lock()
	defer b.mu.Unlock()
	most := len(dst) + sessionPage
	for at := range b.sessions.from(place) {
		if at.place == place {
			continue
		}
		if dst = append(dst, at); len(dst) == most {
			break
		}
	}
	return dst
}

// allSessions yields the Sessions in the order of their places. No lock is held meanwhile. What
// begins or ends while this goes on may be there or not.
func (b *Broker) allSessions() iter.Seq[*session] { return b.sessionsBehind("") }

// sessionsBehind is allSessions for those whose places come after a place.
func (b *Broker) sessionsBehind(after string) iter.Seq[*session] {
	return func(yield func(*session) bool) {
		page := make([]sessionPlace, 0, sessionPage)
		for after := after; ; after = page[len(page)-1].place {
			page = b.sessionsAfter(after, page[:0])
			if len(page) == 0 {
				return
			}
			for _, at := range page {
				if !yield(at.s) {
					return
				}
			}
		}
	}
}

// sessionFrom returns the first Session whose place is place or comes after it, nil if there is
// none.
func (b *Broker) sessionFrom(place string) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	for at := range b.sessions.from(place) {
		return at.s
	}
	return nil
}

// sessionAt returns the Session with a place, nil if there is none.
func (b *Broker) sessionAt(place string) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions.get(place)
}

// ofClient returns the Sessions with a Client Identifier, in the order of their principals: at most
// one without SessionPerPrincipal.
func (b *Broker) ofClient(clientID string) (of []*session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for at := range b.sessions.from(clientID) {
		if at.s.id != clientID {
			break
		}
		of = append(of, at.s)
	}
	return of
}
