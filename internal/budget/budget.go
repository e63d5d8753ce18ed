// Package budget counts the memory that clients make the broker hold: in all, and by kind. It is
// counted where it begins and ends to be held, and nowhere else.
package budget

import (
	"math"
	"sync/atomic"
)

// A Kind is what memory is held for.
type Kind uint8

// The first three are for what several places share, see Hold.
const (
	Queued        Kind = iota // messages in queues
	InFlight                  // messages that were sent and may have to be sent again
	Retained                  // retained messages
	Output                    // what was sent and the socket has not taken
	Partial                   // the beginnings of packets
	Subscriptions             // the subscription tree
	Routes                    // cached routes, and Topic Aliases
	Sessions                  // what a Session has besides
	Uncommitted               // what waits for the Store
	Connections               // Network Connections, whatever they do
	Kinds                     // how many there are
)

var names = [Kinds]string{
	"queued", "in flight", "retained", "output", "partial packets", "subscriptions", "routes",
	"sessions", "uncommitted",
	"connections",
}

// String returns the name of the kind.
func (k Kind) String() string { return names[k] }

// stays says whether memory of kind k is held until a client or the program gives it up: no slow
// client is waited for, and nothing is dropped to get it back.
func (k Kind) stays() bool {
	return k == Retained || k == Subscriptions || k == Sessions || k == Connections
}

// What stays may take so much of the limit, in percent. The rest is for messages that are on
// their way, so that nobody can stop them for good.
const (
	stayPercent = 75 // all that stays
	kindPercent = 50 // one kind of it
	// Sessions and Connections each, whatever others take: clients can come and remove it
	ownPercent = 6
	// Each bound is higher by this for Sessions that end with their connection, so that clients can
	// connect even when absent clients have taken all that they may
	briefPercent = 2
)

// A Budget counts bytes against a limit. Its methods may be called from any goroutine, with any
// lock held. The nil *Budget does not count.
type Budget struct {
	limit int64 // immutable
	all   atomic.Int64
	used  [Kinds]atomic.Int64 // of each kind but InFlight, which is the rest of all

	nextStripe atomic.Uint32
	_          [64]byte // what follows shares no cache line
	places     places
}

// New returns a Budget of which nothing is used.
func New(limit int64) *Budget { return &Budget{limit: limit} }

// Limit returns what New was given.
func (b *Budget) Limit() int64 { return b.limit }

// Add counts n bytes more, or less.
func (b *Budget) Add(k Kind, n int64) {
	if b != nil {
		b.count(k, n)
		b.all.Add(n)
	}
}

// count is Add without all. InFlight, which changes twice with each message of QoS 1 or 2, has no
// counter of its own.
func (b *Budget) count(k Kind, n int64) {
	if k != InFlight {
		b.used[k].Add(n)
	}
}

// Recount makes *counted, which is part of what is used, n bytes. The caller guards *counted.
func (b *Budget) Recount(k Kind, counted *int32, n int) {
	if n = min(n, math.MaxInt32); b != nil && n != int(*counted) {
		b.Add(k, int64(n)-int64(*counted))
		*counted = int32(n)
	}
}

// Used returns how many bytes are used.
func (b *Budget) Used() int64 { return b.all.Load() }

// Of returns how many of them are of kind k. For InFlight it may be a little off while others
// count.
func (b *Budget) Of(k Kind) int64 {
	if k != InFlight {
		return b.used[k].Load()
	}
	n := b.all.Load()
	for k := range b.used {
		n -= b.used[k].Load()
	}
	return n
}

// Over says whether more than a share of the limit, in percent, is used.
func (b *Budget) Over(percent int64) bool { return b.Used() > b.share(percent) }

// OverWith is Over with n bytes more.
func (b *Budget) OverWith(percent, n int64) bool { return b.Used()+n > b.share(percent) }

func (b *Budget) share(percent int64) int64 { return b.limit / 100 * percent }

// Fits says whether n bytes more of kind k, which is one that stays, leave enough for messages on
// their way. What makes less of it always fits. Callers that ask at the same time may go beyond
// together, each by what it asked for.
func (b *Budget) Fits(k Kind, n int64) bool { return b.fits(k, n, 0) }

// FitsBriefly is Fits for a Session that ends with its connection.
func (b *Budget) FitsBriefly(k Kind, n int64) bool { return b.fits(k, n, briefPercent) }

func (b *Budget) fits(k Kind, n, more int64) bool {
	if b == nil || n <= 0 {
		return true
	}
	all := n
	for k := range Kinds {
		if k.stays() {
			all += b.used[k].Load()
		}
	}
	own := b.used[k].Load() + n
	if (k == Sessions || k == Connections) && own <= b.share(ownPercent+more) {
		return true
	}
	return all <= b.share(stayPercent+more) && own <= b.share(kindPercent+more)
}

// Holders counts the places that hold one thing, by kind: Queued, InFlight and Retained. It must
// not be copied while there are any. The zero value is nobody.
type Holders = atomic.Int64

// Where the counts are. A thing is retained in one place at a time, or in two for a moment.
const (
	queuedOne   = 1
	inFlightOne = 1 << 30
	retainedOne = 1 << 60
)

func one(k Kind) int64 {
	switch k {
	case Queued:
		return queuedOne
	case InFlight:
		return inFlightOne
	case Retained:
		return retainedOne
	}
	panic("BUG: a kind that does not share")
}

// shared is the kind that a thing with these holders counts for. ok is false if there are none.
func shared(holders int64) (k Kind, ok bool) {
	switch {
	case holders >= retainedOne:
		return Retained, true
	case holders%inFlightOne != 0:
		return Queued, true
	}
	return InFlight, holders != 0
}

// Hold counts a place of the given size that begins to hold a thing, and, if it is the first,
// size bytes of that. These count as retained while it is retained, and otherwise as queued while
// it is in a queue.
func (b *Budget) Hold(h *Holders, k Kind, size, place int64) {
	if b != nil {
		b.change(h, k, one(k), size, place)
	}
}

// Release is the end of what Hold began, with the same arguments.
func (b *Budget) Release(h *Holders, k Kind, size, place int64) {
	if b != nil {
		b.change(h, k, -one(k), size, -place)
	}
}

func (b *Budget) change(h *Holders, k Kind, by, size, place int64) {
	now := h.Add(by)
	was, held := shared(now - by)
	is, holds := shared(now)
	if held && holds && was == is { // nearly always, where there are several
		b.Add(k, place)
		return
	}
	all := place
	if held {
		all -= size
		if was == k {
			place -= size
		} else {
			b.count(was, -size)
		}
	}
	if holds {
		all += size
		if is == k {
			place += size
		} else {
			b.count(is, size)
		}
	}
	b.count(k, place)
	if all != 0 {
		b.all.Add(all)
	}
}
