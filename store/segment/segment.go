package segment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/internal/safelog"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/internal/codec"
)

// ErrClosed is returned by the methods of a Store after Close.
var ErrClosed = errors.New("store/segment: closed")

// ErrLocked is wrapped by the errors of Open, Verify and Dump while the store is open elsewhere.
var ErrLocked = disk.ErrLocked

// Options of [Open]. The zero value is a good choice.
type Options struct {
	// Durability says what Commit waits for. The zero value is [store.DurabilitySynced].
	Durability store.Durability
	// SegmentSize is the length of a segment, and the room that is reserved on the disk at a time.
	// 0: 64 MiB; at most 1 TiB. When the disk is nearly full, segments are shorter. Two reserves
	// are kept for commits that only remove: a sixteenth of each segment, at most 256 KiB, and up
	// to a sixteenth of SegmentSize on the disk.
	SegmentSize int64
	// Logger logs torn ends that were ignored, and failed compactions. Nil: no log.
	Logger *slog.Logger
}

const (
	defaultSegmentSize = 64 << 20
	maxSegmentSize     = 1 << 40
	noneBuffer         = 256 << 10 // how much waits in memory with store.DurabilityNone
	keepBuffer         = 8 << 20   // a larger buffer is let go after use
	maxTail            = 256 << 10 // of a segment, for commits that add nothing
)

// A Store is a store.Store in a directory. Its methods may be called concurrently.
type Store struct {
	dir  disk.Dir
	opts Options
	lock io.Closer

	stop       context.CancelFunc // ends the background goroutine
	stopped    context.Context
	background sync.WaitGroup
	compacting sync.Mutex // held while a compaction runs; taken before mu

	mu   sync.Mutex // guards all below
	err  error      // why nothing can be committed any more
	man  manifest   // as it is in the directory
	next uint64     // number of the next segment
	file disk.File  // the active segment; nil: the next commit begins a new one
	head header     // of file
	size int64      // how long file is to get
	off  int64      // where the next record goes in the active segment
	last uint64     // the last commit that was written to it, or before
	// records that wait to be written, seldom more than the one of a Commit under way
	buf       []byte
	waiting   uint64        // how many records of earlier commits are in buf
	unsynced  bool          // records before off were written and not synced
	settled   bool          // what was there when the store was opened is durable
	cleaned   bool          // what a crash left over has been removed
	long      []sealed      // segments whose files went on behind them when the store was opened
	pins      int           // how many read segments; while any does, none is removed
	obsolete  []uint64      // segments to be removed
	notBefore time.Time     // when a compaction for want of room may begin
	pause     time.Duration // what is waited for in between
	encoder   codec.Encoder
	largest   int // how many bytes a batch may take; maxBody but in tests
}

// Open opens the store in the directory dir. It creates the directory if it does not exist. Open
// fails in these cases:
//
//   - The directory is neither empty nor a store.
//   - The store is open in this or another process. The error wraps [ErrLocked].
//   - The store is damaged. The error is a [*CorruptError].
//   - The Options are invalid.
//
// Open changes nothing in an existing store. Load writes the end of the log again, unchanged, in
// case it was not synced. The first Commit begins a new segment, and releases the room that a
// killed process had reserved.
func Open(dir string, opts Options) (*Store, error) {
	switch {
	case dir == "":
		return nil, errors.New("store/segment: Open: the name of the directory is empty")
	case opts.Durability > store.DurabilityNone:
		return nil, fmt.Errorf("store/segment: Options.Durability is %d, "+
			"use store.DurabilitySynced, store.DurabilityBuffered or store.DurabilityNone",
			opts.Durability)
	case opts.SegmentSize < 0:
		return nil, fmt.Errorf("store/segment: Options.SegmentSize is %d, which is negative; 0: %d",
			opts.SegmentSize, defaultSegmentSize)
	case opts.SegmentSize > maxSegmentSize:
		return nil, fmt.Errorf("store/segment: Options.SegmentSize is %d, at most %d is possible",
			opts.SegmentSize, int64(maxSegmentSize))
	}
	d, err := disk.Make(dir)
	if err != nil {
		return nil, fmt.Errorf("store/segment: %w", err)
	}
	s, err := open(d, opts)
	if err != nil {
		return nil, fmt.Errorf("store/segment: %s: %w", dir, err)
	}
	return s, nil
}

func open(d disk.Dir, opts Options) (*Store, error) {
	if opts.SegmentSize == 0 {
		opts.SegmentSize = defaultSegmentSize
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	opts.Logger = safelog.Logger(opts.Logger)
	lock, err := d.Lock(lockName)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: d, opts: opts, lock: lock, largest: maxBody}
	s.stopped, s.stop = context.WithCancel(context.Background())
	if err := s.recover(); err != nil {
		s.stop()
		lock.Close()
		return nil, err
	}
	return s, nil
}

// recover finds the end of the log.
func (s *Store) recover() (err error) {
	s.man, err = readManifest(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := checkEmpty(s.dir); err != nil {
			return err
		}
		s.man, s.next = newManifest(), 1
		_, err := writeManifest(s.dir, &s.man)
		return err
	}
	if err != nil {
		return err
	}
	t, err := survey(s.dir, &s.man)
	if err != nil {
		return err
	}
	s.next, s.off, s.last, s.long = t.next, t.end, t.last, t.long
	if t.torn {
		s.opts.Logger.Info("the log ended inside a record, as it may after a crash", "file",
			segmentName(s.man.active), "offset", t.end)
	}
	return nil
}

