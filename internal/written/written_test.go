package written

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFilters(t *testing.T) {
	var none *Filters
	_, ok := none.Get("a")
	require.False(t, ok)
	require.Zero(t, none.Len())
	require.Zero(t, none.Bytes())
	require.False(t, none.Any("a"))
	require.Empty(t, slices.Collect(none.Of("a")))
	require.Nil(t, none.All())
	none.Remove("a")

	var f Filters
	f.Put("a", "x")
	f.Put("b", "x")
	f.Put("x", "x")
	f.Put("c", "y")
	require.Equal(t, 4, f.Len())
	require.Equal(t, 4*cost+8, f.Bytes())
	require.ElementsMatch(t, []string{"a", "b", "x"}, slices.Collect(f.Of("x")))
	require.Equal(t, map[string]string{"a": "x", "b": "x", "c": "y"}, f.All())
	f.Put("a", "y")
	by, _ := f.Get("a")
	require.Equal(t, "y", by, "the later one holds")
	require.ElementsMatch(t, []string{"a", "c"}, slices.Collect(f.Of("y")))
	for wrote := range f.Of("x") {
		f.Remove(wrote)
	}
	require.False(t, f.Any("x"))
	for wrote := range maps.Clone(f.by) {
		f.Remove(wrote)
	}
	require.Zero(t, f.Bytes(), "nothing is left")
	require.Empty(t, f.of)
}

func TestTheStoreTellsThemFromFilters(t *testing.T) {
	wrote, by, ok := Split(Join("$share/g/a/#", "b"))
	require.True(t, ok)
	require.Equal(t, []string{"$share/g/a/#", "b"}, []string{wrote, by})
	_, _, ok = Split("$share/g/a/#")
	require.False(t, ok)
}
