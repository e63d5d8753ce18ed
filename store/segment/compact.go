package segment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/internal/codec"
)

const (
	foldBody = 1 << 20 // how long the records of a folded segment get
	// how much of it is written between syncs, so that those of commits stay short
	foldSync = 8 << 20

	fewSegments = 8       // that are short are left as they are
	littleLog   = 1 << 20 // which is compacted within a commit, if there are more

	// A full disk makes compactions follow each other, but for a pause, and ten times as long as
	// the last one took. Each one that finds no room doubles the pause, as it seals a segment that
	// may be short.
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// Checkpoint implements store.Store. It begins a compaction in the background in two cases: when
// the log has doubled and grown by at least two segments, and when the log consists of many short
// segments, because each start of the process begins one. It does not wait for the compaction,
// unless the short segments are at most 1 MiB together. A Commit that begins a segment does the
// same. See [Store.Compact].
func (s *Store) Checkpoint(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.compactIfGrown()
}

// Compact removes superseded operations from the log, and returns when that is done. Commits
// continue meanwhile. You need not call it: the store does so in the background now and then, see
// [Store.Checkpoint].
func (s *Store) Compact(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopped, cancel)()
	s.compacting.Lock()
	defer s.compacting.Unlock()
	if err := s.compact(ctx, true); err != nil {
		if s.stopped.Err() != nil {
			return ErrClosed
		}
		return fmt.Errorf("store/segment: %w", err)
	}
	return nil
}

// compactIfGrown begins a compaction if it is worthwhile. After its error nothing can be committed
// any more. s.mu is held.
func (s *Store) compactIfGrown() error {
	m := &s.man
	short := m.short(s.opts.SegmentSize) && time.Now().
		After(s.notBefore) // a full disk makes short ones
	switch {
	case short && m.folded.size+m.grown() <= littleLog:
		return s.compactLittle()
	case short, m.grown() >= max(2*s.opts.SegmentSize, m.folded.size):
		s.startCompaction(false)
	}
	return nil
}

// compactLittle compacts a small log and waits for it. So even short-lived processes compact. After
// its error nothing can be committed any more. s.mu is held.
func (s *Store) compactLittle() error {
	if s.stopped.Err() != nil || !s.compacting.TryLock() {
		return nil
	}
	defer s.compacting.Unlock()
	begun := time.Now()
	err := s.clean()
	if err == nil {
		old, number := s.man.clone(), s.take()
		old.active = 0
		var f sealed
		if f, err = s.fold(s.stopped, &old, number); err == nil {
			err = s.replace(&old, f)
		} else {
			s.dir.Remove(segmentName(number))
		}
	}
	s.compacted(begun, err)
	return s.err
}

// startCompaction compacts in the background, unless a compaction is in progress. s.mu is held.
func (s *Store) startCompaction(all bool) {
	if s.stopped.Err() != nil || !s.compacting.TryLock() {
		return
	}
	s.background.Add(1)
	go func() { // Close waits for it
		defer s.background.Done()
		defer s.compacting.Unlock()
		begun := time.Now()
		err := s.compact(s.stopped, all)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.compacted(begun, err)
	}()
}

// compacted logs the result of a background compaction, and sets the time of the next one. s.mu is
// held.
func (s *Store) compacted(begun time.Time, err error) {
	if err != nil && s.stopped.Err() == nil && !disk.IsFull(err) {
		s.opts.Logger.Warn("the log could not be compacted", "err", err)
	}
	if disk.IsFull(err) {
		s.pause = min(max(2*s.pause, minPause), maxPause)
	} else {
		s.pause = minPause
	}
	s.notBefore = time.Now().Add(s.pause + 10*time.Since(begun))
}

// compact replaces the sealed segments by a folded one. With all set it first seals the active
// segment. s.compacting is held.
func (s *Store) compact(ctx context.Context, all bool) error {
	old, number, err := s.beginCompaction(all)
	if err != nil || len(old.sealed) == 0 {
		return err
	}
	f, err := s.fold(ctx, &old, number)
	if err != nil {
		s.dir.Remove(segmentName(number))
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return s.replace(&old, f)
}

// replace replaces all segments of old by f. s.mu is held.
func (s *Store) replace(old *manifest, f sealed) error {
	m := s.man.clone()
	m.folded, m.upTo, m.sealed = f, old.last(), m.sealed[len(old.sealed):]
	if err := s.install(m); err != nil {
		if s.err == nil {
			s.dir.Remove(segmentName(f.number))
		}
		return err
	}
	s.discard(old.numbers()...)
	return nil
}

func (s *Store) beginCompaction(all bool) (old manifest, number uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return manifest{}, 0, s.err
	}
	if err := s.clean(); err != nil {
		return manifest{}, 0, err
	}
	if all {
		if err = s.flush(); err == nil {
			err = s.seal()
		}
		if s.err != nil || err != nil && !disk.IsFull(err) {
			return manifest{}, 0, err
		}
	}
	old = s.man.clone()
	old.active = 0
	return old, s.take(), nil
}

// fold writes the live content of the segments of m to a new segment.
func (s *Store) fold(ctx context.Context, m *manifest, number uint64) (sealed, error) {
	c := scan{dir: s.dir, man: m, dec: codec.Decoder{Borrow: true}}
	left := newLeft()
	if err := c.each(ctx, func(op store.Op) error { left.apply(op); return nil }); err != nil {
		return sealed{}, err
	}
	if err := ctx.Err(); err != nil {
		return sealed{}, err
	}
	file, err := s.dir.Create(segmentName(number))
	if err != nil {
		return sealed{}, err
	}
	w := foldWriter{file: file, head: newHeader(number, m.store, kindFolded, 1)}
	if err = w.begin(); err == nil {
		err = left.write(ctx, &c, &w)
	}
	if err == nil {
		err = w.end()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = s.dir.Sync() // the manifest that names it must not be durable before its own name is
	}
	if err != nil {
		return sealed{}, err
	}
	return sealed{number: number, size: w.off, first: 1, last: w.records}, nil
}

// A foldWriter writes the records of a folded segment.
type foldWriter struct {
	file    disk.File
	head    header
	records uint64 // written
	off     int64  // where buf goes
	synced  int64  // up to where the file was synced
	buf     []byte // a record, begun
	enc     codec.Encoder
}

// op appends an operation.
func (w *foldWriter) op(op store.Op) error {
	w.buf = w.enc.Append(w.buf, op)
	if len(w.buf) < foldBody {
		return nil
	}
	return w.flush()
}

// begin writes the header of the segment.
func (w *foldWriter) begin() error {
	if _, err := w.file.WriteAt(w.head.append(nil), 0); err != nil {
		return err
	}
	w.off = headerSize
	w.buf = make([]byte, recordSize, foldBody+foldBody/4)
	return nil
}

// flush writes the current record, unless it is empty, and begins the next one.
func (w *foldWriter) flush() error {
	if len(w.buf) == recordSize {
		return nil
	}
	w.records++
	w.head.frame(w.buf, w.records, flagSynced)
	if _, err := w.file.WriteAt(w.buf, w.off); err != nil {
		return err
	}
	w.off += int64(len(w.buf))
	w.buf, w.enc = w.buf[:recordSize], codec.Encoder{}
	if w.off-w.synced < foldSync {
		return nil
	}
	w.synced = w.off
	return w.file.Sync()
}

// end writes the last record and syncs.
func (w *foldWriter) end() error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.file.Sync()
}
