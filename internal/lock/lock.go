// Package lock holds the locks of the Broker. Built as usual they are those of package sync, and
// cost the same. Built with the tag lockcheck they know their order and their holder, and a program
// ends, with the stacks of both sides, when
//
//   - a goroutine takes locks in another order than that of their Ranks,
//   - a goroutine unlocks what it does not hold,
//   - a goroutine that holds a lock comes to a place that NoneHeld marks: the call of a hook, of a
//     Store or of a net.Conn, or a wait for another goroutine.
//
// A deadlock needs two goroutines that meet at the wrong moment. What this build finds needs one
// goroutine, at any moment.
package lock

import "math"

// A Rank is the place of a lock in the order.
type Rank struct {
	// Order is higher than that of all locks that may be held when this one is taken.
	Order int
	// Name is for the report.
	Name string
	// Several says that a goroutine may hold several locks of this Rank, taken in the order of
	// their addresses.
	Several bool
}

// Orders that need not know the others.
const (
	Leaf       = math.MaxInt // no lock is taken while one of these is held
	BeforeLeaf = Leaf - 1    // only leaves are
	// What a goroutine that serves many has besides locks: it may do what is Brief, but it waits for
	// nobody
	First = math.MinInt
)

// A Ranked type stands for the locks of one Rank. It has no other use, and no size:
//
//	type sessionLock struct{}
//
//	func (sessionLock) Rank() lock.Rank { return lock.Rank{Order: 1, Name: "session.mu"} }
//
//	mu lock.Mutex[sessionLock]
type Ranked interface{ Rank() Rank }
