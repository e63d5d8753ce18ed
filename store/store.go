// Package store is what a Dunlin broker needs of a place that survives a crash.
//
// The broker keeps its live state in memory. What has to outlive the process it describes as operations ([Op]), gathers
// those of all connections while a commit is under way, and gives them to [Store.Commit] as one batch. It tells a client that
// something was received only after the batch that holds it has been committed. After a restart [Store.Load] gives operations
// back that rebuild the committed state.
//
// A Store is a dumb, ordered, atomic journal with compaction: it needs no knowledge of MQTT beyond what the comments of the
// operations say. The package storetest holds the contract as a test suite that any implementation can run.
package store

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Store makes operations durable and gives them back after a restart.
//
// The broker calls Load once, to its end, before anything else, then Commit and Checkpoint from one goroutine at a time, and Close
// once when all of that is over.
//
// None of its methods may wait for Close or Shutdown of the broker. A method that calls them gets an error with dunlin.ErrStillClosing at
// once, and the broker closes when the method has returned.
type Store interface {
	// Load yields operations that, applied in order to an empty state, rebuild what was committed. They need not be
	// those that were given to Commit: what has been superseded may be missing. A message stays one *Message however many
	// queues it waits in. What is yielded may be kept by the caller, and is durable.
	// An error ends the sequence; the store is then not usable, unless it is ctx's. Load may be called again before the
	// first Commit, also after one that the caller broke off.
	Load(ctx context.Context) iter.Seq2[Op, error]
	// Commit applies ops in order and all together: after a crash either all of a batch or nothing of it is there, and a batch is there
	// only if all before it are. It returns nil when the batch will survive what the store's [Durability] says.
	// The store must not keep ops or what they point to after it returns.
	// An error means that nothing of the batch may be relied on. If it is [ErrFull] or [ErrTooLarge], or ctx was done before the call, the
	// batch is not there and the store goes on; after any other error every later Commit fails as well.
	Commit(ctx context.Context, ops []Op) error
	// Checkpoint lets the store make itself smaller: it may be called at any time between commits, may take long, and
	// changes nothing that Load would yield. A store that needs none returns nil.
	Checkpoint(ctx context.Context) error
	// Close releases what the store holds. What was committed stays.
	Close() error
}

// ErrFull is returned (wrapped) by Commit when there is no room. The batch has no effect, and the store goes on when there is
// room again. A batch that only takes away (Done, DeleteSession and the like) may succeed where one that adds does not, and makes
// room.
var ErrFull = errors.New("store: no space left")

// ErrTooLarge is returned (wrapped) by Commit when the batch, or one of its operations, is larger than the store can keep, however much
// room there is. The batch has no effect, and the store goes on. The same operations in smaller batches may succeed.
var ErrTooLarge = errors.New("store: the batch is too large")

// Durability says what a successful Commit survives.
type Durability byte

const (
	// Synced: loss of power. The default of stores that write to a disk.
	Synced Durability = iota
	// Buffered: the end of the process, but not of the operating system.
	Buffered
	// None: nothing is promised; the store writes when it likes.
	None
)

// String returns "synced", "buffered" or "none".
func (d Durability) String() string {
	switch d {
	case Synced:
		return "synced"
	case Buffered:
		return "buffered"
	}
	return "none"
}

// An Op is one change to the state. The set is closed: *PutSession, *DeleteSession, *PutSubscription,
// *DeleteSubscription, *Publish, *Sent, *Released, *Done, *Received, *Forget, *PutRetained, *DeleteRetained.
//
// Sessions are named by a number that no other Session has; it may come again after a restart, once its Session has been deleted.
// An operation on a Session, subscription, Packet Identifier or entry of a queue that is not there has no effect: what it
// names may have ended while the operation was on its way. All instants are Unix nanoseconds, 0 meaning never or none.
type Op interface{ op() }

