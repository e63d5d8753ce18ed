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
	foldSync = 8 << 20 // how much of it is written between syncs, so that those of commits stay short

	fewSegments = 8       // that are short are left as they are
	littleLog   = 1 << 20 // which is compacted within a commit, if there are more

	// A full disk makes compactions follow each other, but for a pause, and ten times as long as the last one took. Each one that finds no
	// room doubles the pause, as it seals a segment that may be short.
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// Checkpoint implements store.Store. If the log has doubled, and grown by two segments at least, or has come to consist of many
// short ones, as each start of the process leaves one, it begins a compaction in the background and does not wait for it, but for one of
// many short segments that are 1 MiB together at most. A Commit that begins a segment does the same. See [Store.Compact].
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

// Compact leaves out of the log what has been superseded, and returns when that is done. Commits go on meanwhile. It need
// not be called: the store does so in the background now and then, see [Store.Checkpoint].
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

// compactIfGrown begins a compaction if it is worth while. The error is one after which nothing can be committed. s.mu is held.
func (s *Store) compactIfGrown() error {
	m := &s.man
	short := m.short(s.opts.SegmentSize) && time.Now().After(s.notBefore) // a full disk makes short ones
	switch {
	case short && m.folded.size+m.grown() <= littleLog:
		return s.compactLittle()
	case short, m.grown() >= max(2*s.opts.SegmentSize, m.folded.size):
		s.startCompaction(false)
	}
	return nil
}

// compactLittle compacts a log that is read and written in no time, and waits for it: so it is done however short processes live. The
// error is one after which nothing can be committed. s.mu is held.
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

// startCompaction compacts in the background, unless that is under way. s.mu is held.
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

// compacted tells how a compaction has ended that nobody asked for, and when the next one may follow. s.mu is held.
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

// compact replaces the sealed segments, of which the active one becomes one if all is set, by a folded one. s.compacting is held.
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

// replace puts f in the place of all segments of old. s.mu is held.
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

// fold writes what is left of the segments of m to a new one.
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

// flush writes the record that was begun, unless it is empty, and begins the next one.
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

// end writes what is left and syncs.
func (w *foldWriter) end() error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.file.Sync()
}
