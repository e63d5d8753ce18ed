package cluster

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/dunlin-mqtt/dunlin/store"
)

// A Backend is the access of one node to what all nodes share. Its methods may be called
// concurrently unless they say otherwise.
//
// What a call has made durable survives the loss of any minority of the engine's replicas, each in
// the way that Limits.Durability says. While there is no majority, calls that change something
// wait. After Close, each call returns [ErrClosed].
type Backend interface {
	// Start joins the cluster as node n, and calls the functions of h from then on, perhaps before
	// Start returns. Start returns when this node is in the list of live nodes, knows the Interest
	// of the others, and follows the log. Retained then covers everything before the first record
	// that Handler.Records gets. Start waits for a majority until ctx ends. Call Start once, before
	// any other method except Close. If it returns an error, close the Backend. [ErrNameTaken]
	// means that a live node has this name.
	Start(ctx context.Context, n Node, h Handler) (Limits, error)

	// Commit makes b durable. It returns nil when everything in b is decided, and tells in Err of
	// each Record and Change what was refused. Call it from one goroutine at a time. Commit waits
	// as long as it takes, through elections and without a majority. So its outcome is never
	// unknown, except after an error: when ctx ends, its error is returned, and when the Backend is
	// closed, ErrClosed. Parts of b may then be there, now or later, and every later Commit returns
	// ErrClosed. A Batch that [Batch.Check] refuses is not there at all, and Commit continues.
	//
	// Records of one partition take effect in the order of the calls and of b. If a Record is
	// there, then all earlier ones are, except those that were refused or Repeated. Each is there
	// once, whatever the Backend has sent again underneath. There is no order between partitions,
	// and none between Records and Changes. Changes of one Batch take effect in its order.
	//
	// Before another node sees that this node has left the list of live nodes, or has a new
	// Incarnation, the engine shuts out everything that this node has begun to commit. It never
	// takes effect, and a Backend that still runs refuses it with [ErrFenced]. Otherwise a record
	// could come after its Session has moved to another node, and reach subscribers twice.
	Commit(ctx context.Context, b *Batch) error

	// Read returns records of a partition that match one of the Topic Filters, in order, from the
	// first one behind the position after. It returns at most limit of them. A Read may miss what
	// was committed a moment ago: Page.UpTo says how far it has looked.
	Read(ctx context.Context, part int, after uint64, filters []string, limit int) (Page, error)

	// Retained yields the retained messages of a partition: for each topic the last Record with
	// Retain, if its payload is not empty. The order is undefined. Before the first one, Retained
	// sets at to the position whose state it yields. at must not be nil.
	Retained(ctx context.Context, part int, at *uint64) iter.Seq2[*Record, error]

	// Get returns the value of a key. The value may be an old one: take it as a hint and let a
	// Change decide. An Entry with Rev 0 means that the key is free.
	Get(ctx context.Context, key string) (Entry, error)
	// List yields the values of all keys that begin with prefix, in no order. A prefix ends in a
	// slash. Each value is a hint, as with Get.
	List(ctx context.Context, prefix string) iter.Seq2[Entry, error]

	// Interest says that this node now has subscribers for each of the Topic Filters in add, and
	// has none any more for those in drop. It does not wait.
	Interest(add, drop []string)
	// Synced returns nil when every live node knows the Interest that this node told before the
	// call. If ctx ends earlier, Synced returns its error.
	Synced(ctx context.Context) error
	// Send gives m to Handler.Message of every other node whose Interest matches its topic. Send
	// neither waits nor keeps m. If there is no room or no way to a node, the message is dropped
	// for that node.
	Send(m *store.Message)
	// Call asks a node and returns its answer. Call returns [ErrNoNode] at once if the node is not
	// in the list of live nodes, or when it leaves the list. Otherwise it waits until ctx ends. The
	// node may have done what it was asked even if Call returns an error. An error of
	// Handler.Called is returned as a [CallError]. body may have Limits.Value bytes; a longer one
	// gets [ErrTooLarge].
	Call(ctx context.Context, node string, body []byte) ([]byte, error)

	// Drain takes this node out of the list of live nodes. It hands what the node leads in the
	// engine to other nodes, so that nobody waits for an election. All other methods still work
	// after Drain.
	Drain(ctx context.Context) error
	// Close stops at once, as a crash does, and tells nobody. It waits for the functions of the
	// Handler that are running, so they must not call Close.
	Close() error
}

