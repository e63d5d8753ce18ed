package unsettled

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEachChangeIsSettledOnce(t *testing.T) {
	var x Changes[string, int]
	for i := range 4 {
		x.Add("a", i)
	}
	x.Add("b", 1)
	odd := func(c int) bool { return c%2 == 1 }
	all := func(int) bool { return true }
	require.Equal(t, []int{1, 3}, x.Of("a", odd))
	require.True(t, x.Settle("a", 3))
	require.True(t, x.Settle("a", 1), "in any order")
	require.False(t, x.Settle("a", 1), "a second time")
	require.False(t, x.Settle("b", 3), "of another owner")
	require.Equal(t, []int{0, 2}, x.Of("a", all), "the oldest first")
	x.Forget("a")
	require.False(t, x.Settle("a", 0), "it was forgotten")
	require.Equal(t, []int{1}, x.Of("b", all))
	require.True(t, x.Settle("b", 1))
	require.Empty(t, x.of, "nothing is kept of owners without changes")
}
