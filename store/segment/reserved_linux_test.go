package segment

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// blocks returns how much of the disk the files in a directory take, and how many there are.
func blocks(t *testing.T, dir string) (n int64, files int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		n += info.Sys().(*syscall.Stat_t).Blocks * 512
	}
	return n, len(entries)
}

// The blocks that a killed process had reserved are given back.
func TestKillsCostNoDisk(t *testing.T) {
	const size = 4 << 20
	dir, want := t.TempDir(), storetest.NewState()
	for n := range uint64(30) {
		s := mustOpen(t, dir, Options{SegmentSize: size})
		same(t, want, fold(t, s))
		op := put(n%3 + 1)
		require.NoError(t, s.Commit(ctx, []store.Op{op}))
		want.Apply(op)
		s.kill(t)
		used, files := blocks(t, dir)
		require.Less(t, used, int64(2*size), "after %d kills", n+1)
		require.LessOrEqual(t, files, fewSegments+5, "after %d kills", n+1)
	}
	s := mustOpen(t, dir, Options{SegmentSize: size})
	same(t, want, fold(t, s))
	require.NoError(t, s.Commit(ctx, []store.Op{put(9)}))
	require.NoError(t, s.Close())
	used, _ := blocks(t, dir)
	require.Less(t, used, int64(size), "closed")
	_, err := Verify(dir)
	require.NoError(t, err)
}