// A Handler is what a Backend calls. A function that is nil is not called. Each function except
// Called is called from one goroutine at a time; Records from one goroutine for each partition.
type Handler struct {
	// Records gets all records of a partition, from all nodes: each once, in order, without holes.
	// The node has seen everything up to the position upTo. Records must not wait for a call to the
	// Backend. It may keep what r points to, but not r, and must not modify it.
	Records func(part int, r []*Record, upTo uint64)
	// Message gets what another node has given to Send. It must not wait for the Backend.
	Message func(m *store.Message)
	// Called answers Call of another node, whose name is from. It may wait, and may be called
	// several times at once. ctx ends when the Backend is closed.
	Called func(ctx context.Context, from string, body []byte) ([]byte, error)
	// Nodes gets all live nodes after each change, in the order of their names. A node leaves the
	// list when it drains, and when it has not renewed its lease for [Lease]; it may then be dead,
	// paused or cut off. A node that has been restarted has a larger Incarnation.
	//
	// A Backend whose lease has ended although it is alive joins again by itself, with a larger
	// Incarnation. A node that finds its own name with an Incarnation other than the last one knows
	// by that: the others have taken it for dead, and its Sessions may have moved.
	Nodes func(live []Node)
	// Majority gets an error when this node has not reached a majority of the replicas for a
	// second, and nil when it reaches one again. An election is not a reason: the replicas can be
	// reached meanwhile.
	Majority func(err error)
}

// Times that all Backends keep.
const (
	// Lease is how long a node stays in the list of live nodes without a sign of life.
	Lease time.Duration = 3 * time.Second
	// Slack is how much later than told the TTL of a [Put] may free its key.
	Slack time.Duration = 2 * time.Second
)

// A Node is one broker.
type Node struct {
	// Name is unique, and the same after a restart, as "broker-1". It has 1 to 64 letters, digits
	// and hyphens.
	Name string
	// Incarnation is given by the Backend, and larger after each Start. Start ignores it.
	Incarnation uint64
	// Info is for the other nodes, such as a version and a Server Reference for clients. At most
	// 4,096 bytes.
	Info []byte
}

const (
	maxName = 64
	maxInfo = 4096
)

// Check returns an error if the node has a bad name, or too much Info.
func (n Node) Check() error {
	if len(n.Name) == 0 || len(n.Name) > maxName {
		return fmt.Errorf("cluster: the name of a node has %d bytes, expected 1 to %d",
			len(n.Name), maxName)
	}
	for _, c := range []byte(n.Name) {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("cluster: the name of a node is %q, expected letters, digits and "+
				"hyphens", n.Name)
		}
	}
	if len(n.Info) > maxInfo {
		return fmt.Errorf("cluster: the Info of node %s has %d bytes, %d are allowed",
			n.Name, len(n.Info), maxInfo)
	}
	return nil
}

// Limits are what the engine can do, and what it has given to this node.
type Limits struct {
	Incarnation uint64 // of this node
	Partitions  int    // of the log; the same for all nodes, and never changed
	Record      int    // bytes of topic, payload and properties of a Record together
	Value       int    // bytes of a value of the register
	Batch       int    // Records of one Batch, and also Changes, and also Keys to Forget
	Durability  store.Durability
	Replicas    int // that have a record when Commit returns; with 1 a node that dies loses data
}

// An Entry is a value of the register.
type Entry struct {
	Key   string
	Value []byte // must not be modified
	Rev   uint64 // changes with each new value, and never comes again for this key; 0: no value
}

// A Page is what Read returns.
type Page struct {
	Records []*Record // must not be modified
	UpTo    uint64    // up to here no record that matches is missing
	Lost    uint64    // records up to here are not kept any more; 0: all are there
	More    bool      // there are more than limit; continue after UpTo
}

// A CallError is the error that Handler.Called of another node has returned.
type CallError struct {
	Node string
	Text string
}

func (e *CallError) Error() string {
	return "cluster: node " + e.Node + " answered: " + e.Text
}

var (
	// ErrConflict refuses a Change: a value is not the one that the Change expected.
	ErrConflict = errors.New("cluster: another node has changed the value")
	// ErrFull refuses a Record or a Change: the engine has no space left. The same may succeed
	// later.
	ErrFull = errors.New("cluster: no space left")
	// ErrTooLarge refuses a Record, a value or a call beyond Limits, and a key beyond MaxKey.
	ErrTooLarge = errors.New("cluster: larger than the engine takes")
	// ErrFenced refuses a Record or a Change: this node had left the list of live nodes, except by
	// Drain, when it was to be decided. The Backend joins again by itself.
	ErrFenced = errors.New("cluster: the lease of this node has ended")
	// ErrNoNode is the error of Call if the node is not in the list of live nodes.
	ErrNoNode = errors.New("cluster: no such node")
	// ErrNameTaken is the error of Start if another live node has the name.
	ErrNameTaken = errors.New("cluster: another live node has this name")
	// ErrClosed is the error of every call after Close.
	ErrClosed = errors.New("cluster: closed")
)
