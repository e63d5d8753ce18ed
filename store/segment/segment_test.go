package segment

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

func TestContract(t *testing.T) {
	for _, c := range []struct {
		name string
		opts Options
	}{
		{"synced", Options{}},
		{"buffered", Options{Durability: store.Buffered}},
		{"nothing promised", Options{Durability: store.None}},
		{"segments of 4 KiB, compacted all the time", Options{SegmentSize: 4096}},
	} {
		t.Run(c.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) func() (store.Store, error) {
				dir := t.TempDir()
				return func() (store.Store, error) { return Open(dir, c.opts) }
			})
		})
	}
}

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) func() (store.Store, error) {
		dir := b.TempDir()
		return func() (store.Store, error) { return Open(dir, Options{}) }
	})
}
