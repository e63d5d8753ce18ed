package memory_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/cluster/memory"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// ctx is for calls that do not test contexts.
var ctx = context.Background()

// A process is a Backend with what its Handler got.
type process struct {
	cluster.Backend
	mu       sync.Mutex
	topics   []string
	messages []string
	events   []string // with the time
}

func (p *process) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, fmt.Sprint(time.Now().UnixNano(), " ")+fmt.Sprintf(format, args...))
}

func (p *process) got() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.topics...)
}

func (p *process) handler() cluster.Handler {
	return cluster.Handler{
		Records: func(part int, r []*cluster.Record, upTo uint64) {
			for _, x := range r {
				p.note("record %d/%d %s", part, x.Pos, x.Message.Topic)
				p.mu.Lock()
				p.topics = append(p.topics, x.Message.Topic)
				p.mu.Unlock()
			}
			p.note("up to %d/%d", part, upTo)
		},
		Message: func(m *store.Message) {
			p.note("message %s", m.Topic)
			p.mu.Lock()
			p.messages = append(p.messages, m.Topic)
			p.mu.Unlock()
		},
		Called: func(_ context.Context, from string, body []byte) ([]byte, error) {
			return append([]byte(from+" said "), body...), nil
		},
		Nodes:    func(live []cluster.Node) { p.note("nodes %v", live) },
		Majority: func(err error) { p.note("majority %v", err) },
	}
}

func newEngine(t *testing.T, o memory.Options) *memory.Engine {
	e, err := memory.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

func start(t *testing.T, e *memory.Engine, at int) *process {
	b, err := e.Open(at)
	require.NoError(t, err)
	p := &process{Backend: b}
	_, err = b.Start(ctx, cluster.Node{Name: fmt.Sprintf("node-%d", at)}, p.handler())
	require.NoError(t, err)
	return p
}

// three runs a test in a bubble, with three nodes.
func three(t *testing.T, test func(t *testing.T, e *memory.Engine, p []*process)) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, memory.Options{Seed: 1})
		test(t, e, []*process{start(t, e, 0), start(t, e, 1), start(t, e, 2)})
	})
}

func record(topic string) *cluster.Record {
	return &cluster.Record{
		Message: &store.Message{Message: packets.Message{Topic: topic, Payload: []byte("p")}},
	}
}

func commit(p *process, topics ...string) error {
	b := &cluster.Batch{}
	for _, topic := range topics {
		b.Records = append(b.Records, record(topic))
	}
	if err := p.Commit(ctx, b); err != nil {
		return err
	}
	for _, r := range b.Records {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

func TestOptionsOutOfRangeAreRefused(t *testing.T) {
	for _, o := range []memory.Options{
		{Nodes: -1}, {Nodes: 10}, {Partitions: 65}, {MaxBytes: 10}, {Keep: -1}, {Delay: -1},
		{Election: -1},
	} {
		_, err := memory.New(o)
		require.Error(t, err, "%+v", o)
	}
}

func TestANodeHasOneBackendAtATime(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		_, err := e.Open(0)
		require.Error(t, err)
		e.Kill(0)
		require.ErrorIs(t, commit(p[0], "a"), cluster.ErrClosed)
		again := start(t, e, 0)
		require.NoError(t, commit(again, "a"))
		_, err = again.Start(ctx, cluster.Node{Name: "a"}, cluster.Handler{})
		require.Error(t, err, "a second Start")
		require.NoError(t, p[0].Close(), "Close after Kill")
		require.NoError(t, commit(again, "b"), "Close of the killed one did nothing to this one")
	})
}

func TestACommitWaitsForAMajority(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		e.Kill(1)
		e.Kill(2)
		done := make(chan error, 1)
		go func() { done <- commit(p[0], "a") }()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Empty(t, done)
		_, err := e.Open(1)
		require.NoError(t, err)
		began := time.Now()
		require.NoError(t, <-done, "no lease ends while there is no leader to end it")
		require.Less(t, time.Since(began), 3*time.Second)
	})
}

func TestACutInOneDirectionStopsCommits(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		for _, back := range []bool{false, true} {
			for i := range 2 {
				if back {
					e.Cut(i, 2)
				} else {
					e.Cut(2, i)
				}
			}
			time.Sleep(5 * time.Second)
			require.NoError(t, commit(p[0], "a"), "the majority goes on")
			done := make(chan error, 1)
			go func() { done <- commit(p[2], "b") }()
			time.Sleep(10 * time.Second)
			require.Empty(t, done)
			e.Heal()
			require.ErrorIs(t, <-done, cluster.ErrFenced)
			time.Sleep(time.Second)
			require.NoError(t, commit(p[2], "c"))
		}
	})
}

func TestAFollowerThatOnlyHearsStillGetsTheLog(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		e.Cut(2, 0)
		e.Cut(2, 1)
		time.Sleep(3 * time.Second)
		require.NoError(t, commit(p[0], "a"))
		time.Sleep(time.Second)
		require.Equal(t, []string{"a"}, p[2].got())
	})
}

