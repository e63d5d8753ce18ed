// Package clustertest holds the contract of package cluster as a test suite. Run it to know that
// your Backend is correct:
//
//	func TestContract(t *testing.T) {
//		clustertest.Run(t, func(t *testing.T, check func(clustertest.Engine)) {
//			check(clustertest.Engine{Open: ..., Close: ..., Kill: ...})
//		})
//	}
//
// Each rule of package cluster is a subtest with an engine of its own. [Histories] plays random
// histories of commits and faults, and looks for rules that were broken. Both take minutes with an
// engine in real time. With package memory in a testing/synctest bubble they take seconds; see
// [Memory].
package clustertest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/cluster/memory"
)

var seedFlag = flag.Uint64("clustertest.seed", 0,
	"seed of clustertest.Run, or of the one history that clustertest.Histories plays; 0: new ones")

// An Engine is what Run tests: three nodes, and faults. A node is a number from 0 to 2.
type Engine struct {
	// Open returns a Backend of a node that nobody has started. Run closes the Backend, or calls
	// Kill, before it opens the node again. The log and the register are empty at first.
	Open func(node int) (cluster.Backend, error)
	// Close ends the engine. Run has closed all Backends before.
	Close func() error
	// Election is the longest time without a leader after one is lost.
	Election time.Duration

	// The faults. A subtest that needs one that is nil is skipped.

	Kill          func(node int)     // ends the process and the replica of a node, as kill -9 does
	Pause, Resume func(node int)     // as SIGSTOP and SIGCONT do
	Cut           func(from, to int) // loses what one node sends to another
	Heal          func()             // ends all cuts
	LoseLeaders   func()             // makes whoever leads anything stop leading
	SetFull       func(full bool)    // makes the engine have no space for what is added
}

// Memory returns an engine of package memory with its faults. It must have three nodes. election is
// its Options.Election.
func Memory(e *memory.Engine, election time.Duration) Engine {
	return Engine{
		Open: e.Open, Close: e.Close, Election: election, Kill: e.Kill, Pause: e.Pause,
		Resume: e.Resume, Cut: e.Cut, Heal: e.Heal, LoseLeaders: e.LoseLeaders, SetFull: e.SetFull,
	}
}

// has says whether the engine has the faults that a check needs: k(ill), p(ause), c(ut), l(eaders),
// f(ull).
func (e *Engine) has(faults string) bool {
	for _, f := range faults {
		missing := false
		switch f {
		case 'k':
			missing = e.Kill == nil
		case 'p':
			missing = e.Pause == nil || e.Resume == nil
		case 'c':
			missing = e.Cut == nil || e.Heal == nil
		case 'l':
			missing = e.LoseLeaders == nil
		case 'f':
			missing = e.SetFull == nil
		}
		if missing {
			return false
		}
	}
	return true
}

// Run tests an engine against the rules of package cluster, each in a subtest. For each subtest Run
// calls open, which makes an engine and calls check with it, perhaps in a testing/synctest bubble.
// The flag -clustertest.seed repeats the random choices of a run.
func Run(t *testing.T, open func(t *testing.T, check func(Engine))) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			var err error
			skipped, ran := false, false
			open(t, func(e Engine) {
				ran = true
				if skipped = !e.has(c.faults); skipped {
					err = e.Close()
					return
				}
				err = c.verify(e, seed)
			})
			switch {
			case !ran:
				t.Fatal("open has not called check")
			case err != nil:
				t.Errorf("%v\n%s\n(seed %d, see -clustertest.seed)", err, c.why, seed)
			case skipped:
				t.Skipf("the engine lacks a fault that this needs, one of %q", c.faults)
			}
		})
	}
}

// A check is one rule.
type check struct {
	name   string
	why    string // what it means to the broker
	faults string // see has
	run    func(e *env) error
}

// verify runs a check on an engine, and closes that.
func (c *check) verify(e Engine, seed uint64) error {
	v := newEnv(e, seed)
	err := c.run(v)
	if err == nil {
		err = v.wrong()
	}
	if closing := v.close(); err == nil {
		err = closing
	}
	return err
}

