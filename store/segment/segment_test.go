package segment

import (
	"context"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// patient is a Store whose Checkpoint waits until everything has been compacted, so that tests see
// what that does.
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
	run("buffered", Options{Durability: store.DurabilityBuffered}, real)
	run("nothing promised", Options{Durability: store.DurabilityNone}, real)
	run("segments of 4 KiB, compacted all the time", Options{SegmentSize: 4096}, simulated)
}

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) func() (store.Store, error) {
		dir := b.TempDir()
		return func() (store.Store, error) { return Open(dir, Options{}) }
	})
}

// BenchmarkCompact compacts a log of 1,000 messages for 10,000 Sessions each, of which a tenth is
// done with.
func BenchmarkCompact(b *testing.B) {
	const sessions, messages = 10_000, 1000
	s, err := Open(b.TempDir(), Options{})
	require.NoError(b, err)
	var ids []uint64
	for i := range uint64(sessions) {
		ids = append(ids, i+1)
		require.NoError(b, s.Commit(ctx, []store.Op{put(i + 1)}))
	}
	payload := strings.Repeat("x", 256)
	for seq := range uint64(messages) {
		ops := []store.Op{publish(seq, payload, ids...)}
		if seq%10 == 9 {
			for _, id := range ids {
				ops = append(ops, &store.Done{Session: id, Seq: seq / 10})
			}
		}
		require.NoError(b, s.Commit(ctx, ops))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for b.Loop() {
		// so that there is something to be done
		require.NoError(b, s.Commit(ctx, []store.Op{put(1)}))
		require.NoError(b, s.Compact(ctx))
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(sessions*messages*9/10*float64(b.N)/b.Elapsed().Seconds(), "refs/s")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/(sessions*messages*9/10), "B/ref")
	require.NoError(b, s.Close())
}
