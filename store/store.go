// Package store is the interface between a Dunlin broker and storage that survives a crash.
//
// The broker keeps its live state in memory. It describes every durable change as an operation
// ([Op]). It gathers the operations of all connections while a commit is in progress, and gives
// them to [Store.Commit] as one batch. It acknowledges a message to a client only after the batch
// with this message has been committed. After a restart, [Store.Load] returns operations that
// rebuild the committed state.
//
// A Store is an ordered, atomic journal with compaction. It needs no knowledge of MQTT beyond the
// comments of the operations. Package storetest holds the contract as a test suite for any
// implementation.
package store

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/internal/holders"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Store makes operations durable and returns them after a restart.
//
// The broker first calls Load once, to its end. Then it calls Commit and Checkpoint, from one
// goroutine at a time. It calls Close once, after all of these calls have returned.
//
// No method may wait for Close or Shutdown of the broker. A method that calls them gets an error
// with dunlin.ErrStillClosing at once. The broker closes when the method has returned.
type Store interface {
	// Load yields operations that rebuild the committed state when they are applied, in order, to
	// an empty state. They need not be the operations that Commit got: superseded ones may be
	// missing. A message stays one *Message, however many queues it is in. The caller may keep what
	// Load yields; it is durable. An error ends the sequence. The store is then not usable, unless
	// the error is that of ctx. Load may be called again before the first Commit, also after a
	// caller has broken it off.
	Load(ctx context.Context) iter.Seq2[Op, error]
	// Commit applies ops in order and as a whole. After a crash either all of a batch is there or
	// nothing of it, and a batch is there only if all batches before it are. Commit returns nil
	// when the batch survives what the store's [Durability] says. After it returns, the store must
	// not keep ops or anything that they point to. An error means that nothing of the batch may be
	// relied on. If the error is [ErrFull] or [ErrTooLarge], or if ctx was done before the call,
	// the batch is not there and the store continues. After any other error every later Commit
	// fails too.
	Commit(ctx context.Context, ops []Op) error
	// Checkpoint lets the store make itself smaller. It may be called at any time between commits,
	// and may take long. It does not change what Load yields. A store that needs no Checkpoint
	// returns nil.
	Checkpoint(ctx context.Context) error
	// Close releases the resources of the store. Committed state stays.
	Close() error
}

// ErrFull is the error of Commit (wrapped) when there is no room. The batch has no effect, and the
// store continues when there is room again. A batch that only removes (Done, DeleteSession and the
// like) may succeed where a batch that adds does not, and makes room.
var ErrFull = errors.New("store: no space left")

// ErrTooLarge is the error of Commit (wrapped) when the batch, or one of its operations, is larger
// than the store can keep, however much room there is. The batch has no effect, and the store
// continues. The same operations in smaller batches may succeed.
var ErrTooLarge = errors.New("store: the batch is too large")

// Durability says which failures a successful Commit survives.
type Durability byte

const (
	// DurabilitySynced: loss of power. The default of stores that write to a disk.
	DurabilitySynced Durability = iota
	// DurabilityBuffered: the end of the process, but not of the operating system.
	DurabilityBuffered
	// DurabilityNone: nothing is guaranteed; the store writes when it likes.
	DurabilityNone
)

// String returns "synced", "buffered" or "none".
func (d Durability) String() string {
	switch d {
	case DurabilitySynced:
		return "synced"
	case DurabilityBuffered:
		return "buffered"
	}
	return "none"
}

// An Op is one change to the state. The set is closed: *PutSession, *DeleteSession,
// *PutSubscription, *DeleteSubscription, *Publish, *Sent, *Released, *Done, *Received, *Forget,
// *PutRetained, *DeleteRetained.
//
// A Session has a number that no other Session has. After a restart the number may be used again,
// if its Session has been deleted. An operation on a Session, subscription, Packet Identifier or
// queue entry that does not exist has no effect: it may have ended while the operation was on its
// way. All instants are Unix nanoseconds; 0 means never or none.
type Op interface{ op() }

// PutSession creates a Session, or replaces the fields of an existing one. Its subscriptions, queue
// and identifiers stay. The Broker keeps each Will as a Session of its own, with Expiry 0 and
// nothing else, and each delayed message in the same way, with a ClientID that begins with
// "$local/delayed/". It keeps what the server has subscribed clients to as the subscriptions of
// Sessions with a ClientID that begins with "$local/" and U+0000; there, ID is 1 if the client may
// end the subscription. It also keeps a Session that has ended, with Expiry 0, until all messages
// that other members of a shared subscription get from it have moved.
type PutSession struct {
	Session   uint64
	ClientID  string
	Principal string // who owns it, or, if not Named, who its client claims to be
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

// PutSubscription creates or replaces a subscription. Filter is as the client wrote it, including
// $share. A Filter that contains U+0000 is not a subscription. It says that a hook has replaced the
// Topic Filter before the U+0000 by the one after it. A Store treats it like any other Filter, and
// DeleteSubscription removes it.
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

// A Message is an Application Message in a queue or a retained message.
type Message struct {
	packets.Message
	Expires int64  // absolute expiry
	From    string // Client Identifier of the publisher

	holders atomic.Int64 // see package holders
}

func init() { holders.Of = func(m *Message) *atomic.Int64 { return &m.holders } }

// A Delivery is one entry in the queue of a Session. The order of a queue is that of Seq, whatever
// order the entries arrive in. No two entries of a queue have the same Seq. After a restart the Seq
// of an entry that is done may be used again.
type Delivery struct {
	Session uint64
	Seq     uint64
	QoS     packets.QoS
	Retain  bool
	IDs     []uint32 // Subscription Identifiers
	Group   string   // "$share/..." filter of a shared subscription that it came by, or empty
}

// Publish adds a message once, and puts it into the queues of To, in order. If Retain is set, the
// message also becomes the retained message of its topic. If FromSession is not 0, the same step
// remembers the Packet Identifier FromID as received, as [Received] does.
type Publish struct {
	Message     *Message
	To          []Delivery
	Retain      bool
	FromSession uint64
	FromID      uint16
}

// Sent gives a queue entry its Packet Identifier, before the message is sent for the first time.
type Sent struct {
	Session uint64
	Seq     uint64
	ID      uint16
}

// Released records the PUBREC of a QoS 2 delivery. From then on the broker sends PUBREL, and never
// the message again.
type Released struct {
	Session uint64
	Seq     uint64
}

// Done removes an entry from a queue: the message was acknowledged, was dropped, or has expired.
type Done struct {
	Session uint64
	Seq     uint64
}

// Received remembers the Packet Identifier of a QoS 2 message from the client until Forget.
type Received struct {
	Session uint64
	ID      uint16
}

// Forget removes a Packet Identifier that Received has added, when PUBREL arrives.
type Forget struct {
	Session uint64
	ID      uint16
}

// PutRetained makes the message the retained message of its topic.
type PutRetained struct{ Message *Message }

// DeleteRetained removes the retained message of a topic.
type DeleteRetained struct{ Topic string }

// Adds says whether a batch may make the state larger. A store can keep some room for batches that
// do not. Then clients can fetch their messages although the disk is full. PutSession does not
// count as adding: most of these Sessions existed before and have changed, and on a full disk
// clients should be able to reconnect for their messages.
func Adds(ops []Op) bool {
	for _, op := range ops {
		switch op.(type) {
		case *PutSession, *Sent, *Released, *Done, *Forget, *DeleteSession, *DeleteSubscription,
			*DeleteRetained:
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
