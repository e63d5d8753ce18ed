package segment

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// TestFullTmpfs fills a real file system, which takes the right to mount one.
func TestFullTmpfs(t *testing.T) {
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(mount, syscall.MNT_DETACH)) })
	ballast := filepath.Join(mount, "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 3<<20), 0o600))
	dir := filepath.Join(mount, "store")
	var want *storetest.State
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, dir, Options{SegmentSize: 16 << 20})
		f := fillingOf(t, s)
		want = f.want
		require.Less(t, 100, f.fill())
		same(t, f.want, fold(t, s))

		require.NoError(t, os.Remove(ballast), "room comes from elsewhere")
		f.recovers(100)
		same(t, f.want, fold(t, s))

		f.drain()
		f.recovers(400) // what was taken out made room
		same(t, f.want, fold(t, s))
		require.NoError(t, s.Close())
	})

	_, err := Verify(dir)
	require.NoError(t, err)
	s := mustOpen(t, dir, Options{})
	same(t, want, fold(t, s))
	require.NoError(t, s.Close())
}