// checks are all of them, in the order of the rules.
var checks = []*check{
	{"L1 records keep their order", "Clients see messages of one publisher in another order, " +
		"twice, or not at all.", "cl", checkOrder},
	{"L2 every node follows the whole log", "A node lacks messages that its clients subscribe " +
		"to.", "kpc", checkFeeds},
	{"L3 what is committed is there", "A message is acknowledged and lost.", "k", checkCommitted},
	{"L4 once", "A QoS 2 message or a Will arrives twice.", "l", checkOnce},
	{"L5 retained messages", "Nodes have different retained messages.", "", checkRetained},
	{"L6 a node that is gone is fenced", "A message comes again after its Session has moved.",
		"kc", checkFence},
	{"R1 one change of several succeeds", "Two nodes own one Session.", "", checkRace},
	{"R2 old values decide nothing", "A node overwrites what another node has changed.", "",
		checkStale},
	{"R3 a TTL frees its key", "A Session ends too early, or never.", "l", checkTTL},
	{"B1 messages follow Interest", "A subscriber misses QoS 0 messages after SUBACK.", "k",
		checkInterest},
	{"N1 the list of live nodes", "Sessions of a dead node stay lost, or those of a live one " +
		"are taken.", "kcl", checkNodes},
	{"N1 a short pause", "A pause for garbage collection costs a node its Sessions.", "p",
		checkShortPause},
	{"D1 a node that drains delays nobody", "Publishers wait while a node restarts.", "",
		checkDrain},
	{"Call", "Sessions cannot be handed over.", "k", checkCalls},
	{"Read", "A Session that was away gets too much or too little.", "", checkRead},
	{"Batch", "One bad message harms others.", "", checkBatch},
	{"no space left", "A message is refused and arrives, or acknowledged and lost.", "f",
		checkFull},
	{"Start and Close", "A broker hangs, or works under the name of another.", "", checkLife},
}

// env is the environment of a check.
type env struct {
	Engine
	ctx   context.Context
	rand  *rand.Rand
	nodes [3]*node // that run
	stop  context.CancelFunc
	count atomic.Int64 // of payloads

	mu  sync.Mutex // guards all
	all []*node    // that have run
}

// patience is how long anything may take that has no bound of its own.
const patience = 2 * time.Minute

func newEnv(e Engine, seed uint64) *env {
	v := &env{Engine: e, rand: rand.New(rand.NewPCG(seed, 1))}
	v.ctx, v.stop = context.WithTimeout(context.Background(), 10*patience)
	return v
}

// close closes all Backends and the engine.
func (e *env) close() (err error) {
	defer e.stop()
	for i, n := range e.nodes {
		if n == nil {
			continue
		}
		if failed := n.Close(); failed != nil && err == nil {
			err = fmt.Errorf("a Close of node %d: %w", i, failed)
		}
	}
	if failed := e.Engine.Close(); failed != nil && err == nil {
		err = fmt.Errorf("a Close of the engine: %w", failed)
	}
	return err
}

// wrong returns what the Handlers have found.
func (e *env) wrong() error {
	for _, n := range e.all {
		if err := n.wrong(); err != nil {
			return fmt.Errorf("node %d: %w", n.at, err)
		}
	}
	return nil
}

// startAll starts three nodes at once, as an engine may need a majority.
func (e *env) startAll() error {
	return e.together(func(i int) error { return e.start(i) })
}

// start opens and starts a node.
func (e *env) start(i int) error {
	b, err := e.Open(i)
	if err != nil {
		return fmt.Errorf("an Open of node %d: %w", i, err)
	}
	n := newNode(b, i)
	e.nodes[i] = n
	e.mu.Lock()
	e.all = append(e.all, n)
	e.mu.Unlock()
	ctx, stop := context.WithTimeout(e.ctx, patience)
	defer stop()
	n.limits, err = b.Start(ctx, cluster.Node{Name: name(i), Info: []byte(name(i))}, n.handler())
	if err != nil {
		return fmt.Errorf("a Start of node %d: %w", i, err)
	}
	return nil
}

// kill kills a node and forgets it.
func (e *env) kill(i int) {
	e.Kill(i)
	e.nodes[i].dies()
	e.nodes[i] = nil
}

// isolate cuts a node off.
func (e *env) isolate(i int) {
	for j := range 3 {
		if i != j {
			e.Cut(i, j)
			e.Cut(j, i)
		}
	}
}

// until waits until a condition holds.
func (e *env) until(what string, limit time.Duration, holds func() bool) error {
	began := time.Now()
	for !holds() {
		if waited := time.Since(began); waited > limit {
			return fmt.Errorf("after %v still not: %s", limit, what)
		}
		e.sleep(5 * time.Millisecond)
	}
	return nil
}

func (e *env) sleep(d time.Duration) { <-time.After(d) }

func name(i int) string { return fmt.Sprintf("node-%d", i) }
