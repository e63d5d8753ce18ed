package retained

import (
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCursorsKeepTheirOrder(t *testing.T) {
	var none *Cursors
	require.Nil(t, none.First())
	require.Nil(t, none.Of("a"))
	require.Zero(t, none.Len())
	require.Zero(t, none.Bytes())
	require.Nil(t, none.Drop("a"))
	require.Equal(t, CursorBytes("a"), none.With("a"))

	cs := new(Cursors)
	a, b, c := &Cursor{Filter: "a"}, &Cursor{Filter: "b/+"}, &Cursor{Filter: "c"}
	for _, x := range []*Cursor{a, b, c} {
		require.Nil(t, cs.Put(x))
	}
	cs.Advance(a, "a/somewhere")
	require.Equal(t, "a/somewhere", a.From())
	a2 := &Cursor{Filter: "a"}
	require.Less(t, cs.With("a"), cs.Bytes(), "a cursor at the beginning takes less")
	require.Same(t, a, cs.Put(a2), "a repeated filter replaces its cursor")
	require.Equal(t, 3, cs.Len())
	b.Blocked = true
	cs.Advance(b, "b/1")
	require.False(t, b.Blocked)
	for _, x := range []*Cursor{b, c, a2} {
		require.Same(t, x, cs.First())
		cs.Advance(x, "")
	}
	require.Nil(t, cs.First())
	require.Zero(t, cs.Len())
	require.Zero(t, cs.Bytes())
}

// However cursors come and go, what they take is what is there.
func TestCursorsCountTheirBytes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	cs := new(Cursors)
	for range 10_000 {
		filter := strconv.Itoa(rnd.IntN(30))
		switch x := cs.Of(filter); {
		case rnd.IntN(3) == 0:
			want := cs.With(filter)
			cs.Put(&Cursor{Filter: filter})
			require.Equal(t, want, cs.Bytes())
		case x != nil && rnd.IntN(2) == 0:
			cs.Advance(x, []string{"", "x", "a longer one"}[rnd.IntN(3)])
		default:
			require.Same(t, x, cs.Drop(filter))
		}
		n, bytes := 0, 0
		var last *Cursor
		for x := cs.First(); x != nil; last, x = x, x.next {
			require.Same(t, last, x.prev)
			require.Same(t, x, cs.Of(x.Filter))
			n, bytes = n+1, bytes+CursorBytes(x.Filter)+len(x.From())
		}
		require.Same(t, last, cs.last)
		require.Equal(t, n, cs.Len())
		require.Equal(t, bytes, cs.Bytes())
	}
}
