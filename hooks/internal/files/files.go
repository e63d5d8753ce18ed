// Package files reads files of settings, and reads them again when they change.
package files

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"
)

// Interval is how often Watch looks where its caller does not say.
const Interval = 2 * time.Second

// A Set is one or several files that something was loaded from.
type Set struct {
	names []string
	load  func() error

	mu   sync.Mutex // held while loading
	seen stamp      // the files as they were just before the last load; guarded by mu
}

// New calls load for the first time and returns its error. load reads the named files anew and puts what they hold in
// force, or returns an error and changes nothing. It is never called twice at the same time.
func New(load func() error, names ...string) (*Set, error) {
	s := &Set{names: names, load: load}
	return s, s.Reload()
}

// Reload calls load.
func (s *Set) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = stampOf(s.names)
	return s.load()
}

// Watch looks at the files every interval (zero: Interval) until ctx ends, and calls Reload and then report, if it is not
// nil, with the result, when they have changed since the last load. A file that is being written is left alone: it must
// have been the same for one interval.
func (s *Set) Watch(ctx context.Context, interval time.Duration, report func(error)) {
	if interval <= 0 {
		interval = Interval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	last := stampOf(s.names)
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
			continue
		}
		if err := s.Reload(); report != nil {
			report(err)
		}
	}
}

// A stamp is what is known about some files without reading them. A file that cannot be looked at is nil.
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
