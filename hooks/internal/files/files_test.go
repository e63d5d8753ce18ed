package files_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/internal/files"
	"github.com/stretchr/testify/require"
)

func TestWatch(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	write := func(s string) { require.NoError(t, os.WriteFile(name, []byte(s), 0o600)) }
	write("1")
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var loaded, reported []string
		seen := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(loaded)
		}
		last := func() string { return seen()[len(seen())-1] }
		f, err := files.New(func() error {
			b, err := os.ReadFile(name)
			mu.Lock()
			defer mu.Unlock()
			loaded = append(loaded, string(b))
			return err
		}, name)
		require.NoError(t, err)
		require.Equal(t, []string{"1"}, seen(), "New loads")

		write("22") // between New and Watch
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f.Watch(ctx, time.Second, func(err error) {
				if err == nil {
					reported = append(reported, "ok")
				} else {
					require.ErrorIs(t, err, os.ErrNotExist)
					reported = append(reported, "gone")
				}
			})
		}()
		pass := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		pass(1500 * time.Millisecond)
		require.Equal(t, []string{"1", "22"}, seen(), "a change before Watch is found at once")
		pass(10 * time.Second)
		require.Len(t, seen(), 2, "without a change nothing is loaded")

		write("333")
		pass(time.Second)
		require.Len(t, seen(), 2, "a file that may still be written is left alone")
		write("4444")
		pass(time.Second)
		require.Len(t, seen(), 2, "it was written again")
		pass(time.Second)
		require.Equal(t, []string{"1", "22", "4444"}, seen(), "it has come to rest")

		other := name + ".new"
		require.NoError(t, os.WriteFile(other, []byte("5555"), 0o600))
		require.NoError(t, os.Rename(other, name))
		pass(2 * time.Second)
		require.Equal(t, "5555", last(), "another file of the same size took its place")

		require.NoError(t, os.Remove(name))
		pass(10 * time.Second)
		require.Equal(t, []string{"ok", "ok", "ok", "gone"}, reported, "a failure is reported once")
		write("6")
		pass(2 * time.Second)
		require.Equal(t, "6", last(), "the file is back")

		write("77")
		require.NoError(t, f.Reload())
		n := len(seen())
		pass(5 * time.Second)
		require.Len(t, seen(), n, "what Reload has seen is not loaded again")
		cancel()
		<-ended
	})
}

// A load fails once for a reason that is not in the file, such as too many open files. It is tried
// again, and less and less often.
func TestWatchTriesAgainWhatHasFailed(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	write := func(s string) { require.NoError(t, os.WriteFile(name, []byte(s), 0o600)) }
	write("1")
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var fails error
		var loads []time.Duration // since began
		var reports []string
		began := time.Now()
		f, err := files.New(func() error {
			mu.Lock()
			defer mu.Unlock()
			loads = append(loads, time.Since(began))
			return fails
		}, name)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f.Watch(ctx, time.Second, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				reports = append(reports, fmt.Sprint(err))
			})
		}()
		// after lets time pass while loads end with err, and returns the loads and reports of that
		// time.
		after := func(d time.Duration, err error) ([]time.Duration, []string) {
			mu.Lock()
			fails, loads, reports = err, nil, nil
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return loads, reports
		}
		l, r := after(500*time.Millisecond, nil) // so that there is a look at 1 s, 2 s and so on
		require.Empty(t, l)
		require.Empty(t, r)

		write("22")
		l, r = after(20*time.Second, syscall.EMFILE)
		s := time.Second
		require.Equal(t, []time.Duration{2 * s, 3 * s, 5 * s, 9 * s, 17 * s}, l)
		require.Equal(t, []string{syscall.EMFILE.Error()}, r, "the same error is reported once")
		l, r = after(time.Hour, nil)
		require.Len(t, l, 1, "what was loaded is not loaded again")
		require.Equal(t, []string{"<nil>"}, r)

		write("333")
		_, r = after(10*time.Second, errors.New("a typo"))
		require.Equal(t, []string{"a typo"}, r)
		write("4444")
		_, r = after(2*time.Second, errors.New("a typo"))
		require.Equal(t, []string{"a typo"}, r, "a file that was written again is reported again")
		_, r = after(2*time.Second, syscall.EIO)
		require.Equal(t, []string{syscall.EIO.Error()}, r, "so is another error")
		l, r = after(time.Hour, syscall.EIO)
		require.InDelta(t, 3600/32, len(l), 10)
		require.Empty(t, r)

		require.ErrorIs(t, f.Reload(), syscall.EIO)
		after(0, nil)
		require.NoError(t, f.Reload())
		l, _ = after(time.Hour, nil)
		require.Empty(t, l)
		cancel()
		<-ended
	})
}

func TestNewReturnsTheErrorOfTheFirstLoad(t *testing.T) {
	want := errors.New("no")
	_, err := files.New(func() error { return want })
	require.Equal(t, want, err)
}

func TestWatchWithoutInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := files.New(func() error { return nil }, "does not exist")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		f.Watch(ctx, 0, nil)
		require.Error(t, ctx.Err(), "Watch returns when its context has ended")
	})
}
