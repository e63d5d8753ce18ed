// Package memory is an engine for package cluster that runs several nodes in one process, for
// tests. It has a log, a register, a bus and leases, and faults that a test can cause: cuts,
// pauses, kills, lost leaders, slow messages, and no space.
//
//	e, err := memory.New(memory.Options{Nodes: 3, Seed: seed})
//	a, err := e.Open(0) // a cluster.Backend
//	...
//	e.Cut(0, 1)
//
// Use it inside a testing/synctest bubble. Everything that takes time then takes virtual time, so
// an hour of faults is a matter of milliseconds. Make the Engine in the bubble, and close it there.
//
// All delays, elections and choices come from Options.Seed. If the program makes the same calls at
// the same moments, the same happens at the same moments. Two calls of one method on one node at
// one moment can get each other's delay.
//
// The engine keeps the truth of the log and the register once. Each node has a replica, which is a
// position in the truth that lags. Reading uses the replica, so it can be stale. Committing needs
// the leader, and the leader needs a majority of nodes that it can reach in both directions.
// Nothing is written to a disk: what Kill takes away is the process, and the replica is as it was
// when the node is opened again.
package memory

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// Options of an [Engine]. The zero value is three nodes and one partition.
type Options struct {
	Nodes      int    // 1 to 9; 0: 3
	Partitions int    // of the log, 1 to 64; 0: 1
	Seed       uint64 // of everything random
	// Delay is what a message between two nodes takes: from half of it to one and a half. 0: 1 ms.
	Delay time.Duration
	// Election is the longest time without a leader after one is lost, while there is a majority.
	// The shortest is half of it. 0: 2 s.
	Election time.Duration
	// MaxBytes bounds the log with the retained messages and the Keys of Once, and, apart from
	// that, the register. What exceeds it gets cluster.ErrFull. 0: 64 MiB.
	MaxBytes int
	// Keep is how many records of a partition stay when all nodes that run have got them. 0: all,
	// within MaxBytes.
	Keep int
}

// Limits of every node of an Engine.
const (
	maxRecord = 1 << 20
	maxValue  = 1 << 18
	maxBatch  = 1000
)

// Bounds of what waits in memory; what exceeds them is dropped, as a network does.
const (
	maxWaiting  = 1024 // messages and calls to a node, on the way and before its Handler
	maxFrozen   = 4096 // messages of any kind to a node that is paused
	maxCalled   = 128  // calls of Handler.Called at the same time
	maxChanges  = 4096 // changes of Interest that a node keeps for the others
	maxVersions = 4    // values of a key that are kept for replicas that lag
)

// An Engine is a cluster in memory. Its methods may be called concurrently. They do not wait,
// except Close. A node is a number, from 0 to Options.Nodes-1; any other panics.
type Engine struct {
	o    Options // immutable
	wake chan struct{}
	done chan struct{} // closed by Close
	all  sync.WaitGroup

	mu      sync.Mutex // guards everything below; no function of a Handler is called under it
	closed  bool
	start   time.Time
	queue   events
	streams []stream // of random numbers; see kind
	nodes   []*node
	cut     [][]bool // from, to
	fifo    [][]time.Duration
	flying  [][]int // messages of Send on their way
	units   []*unit // one for each partition, and the last one for register and members
	parts   []*partition
	reg     register
	full    bool

	members     []*member
	incarnation uint64
	listed      uint64 // version of the list of members
	calls       uint64 // number of the last call between nodes
}

// A node is a place for a process, with its replica. Its fields are guarded by Engine.mu.
type node struct {
	i       int
	up      bool
	paused  bool
	drained bool // leads nothing if another can
	process *Backend
	seen    []uint64 // by unit: the position up to which the replica has it
	frozen  []event
	resumed chan struct{} // closed while the node is not paused
	dropped uint64
}

// New returns an Engine whose nodes have replicas, and no processes yet: call Open for each.
func New(o Options) (*Engine, error) {
	for _, f := range []struct {
		name           string
		value          *int
		zero, min, max int
	}{
		{"Nodes", &o.Nodes, 3, 1, 9},
		{"Partitions", &o.Partitions, 1, 1, 64},
		{"MaxBytes", &o.MaxBytes, 64 << 20, 1024, math.MaxInt32},
		{"Keep", &o.Keep, math.MaxInt32, 1, math.MaxInt32},
	} {
		if *f.value == 0 {
			*f.value = f.zero
		}
		if *f.value < f.min || *f.value > f.max {
			return nil, fmt.Errorf("cluster/memory: Options.%s is %d, expected %d to %d",
				f.name, *f.value, f.min, f.max)
		}
	}
	if o.Delay < 0 || o.Election < 0 {
		return nil, errors.New("cluster/memory: Options.Delay or Election is negative")
	}
	if o.Delay == 0 {
		o.Delay = time.Millisecond
	}
	if o.Election == 0 {
		o.Election = 2 * time.Second
	}
	e := &Engine{o: o, wake: make(chan struct{}, 1), done: make(chan struct{}), start: time.Now()}
	e.reg.values = make(map[string][]value)
	for range o.Partitions {
		e.parts = append(e.parts, newPartition())
	}
	for i := range o.Nodes {
		n := &node{i: i, up: true, seen: make([]uint64, o.Partitions+1)}
		n.resumed = make(chan struct{})
		close(n.resumed)
		e.nodes = append(e.nodes, n)
		e.cut = append(e.cut, make([]bool, o.Nodes))
		e.fifo = append(e.fifo, make([]time.Duration, o.Nodes))
		e.flying = append(e.flying, make([]int, o.Nodes))
	}
	e.seed()
	for range o.Partitions + 1 {
		e.units = append(e.units, &unit{leader: e.draw(0, kindLead).IntN(o.Nodes)})
	}
	e.all.Go(e.loop) // Close waits for it
	return e, nil
}

// Open returns a Backend of a node, which the caller starts and closes. It starts the replica of a
// node that was killed or closed. A node that has a Backend already gets an error: kill it first.
func (e *Engine) Open(at int) (cluster.Backend, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.nodes[at]
	if e.closed {
		return nil, cluster.ErrClosed
	}
	if n.process != nil {
		return nil, fmt.Errorf("cluster/memory: node %d has a Backend that is not closed", at)
	}
	n.process = newBackend(e, n)
	n.up, n.drained = true, false
	e.settle()
	return n.process, nil
}

// Close kills all nodes, and waits for everything that the Engine and its Backends have started.
// Functions of a Handler must not call it.
func (e *Engine) Close() error {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		for _, n := range e.nodes {
			e.kill(n)
		}
		close(e.done)
	}
	e.mu.Unlock()
	e.all.Wait()
	return nil
}
