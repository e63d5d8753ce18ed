package segment

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// The power fails at each call to the disk of commits and a compaction, and of what was done to
// names any part is lost. What was committed is there afterwards.
func TestNoOrderOfNamesLosesTheStore(t *testing.T) {
	seeds := uint64(30)
	if testing.Short() {
		seeds = 5
	}
	base := rand.Uint64()
	t.Logf("seed %d", base)
	for at := 1; ; at++ {
		sim := disk.NewSim(base)
		s, err := open(sim, Options{SegmentSize: 4000})
		require.NoError(t, err)
		calls := sim.Calls()
		sim.SetFault(func(c disk.Call) error {
			if c.N >= calls+at {
				return disk.ErrCut
			}
			return nil
		})
		sure, tried, done := work(s)
		for seed := range seeds {
			got, err := loadSim(sim.Crash(base+seed, disk.Sectors))
			require.NoError(t, err, "cut at call %d, seed %d", at, base+seed)
			require.True(t, sure.Equal(got) || tried.Equal(got), "cut at call %d, seed %d", at,
				base+seed)
		}
		_ = s.Close()
		if done {
			require.Greater(t, at, 50)
			return
		}
	}
}

// work commits and compacts until something fails. It returns the state that was committed, the
// state with the commit that was under way, and whether all was done.
func work(s *Store) (sure, tried *storetest.State, done bool) {
	sure = storetest.NewState()
	h := storetest.NewHistory(7)
	for i := range 12 {
		ops := h.Batch()
		tried = sure.Clone()
		tried.Apply(ops...)
		if s.Commit(ctx, ops) != nil {
			return sure, tried, false
		}
		sure = tried
		if i%4 == 3 {
			if err := s.Compact(ctx); err != nil {
				return sure, sure, false
			}
		}
	}
	return sure, sure, true
}
