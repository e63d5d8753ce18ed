package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// both runs a test on a real directory and on a simulated one.
func both(t *testing.T, test func(t *testing.T, d Dir)) {
	t.Run("a real directory", func(t *testing.T) {
		d, err := Make(filepath.Join(t.TempDir(), "a", "b"))
		require.NoError(t, err)
		test(t, d)
	})
	t.Run("a simulated directory", func(t *testing.T) { test(t, NewSim(1)) })
}

func create(t *testing.T, d Dir, name, content string) File {
	t.Helper()
	f, err := d.Create(name)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	require.NoError(t, err)
	return f
}

func read(t *testing.T, f File) string {
	t.Helper()
	n, err := f.Size()
	require.NoError(t, err)
	b := make([]byte, n)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	return string(b)
}

func TestFilesHoldWhatWasWritten(t *testing.T) {
	both(t, func(t *testing.T, d Dir) {
		f := create(t, d, "a", "hello")
		_, err := f.WriteAt([]byte("J"), 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Truncate(4))
		require.Equal(t, "Jell", read(t, f))
		require.NoError(t, f.Close())
		require.Error(t, f.Close())
		_, err = d.Create("a")
		require.ErrorIs(t, err, fs.ErrExist)
		_, err = d.Open("b")
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorIs(t, d.Remove("b"), fs.ErrNotExist)
		require.NoError(t, create(t, d, "b", "old").Close())
		require.NoError(t, d.Rename("a", "b"))
		names, err := d.Names()
		require.NoError(t, err)
		require.Equal(t, []string{"b"}, names)
		f, err = d.Open("b")
		require.NoError(t, err)
		require.Equal(t, "Jell", read(t, f))
		_, err = f.WriteAt([]byte("x"), 0)
		require.Error(t, err, "a file that was opened is read only")
		require.NoError(t, f.Close())
		require.NoError(t, d.Remove("b"))
		require.NoError(t, d.Sync())
	})
}

func TestAllocateMakesZeros(t *testing.T) {
	both(t, func(t *testing.T, d Dir) {
		f, err := d.Create("a")
		require.NoError(t, err)
		require.NoError(t, f.Allocate(100_000))
		n, err := f.Size()
		require.NoError(t, err)
		if n == 0 {
			t.Skip("the system cannot")
		}
		require.Equal(t, string(make([]byte, 100_000)), read(t, f))
		require.NoError(t, f.Close())
	})
}

func TestLockKeepsASecondOut(t *testing.T) {
	both(t, func(t *testing.T, d Dir) {
		l, err := d.Lock("lock")
		require.NoError(t, err)
		_, err = d.Lock("lock")
		require.ErrorIs(t, err, ErrLocked)
		require.NoError(t, l.Close())
		l, err = d.Lock("lock")
		require.NoError(t, err)
		require.NoError(t, l.Close())
	})
}

func TestExistingMakesNothing(t *testing.T) {
	_, err := Existing(filepath.Join(t.TempDir(), "a"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestCrashKeepsWhatWasSynced(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	seen := make(map[string]bool)
	for seed := range uint64(400) {
		s := NewSim(seed)
		f := create(t, s, "a", "synced")
		require.NoError(t, f.Sync())
		require.NoError(t, s.Sync())
		_, err := f.WriteAt(bytes.Repeat([]byte("u"), 1500), 6)
		require.NoError(t, err)
		g := create(t, s, "b", "new")
		require.NoError(t, g.Sync())
		after := s.Crash(seed, AnyLoss(rng)).Files()
		require.Equal(t, "synced", string(after["a"][:6]))
		switch rest := after["a"][6:]; {
		case len(rest) == 0:
			seen["lost"] = true
		case bytes.Contains(rest, []byte{0}):
			seen["reordered"] = true
		case len(rest) < 1500:
			seen["torn"] = true
		default:
			seen["whole"] = true
		}
		if b, ok := after["b"]; ok {
			require.Equal(t, "new", string(b))
			seen["name kept"] = true
		} else {
			seen["name lost"] = true
		}
	}
	require.Len(t, seen, 6, "%v", seen)
}

func TestFaults(t *testing.T) {
	broken := errors.New("broken")
	s := NewSim(1)
	f := create(t, s, "a", "first")
	require.NoError(t, f.Sync())
	require.NoError(t, s.Sync())
	_, err := f.WriteAt([]byte("SECOND"), 0)
	require.NoError(t, err)
	s.Fault = func(c Call) error {
		if c.Kind == "sync" {
			return broken
		}
		return nil
	}
	require.ErrorIs(t, f.Sync(), broken)
	s.Fault = nil
	require.NoError(t, f.Sync())
	require.Equal(t, "SECOND", read(t, f), "what could not be synced can still be read")
	require.Equal(t, "first", string(s.Crash(1, Tail).Files()["a"]),
		"a sync that follows a failed one makes nothing good")
	require.Equal(t, "SECOND", string(s.Crash(1, Nothing).Files()["a"]),
		"a killed process leaves what can be read")
}

func TestCapacity(t *testing.T) {
	s := NewSim(1)
	s.Capacity = 1000
	f := create(t, s, "a", "x")
	require.NoError(t, f.Allocate(600))
	g, err := s.Create("b")
	require.NoError(t, err)
	require.True(t, IsFull(g.Allocate(500)))
	n, err := g.WriteAt(make([]byte, 500), 0)
	require.True(t, IsFull(err))
	require.Equal(t, 400, n, "what fits is written")
	_, err = f.WriteAt(make([]byte, 600), 0)
	require.NoError(t, err, "what was allocated can be written")
	require.NoError(t, f.Truncate(100))
	_, err = g.WriteAt(make([]byte, 500), 0)
	require.NoError(t, err)
}
