package histogram

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAValueIsInTheBucketWhoseBoundItDoesNotExceed(t *testing.T) {
	h := New(1, 10, 100)
	for _, v := range []int64{math.MinInt32, 0, 1, 2, 10, 11, 100, 101, math.MaxInt32} {
		h.Add(v)
	}
	s := h.Snapshot()
	require.Equal(t, []int64{1, 10, 100}, s.Bounds)
	require.Equal(t, []uint64{3, 2, 2, 2}, s.Counts)
	require.EqualValues(t, 0+1+2+10+11+100+101-1, s.Sum)
	(*Histogram)(nil).Add(1)
}

func TestTheBoundsAscend(t *testing.T) {
	for name, h := range map[string]*Histogram{"durations": ForDurations(), "sizes": ForSizes()} {
		s := h.Snapshot()
		require.True(t, slices.IsSorted(s.Bounds), name)
		require.Equal(t, len(s.Bounds), len(slices.Compact(slices.Clone(s.Bounds))), name)
	}
	d := ForDurations().Snapshot().Bounds
	require.EqualValues(t, 10*time.Microsecond, d[0])
	require.EqualValues(t, 10*time.Second, d[len(d)-1])
	n := ForSizes().Snapshot().Bounds
	require.EqualValues(t, 1, n[0])
	require.EqualValues(t, 1<<16, n[len(n)-1])
}

func TestSinceCountsTheTimeThatHasPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(int64(time.Second), int64(time.Minute))
		start := time.Now()
		time.Sleep(2 * time.Second)
		h.Since(start)
		s := h.Snapshot()
		require.Equal(t, []uint64{0, 1, 0}, s.Counts)
		require.EqualValues(t, 2*time.Second, s.Sum)
	})
}

func TestAddDoesNotAllocate(t *testing.T) {
	h := ForDurations()
	require.Zero(t, testing.AllocsPerRun(100, func() { h.Add(12345) }))
}