func TestAReplicaOutOfReachReadsWhatItHas(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		put := func(rev uint64, v string) (uint64, error) {
			c := &cluster.Change{Put: []cluster.Put{{Key: "k", Rev: rev, Value: []byte(v)}}}
			require.NoError(t, p[0].Commit(ctx, &cluster.Batch{Changes: []*cluster.Change{c}}))
			return c.Put[0].New, c.Err
		}
		rev, err := put(0, "old")
		require.NoError(t, err)
		require.NoError(t, commit(p[0], "a"))
		time.Sleep(time.Second)
		e.Isolate(2)
		time.Sleep(5 * time.Second)
		_, err = put(rev, "new")
		require.NoError(t, err)
		require.NoError(t, commit(p[0], "b"))
		v, err := p[2].Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, cluster.Entry{Key: "k", Value: []byte("old"), Rev: rev}, v)
		page, err := p[2].Read(ctx, 0, 0, []string{"#"}, 10)
		require.NoError(t, err)
		require.Len(t, page.Records, 1)
		e.Heal()
		time.Sleep(5 * time.Second)
		v, err = p[2].Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "new", string(v.Value))
	})
}

func TestAPausedNodeDoesNothingUntilItGoesOn(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		p[2].Interest([]string{"m"}, nil)
		require.NoError(t, p[2].Synced(ctx))
		e.Pause(2)
		time.Sleep(3 * time.Second)
		require.NoError(t, commit(p[0], "a"))
		p[0].Send(record("m").Message)
		done := make(chan error, 1)
		go func() {
			_, err := p[2].Get(ctx, "k")
			done <- err
		}()
		time.Sleep(time.Second)
		require.Empty(t, p[2].got())
		require.Empty(t, done)
		e.Resume(2)
		require.NoError(t, <-done)
		time.Sleep(100 * time.Millisecond)
		require.Equal(t, []string{"a"}, p[2].got())
		synctest.Wait()
		require.Equal(t, []string{"m"}, p[2].messages)
	})
}

func TestWhatDoesNotFitIsRefusedUntilThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, memory.Options{MaxBytes: 10_000, Keep: 3})
		p := []*process{start(t, e, 0), start(t, e, 1), start(t, e, 2)}
		for i := range 200 {
			require.NoError(t, commit(p[0], fmt.Sprintf("a/%d", i)))
			time.Sleep(10 * time.Millisecond)
		}
		page, err := p[0].Read(ctx, 0, 0, []string{"#"}, 10)
		require.NoError(t, err)
		require.Less(t, len(page.Records), 5)
		require.NotZero(t, page.Lost)
		e.Pause(2) // which must still get everything
		n := 0
		for ; n < 200; n++ {
			if err = commit(p[0], "b"); err != nil {
				break
			}
		}
		require.ErrorIs(t, err, cluster.ErrFull)
		require.Less(t, n, 60)
		e.Resume(2)
		time.Sleep(time.Second)
		require.NoError(t, commit(p[0], "c"), "what all have got makes room")
	})
}

func TestMessagesBeyondTheBoundAreDropped(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		p[1].Interest([]string{"m"}, nil)
		require.NoError(t, p[1].Synced(ctx))
		for range 5000 {
			p[0].Send(record("m").Message)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.Len(t, p[1].messages, 1024)
		require.EqualValues(t, 5000-1024, e.Dropped(1))
	})
}

func TestElectionsAndLeadersThatAreHandedOver(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		leader := e.Leader(0)
		require.NoError(t, p[leader].Drain(ctx))
		require.NotEqual(t, leader, e.Leader(0))
		leader = e.Leader(0)
		e.Pause(leader)
		require.Equal(t, -1, e.Leader(0))
		time.Sleep(2 * time.Second)
		require.NotContains(t, []int{-1, leader}, e.Leader(0))
		e.Resume(leader)
		e.LoseLeaders()
		require.Equal(t, -1, e.Leader(0))
		time.Sleep(2 * time.Second)
		require.NotEqual(t, -1, e.Leader(0))
	})
}

func TestALinkThatIsMissingMovesTheLead(t *testing.T) {
	three(t, func(t *testing.T, e *memory.Engine, p []*process) {
		leader := e.Leader(0)
		other := (leader + 1) % 3
		e.Cut(leader, other)
		time.Sleep(3 * time.Second)
		require.Equal(t, (leader+2)%3, e.Leader(0), "the node that reaches both")
		require.NoError(t, commit(p[other], "a"))
		require.NoError(t, commit(p[leader], "a"))
	})
}

// history makes the same calls and faults for every seed, and returns what the Handlers saw when.
func history(t *testing.T, seed uint64) (sum uint64) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, memory.Options{Seed: seed, Partitions: 2})
		var p []*process
		for i := range 3 {
			p = append(p, start(t, e, i))
		}
		var group sync.WaitGroup
		for i := range 3 {
			group.Go(func() {
				for n := range 20 {
					_ = commit(p[i], fmt.Sprintf("%d/%d", i, n))
					time.Sleep(time.Duration(i+7) * 41 * time.Millisecond)
				}
			})
		}
		time.Sleep(500 * time.Millisecond)
		e.Isolate(1)
		time.Sleep(4 * time.Second)
		e.Heal()
		e.LoseLeaders()
		group.Wait()
		time.Sleep(5 * time.Second)
		h := fnv.New64()
		for _, x := range p {
			x.mu.Lock()
			fmt.Fprintln(h, strings.Join(x.events, "\n"))
			x.mu.Unlock()
		}
		sum = h.Sum64()
	})
	return sum
}

func TestASeedRepeatsItself(t *testing.T) {
	first, other := history(t, 1), history(t, 2)
	require.NotEqual(t, first, other)
	for range 20 {
		require.Equal(t, first, history(t, 1))
	}
}
