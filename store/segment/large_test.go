package segment

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// The bound is 2 GiB, which is more than a test should take.
func TestABatchThatIsTooLargeLeavesTheStoreUsable(t *testing.T) {
	for _, d := range []store.Durability{
		store.DurabilitySynced, store.DurabilityBuffered, store.DurabilityNone,
	} {
		t.Run(d.String(), func(t *testing.T) {
			sim := disk.NewSim(1)
			s, err := open(sim, Options{Durability: d, SegmentSize: 1 << 20})
			require.NoError(t, err)
			s.largest = 10_000
			want := storetest.NewState()
			commit := func(ops ...store.Op) error {
				err := s.Commit(ctx, ops)
				if err == nil {
					want.Apply(ops...)
				}
				return err
			}
			require.NoError(t, commit(put(1)))
			many := []store.Op{publish(1, strings.Repeat("x", 6000), 1),
				publish(2, strings.Repeat("y", 6000), 1)}
			require.ErrorIs(t, commit(many...), store.ErrTooLarge)
			require.NoError(t, commit(many[0]))
			require.ErrorIs(t, commit(many...), store.ErrTooLarge)
			require.NoError(t, commit(many[1]), "the halves of a batch fit")
			same(t, want, fold(t, s))
			require.NoError(t, s.Close())
			got, err := loadSim(sim.Crash(1, disk.Everything))
			require.NoError(t, err)
			same(t, want, got)
		})
	}
}
