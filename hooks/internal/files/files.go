// Package files reads files of settings, and reads them again when they change.
package files

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"
)

// Interval is the default interval of Watch.
const Interval = 2 * time.Second

// A Set is the files that some settings were loaded from.
type Set struct {
	names []string
	load  func() error

	mu sync.Mutex // held while loading
	// The files as they were just before the last load that succeeded; guarded by mu
	seen stamp
}

// New calls load for the first time and returns its error. load reads the named files and applies
// their content, or returns an error and changes nothing. Calls of load never overlap.
func New(load func() error, names ...string) (*Set, error) {
	s := &Set{names: names, load: load}
	return s, s.Reload()
}

// Reload calls load.
func (s *Set) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := stampOf(s.names)
	err := s.load()
	if err == nil {
		s.seen = seen
	}
	return err
}

// maxPause is the maximum number of intervals between two attempts of a load that fails.
const maxPause = 32

// Watch checks the files every interval (zero: Interval) until ctx ends. It calls Reload when they
// have changed since the last successful load, and have then stayed the same for one interval,
// because a file may still be being written. It retries a failed load after one interval, then two,
// four and so on: the reason may lie outside of the files. If report is not nil, it is called with
// the result of each load, except when the same files fail with the same error as before.
// files fail with the same error as before.
func (s *Set) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	if interval <= 0 {
		interval = Interval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	last := stampOf(s.names)
	var failed error // of the load before; nil: it succeeded, or the files have changed
	pause, skip := 0, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		before := last
		last = stampOf(s.names)
		s.mu.Lock()
		loaded := last.equal(s.seen)
		s.mu.Unlock()
		if loaded || !last.equal(before) {
			failed, pause, skip = nil, 0, 0
			continue
		}
		if skip > 0 {
			skip--
			continue
		}
		err := s.Reload()
		if report != nil && (err == nil || failed == nil || err.Error() != failed.Error()) {
			report(err)
		}
		failed = err
		skip, pause = pause, min(2*pause+1, maxPause-1)
	}
}

// A stamp is what can be known about some files without reading them. The entry of a file is nil if
// it cannot be examined.
type stamp []os.FileInfo

func stampOf(names []string) stamp {
	s := make(stamp, len(names))
	for i, name := range names {
		if info, err := os.Stat(name); err == nil {
			s[i] = info
		}
	}
	return s
}

func (s stamp) equal(t stamp) bool {
	return slices.EqualFunc(s, t, func(a, b os.FileInfo) bool {
		if a == nil || b == nil {
			return a == nil && b == nil
		}
		return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
	})
}
