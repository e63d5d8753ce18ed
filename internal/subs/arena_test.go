package subs

import (
	"iter"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// joined returns a tree with subscribers 1 to n.
func joined(n int) *Tree {
	t := New(Limits{})
	t.joins(n)
	return t
}

func (t *Tree) joins(n int) {
	for range n {
		t.Join()
	}
}

// all yields the places that are taken.
func (a *arena[T]) all() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for i := range uint32(len(a.chunks) * chunkSize) {
			if a.has(i) && !yield(i) {
				return
			}
		}
	}
}

func (a *arena[T]) check(tb testing.TB) {
	tb.Helper()
	r := require.New(tb)
	n, chunks := 0, int64(0)
	for c, chunk := range a.chunks {
		free := bits.OnesCount64(a.vacant[c])
		r.Equal(free > 0, a.room[c/64]>>(c%64)&1 == 1, "room in chunk %d", c)
		r.Equal(chunk == nil, a.vacant[c] == untaken(c), "chunk %d is there if it is needed", c)
		if chunk != nil {
			chunks++
			n += bits.OnesCount64(untaken(c)) - free
			for k := range chunk {
				if a.vacant[c]>>k&1 == 1 {
					r.Zero(chunk[k], "place %d of chunk %d is free but not empty", k, c)
				}
			}
		}
	}
	r.Equal(n, a.n)
	r.Equal(chunks*chunkBytes[T](), a.bytes)
	r.Len(a.vacant, len(a.chunks))
	r.Len(a.room, (len(a.chunks)+63)/64)
	for w := range a.low {
		r.Zero(a.room[w], "words before low have no room")
	}
	if k := len(a.chunks); k > 0 {
		r.NotNil(a.chunks[k-1])
	}
	if a.spare != nil {
		r.Equal(*new([chunkSize]T), *a.spare)
	}
}

// len counts what is in the table.
func (d *table) len() (n int) {
	for i, s := range d.dir {
		if i == 0 || s != d.dir[i-1] {
			n += int(s.n)
		}
	}
	return n
}

func (d *table) check(tb testing.TB) {
	tb.Helper()
	r := require.New(tb)
	r.Len(d.dir, 1<<d.depth)
	segments, deep := 0, 0
	for i, s := range d.dir {
		if uint(s.depth) == d.depth {
			deep++
		}
		if i > 0 && s == d.dir[i-1] {
			continue
		}
		segments++
		n := uint32(0)
		for _, e := range s.slots {
			if e != 0 {
				n++
				r.Same(s, d.segment(uint32(e>>32)))
			}
		}
		r.Equal(n, s.n)
	}
	r.Equal(segments, d.n)
	r.Equal(deep, d.deep)
	r.True(deep > 0, "the directory is as small as it can be")
}

func TestAnArenaTakesTheLowestPlaceAndGivesChunksBack(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var a arena[uint64]
	taken := map[uint32]bool{}
	for step := range 20_000 {
		grow := step/4000%2 == 0
		if rng.IntN(10) < map[bool]int{true: 8, false: 2}[grow] || len(taken) == 0 {
			i := a.take()
			require.False(t, taken[i])
			require.NotZero(t, i)
			require.Zero(t, *a.at(i))
			*a.at(i) = 1
			taken[i] = true
		} else {
			for i := range taken { // in no order
				a.give(i)
				delete(taken, i)
				break
			}
		}
		if step%100 == 0 {
			a.check(t)
			require.Equal(t, len(taken), a.n)
		}
	}
	for i := range taken {
		a.give(i)
	}
	a.check(t)
	require.Empty(t, a.chunks)
	require.LessOrEqual(t, cap(a.chunks), 64)
	require.EqualValues(t, 1, a.take())
}

func TestATableSplitsAndJoins(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	d := newTable()
	in := map[uint32]uint32{} // by number
	for round := range 6 {
		most := []int{20_000, 100, 5_000, 0, 50_000, 0}[round]
		for len(in) < most {
			n := rng.Uint32()/2 + 1
			if _, has := in[n]; !has {
				in[n] = rng.Uint32() >> (rng.IntN(3) * 4) // some prefixes have more than others
				d.add(in[n], n)
			}
		}
		for n, x := range in {
			if len(in) <= most {
				break
			}
			require.Equal(t, n, d.find(x, func(m uint32) bool { return m == n }))
			d.remove(x, n)
			delete(in, n)
			require.Zero(t, d.find(x, func(m uint32) bool { return m == n }))
		}
		d.check(t)
		require.Equal(t, len(in), d.len())
		for n, x := range in {
			require.Equal(t, n, d.find(x, func(m uint32) bool { return m == n }))
		}
		if most == 0 {
			require.Equal(t, 1, d.n, "nothing needs one segment")
			require.Zero(t, d.bytes())
		}
	}
}