// PutSession makes a Session, or replaces what was said of it here; its subscriptions, queue and identifiers stay.
type PutSession struct {
	Session   uint64
	ClientID  string
	Principal string // who owns it
	Username  string // of the client that made the will
	Named     bool   // the owner has a name, be it an empty one
	Mount     string // what the names of all topics and filters of the client begin with
	Expiry    uint32 // Session Expiry Interval in seconds; 0xFFFFFFFF: never
	ExpiresAt int64  // absolute end of the Session; 0: while connected, or never
	Will      *Will  // nil: none
}

// A Will waits to be published when its connection or Session ends.
type Will struct {
	Message packets.Message // Properties without the Will Delay Interval
	Delay   uint32          // seconds
	At      int64           // when it is due; 0: when the connection ends
}

// DeleteSession ends a Session with everything that belongs to it.
type DeleteSession struct{ Session uint64 }

// PutSubscription makes or replaces a subscription. Filter is as the client wrote it, $share included.
type PutSubscription struct {
	Session uint64
	packets.Subscription
	ID uint32 // Subscription Identifier, 0: none
}

// DeleteSubscription removes a subscription.
type DeleteSubscription struct {
	Session uint64
	Filter  string
}

// A Message is an Application Message as it waits in queues.
type Message struct {
	packets.Message
	Expires int64  // absolute expiry
	From    string // Client Identifier of the publisher

	// Holders counts the places in the broker's memory that hold the message. A Store neither keeps nor copies it.
	Holders atomic.Int64
}

// A Delivery is one place in the queue of a Session. The order of a queue is that of Seq, in whatever order its entries come. No
// two entries of a queue have the same Seq; that of one which is done may come again after a restart.
type Delivery struct {
	Session uint64
	Seq     uint64
	QoS     packets.QoS
	Retain  bool
	IDs     []uint32 // Subscription Identifiers
	Group   string   // "$share/..." filter of a shared subscription that it came by, or empty
}

// Publish adds a message once and puts it into the queues of To, in order. If Retain is set the message also becomes the
// retained one of its topic. If FromSession is not 0, the Packet Identifier FromID is remembered as received (as
// [Received]) in the same step.
type Publish struct {
	Message     *Message
	To          []Delivery
	Retain      bool
	FromSession uint64
	FromID      uint16
}

// Sent gives an entry of a queue its Packet Identifier: it is about to be sent for the first time.
type Sent struct {
	Session uint64
	Seq     uint64
	ID      uint16
}

// Released records that the PUBREC of a QoS 2 delivery came: from now on PUBREL is sent, never the message.
type Released struct {
	Session uint64
	Seq     uint64
}

// Done takes an entry out of a queue: it was acknowledged, dropped or has expired.
type Done struct {
	Session uint64
	Seq     uint64
}

// Received remembers the Packet Identifier of a QoS 2 message from the client until Forget.
type Received struct {
	Session uint64
	ID      uint16
}

// Forget ends what Received began: PUBREL came.
type Forget struct {
	Session uint64
	ID      uint16
}

// PutRetained makes the message the retained one of its topic.
type PutRetained struct{ Message *Message }

// DeleteRetained removes the retained message of a topic.
type DeleteRetained struct{ Topic string }

// Adds says whether a batch may make the state larger. A store that keeps some room for batches that do not can let clients fetch what
// waits for them on a full disk. PutSession does not add, as most Sessions were there before and have changed: on a full disk clients
// should be able to come for their messages.
func Adds(ops []Op) bool {
	for _, op := range ops {
		switch op.(type) {
		case *PutSession, *Sent, *Released, *Done, *Forget, *DeleteSession, *DeleteSubscription, *DeleteRetained:
		default:
			return true
		}
	}
	return false
}

func (*PutSession) op()         {}
func (*DeleteSession) op()      {}
func (*PutSubscription) op()    {}
func (*DeleteSubscription) op() {}
func (*Publish) op()            {}
func (*Sent) op()               {}
func (*Released) op()           {}
func (*Done) op()               {}
func (*Received) op()           {}
func (*Forget) op()             {}
func (*PutRetained) op()        {}
func (*DeleteRetained) op()     {}
