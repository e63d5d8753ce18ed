package turns_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/internal/turns"
	"github.com/stretchr/testify/require"
)

// A rig starts calls of Take one after the other, and writes down in which order they come back.
type rig struct {
	t   *testing.T
	q   *turns.Queue
	ctx context.Context

	mu    sync.Mutex
	order []string          // guarded by mu
	gives map[string]func() // by name; guarded by mu
}

// take calls Take, and writes down name when it returns, with a ! where it is an error.
func (r *rig) take(name string, p turns.Claim) {
	go func() {
		give, err := r.q.Take(r.ctx, p)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.gives[name] = give
		if err != nil {
			name += "!"
		}
		r.order = append(r.order, name)
	}()
	synctest.Wait()
}

// ends ends the turn of a call and expects what comes of it.
func (r *rig) ends(name string, want ...string) {
	r.t.Helper()
	r.mu.Lock()
	give := r.gives[name]
	r.mu.Unlock()
	give()
	synctest.Wait()
	r.came(want...)
}

// came expects what has come back since it was called last.
func (r *rig) came(want ...string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Equal(r.t, want, r.order)
	r.order = nil
}

func bubble(t *testing.T, q *turns.Queue, f func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		f(&rig{t: t, q: q, ctx: t.Context(), gives: map[string]func(){}})
	})
}

func TestPeersTakeTurns(t *testing.T) {
	bubble(t, turns.New(1, 1, 100), func(r *rig) {
		a, b, c := turns.Claim{Peer: "a"}, turns.Claim{Peer: "b"}, turns.Claim{Peer: "c"}
		r.take("a0", a)
		r.came("a0")
		for i := 1; i <= 3; i++ {
			r.take(fmt.Sprint("a", i), a)
		}
		r.take("b1", b)
		r.take("b2", b)
		r.take("c1", c)
		r.came()
		r.ends("a0", "a1")
		r.ends("a1", "b1")
		r.ends("b1", "c1")
		r.ends("c1", "a2")
		r.ends("a2", "b2")
		r.ends("b2", "a3")
		r.ends("a3")
		r.take("c2", c)
		r.came("c2")
	})
}

func TestKnownPeersGetEverySecondTurn(t *testing.T) {
	bubble(t, turns.New(1, 1, 100), func(r *rig) {
		a, k := turns.Claim{Peer: "a"}, turns.Claim{Peer: "k", Known: true}
		r.take("first", a)
		r.came("first")
		for i := range 5 {
			r.take(fmt.Sprint("a", i), a)
		}
		for i := range 3 {
			r.take(fmt.Sprint("k", i), k)
		}
		last := "first"
		for _, next := range []string{"a0", "k0", "a1", "k1", "a2", "k2", "a3", "a4"} {
			r.ends(last, next)
			last = next
		}
	})
}

func TestOnePeerDoesNotHaveAllTurns(t *testing.T) {
	bubble(t, turns.New(3, 2, 100), func(r *rig) {
		a, b := turns.Claim{Peer: "a"}, turns.Claim{Peer: "b"}
		for i := range 4 {
			r.take(fmt.Sprint("a", i), a)
		}
		r.came("a0", "a1")
		r.take("b0", b)
		r.came("b0")
		r.take("b1", b)
		r.came()
		r.ends("b0", "b1")
		r.ends("b1")
		r.ends("a0", "a2")
		r.ends("a1", "a3")
		r.ends("a2")
	})
}

func TestAFullLineSendsTheLastOfTheLongestAway(t *testing.T) {
	bubble(t, turns.New(1, 1, 4), func(r *rig) {
		a, b := turns.Claim{Peer: "a"}, turns.Claim{Peer: "b"}
		c, d := turns.Claim{Peer: "c"}, turns.Claim{Peer: "d"}
		r.take("a0", a)
		for i := 1; i <= 4; i++ {
			r.take(fmt.Sprint("a", i), a)
		}
		r.came("a0")
		r.take("a5", a)
		r.came("a5!")
		r.take("b1", b)
		r.came("a4!")
		r.take("c1", c)
		r.came("a3!")
		r.take("b2", b)
		r.came("b2!")
		r.take("known", turns.Claim{Peer: "a", Known: true})
		r.came()
		r.take("d1", d)
		r.came("a2!")
		r.take("e1", turns.Claim{Peer: "e"})
		r.came("e1!")
		last := "a0"
		for _, next := range []string{"a1", "known", "b1", "c1", "d1"} {
			r.ends(last, next)
			last = next
		}
	})
}

func TestRoomIsCountedInSizes(t *testing.T) {
	bubble(t, turns.New(1, 1, 10), func(r *rig) {
		r.take("first", turns.Claim{Peer: "a"})
		r.came("first")
		r.take("a1", turns.Claim{Peer: "a", Size: 4})
		r.take("a2", turns.Claim{Peer: "a", Size: 5})
		r.take("a3", turns.Claim{Peer: "a", Size: 2})
		r.came("a3!")
		r.take("b1", turns.Claim{Peer: "b", Size: 11})
		r.came("b1!")
		r.take("b2", turns.Claim{Peer: "b", Size: 3})
		r.came("a2!")
		r.take("c1", turns.Claim{Peer: "c", Size: 5})
		r.came("c1!")
		r.ends("first", "a1")
		r.ends("a1", "b2")
	})
}

func TestACallThatEndsLeavesTheLine(t *testing.T) {
	bubble(t, turns.New(1, 1, 2), func(r *rig) {
		a := turns.Claim{Peer: "a"}
		r.take("a0", a)
		r.came("a0")
		whole := r.ctx
		ctx, cancel := context.WithCancel(whole)
		r.ctx = ctx
		r.take("a1", a)
		r.ctx = whole
		r.take("a2", a)
		cancel()
		synctest.Wait()
		r.came("a1!")
		r.take("a3", a)
		r.ends("a0", "a2")
		r.ends("a2", "a3")
		r.ends("a3")
	})
}

// Callers come, wait, are sent away and go as they like. No turn is lost, and never are there more
// than there should be.
func TestNoTurnIsLost(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		const n, share = 3, 2
		random := rand.New(rand.NewPCG(seed, 1))
		q := turns.New(n, share, 5)
		var mu sync.Mutex
		now, most := map[string]int{}, 0
		count := func(key string, by int) {
			mu.Lock()
			defer mu.Unlock()
			now[key] += by
			now["all"] += by
			most = max(most, now["all"])
			require.LessOrEqual(t, now[key], share)
			require.LessOrEqual(t, now["all"], n)
		}
		var all sync.WaitGroup
		for range 2000 {
			p := turns.Claim{Peer: string(rune('a' + random.IntN(4))), Known: random.IntN(3) == 0}
			start, patience, work := random.IntN(1000), random.IntN(30), random.IntN(10)
			all.Go(func() { // waited for below
				time.Sleep(time.Duration(start) * time.Millisecond)
				ctx, cancel := context.WithTimeout(t.Context(),
					time.Duration(patience)*time.Millisecond)
				defer cancel()
				if give, err := q.Take(ctx, p); err == nil {
					count(p.Peer, 1)
					time.Sleep(time.Duration(work) * time.Millisecond)
					count(p.Peer, -1)
					give()
				}
			})
		}
		all.Wait()
		require.Equal(t, n, most)
		for _, key := range []string{"x", "x", "y"} {
			_, err := q.Take(t.Context(), turns.Claim{Peer: key})
			require.NoError(t, err, "all turns are there")
		}
	})
}