// checkEmpty returns an error if the directory for a new store has other files.
func checkEmpty(d disk.Dir) error {
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == lockName || name == manifestNext || strings.HasPrefix(name, ".") {
			continue
		}
		return fmt.Errorf(
			"the directory holds %s and no manifest: it is not a Dunlin store, or not a whole one",
			name)
	}
	return nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, ops []store.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(ops) == 0 {
		return nil
	}
	mark := len(s.buf)
	if err := s.encode(ops); err != nil {
		return err
	}
	if s.file == nil || s.off+int64(len(s.buf)) > s.end(ops) {
		if err := s.make(mark, ops); err != nil {
			return err
		}
		mark = 0
	}
	s.head.frame(s.buf[mark:], s.last+s.waiting+1, s.flags())
	s.waiting++
	if s.opts.Durability == store.DurabilityNone && len(s.buf) < noneBuffer {
		return nil
	}
	return s.write(mark, s.opts.Durability == store.DurabilitySynced)
}

// end returns how far ops may go in the active segment. Operations that add leave the rest to
// operations that do not. So the latter find room on a full disk, whatever has filled it.
func (s *Store) end(ops []store.Op) int64 {
	if store.Adds(ops) {
		return s.size - tailOf(s.size)
	}
	return s.size
}

// tailOf returns the room at the end of a segment that is kept for commits that add nothing.
func tailOf(size int64) int64 { return min(size/16, maxTail) }

// flags returns those of the record that is about to be framed.
func (s *Store) flags() uint32 {
	if s.unsynced || s.waiting > 0 {
		return 0
	}
	return flagSynced
}

// encode appends ops to buf as the body of a record, after room for its header. If they are too
// large for a record, buf stays as it was, and the store continues.
func (s *Store) encode(ops []store.Op) error {
	mark := len(s.buf)
	s.buf = append(s.buf, make([]byte, recordSize)...)
	s.encoder = codec.Encoder{}
	for _, op := range ops {
		s.buf = s.encoder.Append(s.buf, op)
		if len(s.buf)-mark-recordSize > s.largest {
			s.buf = slices.Clone(s.buf[:mark]) // not the memory of the batch
			return fmt.Errorf("store/segment: %w: %d operations take more than %d bytes",
				store.ErrTooLarge, len(ops), s.largest)
		}
	}
	return nil
}

// make begins a new segment with room for the record that begins at mark in buf. The bytes before
// mark go to the old segment. On success the record begins at 0, and nothing waits.
func (s *Store) make(mark int, ops []store.Op) error {
	rec := s.buf[mark:]
	if s.waiting > 0 {
		s.buf = s.buf[:mark]
		if err := s.write(mark, false); err != nil {
			return err
		}
	}
	s.buf = s.buf[:0]
	err := s.roll(int64(len(rec)), store.Adds(ops))
	if err != nil {
		return err
	}
	if err := s.compactIfGrown(); err != nil {
		return err
	}
	s.buf = append(s.buf, rec...) // it overlaps, and moves to the front
	return nil
}

// write writes buf. If there is no room, it drops the records from mark on.
func (s *Store) write(mark int, sync bool) error {
	n, err := s.file.WriteAt(s.buf, s.off)
	switch {
	case disk.IsFull(err):
		return s.undo(mark, n, err)
	case err != nil:
		return s.fail(err)
	}
	s.off += int64(len(s.buf))
	s.last += s.waiting
	s.buf, s.waiting, s.unsynced = s.buf[:0], 0, true
	if cap(s.buf) > keepBuffer {
		s.buf = nil
	}
	if sync {
		return s.sync()
	}
	return nil
}

func (s *Store) sync() error {
	if !s.unsynced {
		return nil
	}
	if err := s.file.Sync(); err != nil {
		return s.fail(err)
	}
	s.unsynced = false
	return nil
}

// undo removes the written part of buf from the file, and drops the records from mark on.
func (s *Store) undo(mark, written int, why error) error {
	if mark < len(s.buf) {
		s.waiting--
		s.buf = s.buf[:mark]
	}
	if written > 0 {
		err := s.file.Truncate(s.off)
		if err == nil {
			err = s.file.Sync()
		}
		if err != nil {
			return s.fail(errors.Join(why, err))
		}
	}
	return s.full(why)
}

// fail makes every later commit fail.
func (s *Store) fail(err error) error {
	s.err = fmt.Errorf("store/segment: %w", err)
	s.buf, s.waiting = nil, 0
	return s.err
}

// full records that there was no room, and looks for some.
func (s *Store) full(err error) error {
	if time.Now().After(s.notBefore) {
		s.startCompaction(true)
	}
	return fmt.Errorf("store/segment: %w: %w", store.ErrFull, err)
}

// Close implements store.Store. It writes and syncs everything, whatever the durability, and seals
// the log, so that later damage can be told from a crash.
func (s *Store) Close() error {
	s.mu.Lock()
	s.stop() // with mu held, so that no goroutine is started from now on
	s.mu.Unlock()
	s.background.Wait()
	s.compacting.Lock()
	defer s.compacting.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.err, ErrClosed) {
		return s.err
	}
	var err error
	if s.err == nil && s.file != nil {
		if err = s.flush(); err == nil {
			if sealing := s.seal(); sealing != nil { // the log is whole all the same
				s.opts.Logger.Warn("the log could not be sealed", "err", sealing)
			}
		}
	}
	if s.file != nil {
		err = errors.Join(err, s.file.Close())
		s.file = nil
	}
	s.err = ErrClosed
	return errors.Join(err, s.lock.Close())
}

// flush writes and syncs everything that waits.
func (s *Store) flush() error {
	if s.file == nil {
		return nil
	}
	if s.waiting > 0 {
		if err := s.write(len(s.buf), false); err != nil {
			return err
		}
	}
	return s.sync()
}
