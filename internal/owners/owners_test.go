package owners

import (
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAnAccountIsHeldToItsLimits(t *testing.T) {
	l := Unlimited()
	l[Sessions] = 2
	table := New(l)
	a := table.Open("a")
	require.True(t, a.Take(Sessions, 1))
	require.True(t, a.Take(Sessions, 1))
	require.False(t, a.Take(Sessions, 1))
	require.False(t, a.Room(Sessions, 1))
	require.EqualValues(t, 2, a.Used(Sessions), "what was refused is not counted")
	require.True(t, a.Take(Retained, math.MaxInt32), "another kind")
	require.True(t, table.Open("b").Take(Sessions, 2), "another owner")

	l[Sessions] = 1
	a.Limit(l)
	require.True(t, a.Room(Sessions, 0))
	require.True(t, a.Take(Sessions, -1), "what makes it less always fits")
	require.False(t, a.Take(Sessions, 1))
	a.Add(Sessions, 5)
	require.EqualValues(t, 6, a.Used(Sessions), "what is loaded is counted, whatever the limit is")
}

func TestAnAccountIsForgottenWhenNobodyHoldsIt(t *testing.T) {
	table := New(Unlimited())
	a := table.Open("a")
	require.Same(t, a, table.Open("a"))
	table.Close(a)
	require.Equal(t, 1, table.Len())
	table.Close(a)
	require.Zero(t, table.Len())
	require.NotSame(t, a, table.Open("a"))
}

func TestNobodyIsCountedWithoutAnAccount(t *testing.T) {
	var a *Account
	a.Limit(Limits{})
	a.Add(Sessions, 1)
	require.True(t, a.Take(Sessions, math.MaxInt64))
	require.True(t, a.Room(Sessions, math.MaxInt64))
	require.Zero(t, a.Used(Sessions))
	New(Unlimited()).Close(a)
}

func TestALongFilterCountsAsSeveral(t *testing.T) {
	for n, want := range map[int]int64{1: 1, 127: 1, 128: 2, 65_535: 512} {
		require.Equal(t, want, Weight("", strings.Repeat("x", n)))
		require.Equal(t, want, Weight(strings.Repeat("x", n-1), "x"), "with a ShareName")
	}
	require.EqualValues(t, 1, Weight("", strings.Repeat("+/", 7)+"#"))
	require.EqualValues(t, 2, Weight("", strings.Repeat("a/", 8)+"#"))
	require.EqualValues(t, 1, Weight("", strings.Repeat("a/", 60)), "without wildcards")
}

// Those who take at the same time never have more than the limit together.
func TestTakingAtTheSameTime(t *testing.T) {
	l := Unlimited()
	l[Retained] = 100
	table := New(l)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				a := table.Open("a")
				if a.Take(Retained, 30) {
					a.Add(Retained, -30)
				}
				table.Close(a)
			}
		})
	}
	all.Wait()
	require.Zero(t, table.Len())
}
