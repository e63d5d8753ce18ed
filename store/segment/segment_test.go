package segment

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// patient is a Store whose Checkpoint waits until everything has been compacted, so that tests see what that does.
type patient struct{ *Store }

func (s patient) Checkpoint(ctx context.Context) error { return s.Compact(ctx) }

func TestContract(t *testing.T) {
	run := func(name string, opts Options, dir func(t *testing.T) disk.Dir) {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) func() (store.Store, error) {
				d := dir(t)
				return func() (store.Store, error) {
					s, err := open(d, opts)
					if err != nil {
						return nil, err
					}
					return patient{s}, nil
				}
			})
		})
	}
	real := func(t *testing.T) disk.Dir {
		d, err := disk.Make(t.TempDir())
		require.NoError(t, err)
		return d
	}
	simulated := func(*testing.T) disk.Dir { return disk.NewSim(1) }
	run("synced", Options{}, real)
	run("buffered", Options{Durability: store.Buffered}, real)
	run("nothing promised", Options{Durability: store.None}, real)
	run("segments of 4 KiB, compacted all the time", Options{SegmentSize: 4096}, simulated)
}

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) func() (store.Store, error) {
		dir := b.TempDir()
		return func() (store.Store, error) { return Open(dir, Options{}) }
	})
}
