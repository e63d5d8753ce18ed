package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A crash may keep a rename and lose what was done to other names before it.
func TestNamesThatAreNotSyncedAreKeptInNoOrder(t *testing.T) {
	s := NewSim(1)
	for _, name := range []string{"first", "second"} {
		f, err := s.Create(name)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	require.NoError(t, s.Rename("second", "third"))
	seen := map[string]bool{}
	for seed := range uint64(200) {
		found := ""
		for _, name := range []string{"first", "second", "third"} {
			if _, ok := s.Crash(seed, Sectors).Files()[name]; ok {
				found += name + " "
			}
		}
		seen[found] = true
	}
	for _, want := range []string{"", "first ", "third ", "first third ", "second "} {
		require.True(t, seen[want], "%q never happens: %v", want, seen)
	}
	require.NoError(t, s.Sync())
	for seed := range uint64(20) {
		require.Len(t, s.Crash(seed, Sectors).Files(), 2, "what was synced is there")
	}
}

func TestEachNewFolderIsMadeDurable(t *testing.T) {
	top := t.TempDir()
	var synced []string
	sync := func(path string) error {
		synced = append(synced, path)
		return nil
	}
	require.NoError(t, makeDir(filepath.Join(top, "a", "b", "c"), sync))
	require.Equal(t, []string{top, filepath.Join(top, "a"), filepath.Join(top, "a", "b")}, synced)
	require.DirExists(t, filepath.Join(top, "a", "b", "c"))
	synced = nil
	require.NoError(t, makeDir(filepath.Join(top, "a", "b"), sync))
	require.Empty(t, synced, "what is there is left alone")
	require.NoError(t, os.WriteFile(filepath.Join(top, "file"), nil, 0o600))
	require.Error(t, makeDir(filepath.Join(top, "file", "b"), sync))
}
