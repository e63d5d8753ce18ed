package segment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/internal/codec"
)

// A tail describes the end of a log.
type tail struct {
	next uint64 // number of the next segment
	end  int64  // of the records of the active segment
	last uint64 // commit
	torn bool   // something that is not a record follows
	// sealed ones whose files go on: a process was killed before it gave back what it had reserved
	long []sealed
}

// survey checks that the segments exist, and finds the end of the log.
func survey(d disk.Dir, m *manifest) (t tail, err error) {
	names, err := d.Names()
	if err != nil {
		return t, err
	}
	t.next = 1
	for _, n := range m.numbers() {
		t.next = max(t.next, n+1)
	}
	for _, s := range m.segments() {
		f, r, err := openSegment(d, m, s)
		if err != nil {
			return t, err
		}
		size, err := f.Size()
		f.Close()
		if err == nil && size < s.size {
			err = r.damaged(size, "the file ends, %d bytes too early", s.size-size)
		}
		if err != nil {
			return t, err
		}
		if size > s.size && s.number != m.folded.number {
			t.long = append(t.long, s)
		}
	}
	t.last = m.last()
	if m.active != 0 {
		if err := t.find(d, m); err != nil {
			return t, err
		}
	}
	listed := t.next
	for _, name := range names {
		if n, ok := segmentNumber(name); ok && n >= listed {
			if err := checkLeftOver(d, m, n); err != nil {
				return t, err
			}
			t.next = max(t.next, n+1)
		}
	}
	return t, nil
}

// find reads the active segment to its end.
func (t *tail) find(d disk.Dir, m *manifest) error {
	f, r, err := openSegment(d, m, sealed{number: m.active, size: -1, first: t.last + 1})
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		_, err = r.next()
		if err != nil {
			break
		}
	}
	t.end, t.last = r.off, r.last
	var damage *CorruptError
	if err == io.EOF || !errors.As(err, &damage) {
		if err == io.EOF {
			err = nil
		}
		return err
	}
	found, err := r.skip(flagSynced)
	switch {
	case err != nil:
		return err
	case found:
		return fmt.Errorf("%w (it was synced: a later record follows at offset %d)", damage, r.off)
	}
	blank, err := r.blank()
	t.torn = !blank
	return err
}

// checkLeftOver returns an error if a segment that is not in the manifest holds commits of the
// store: then the manifest is not the newest. A crash leaves only new segments without commits, and
// folded segments.
func checkLeftOver(d disk.Dir, m *manifest, number uint64) error {
	f, r, err := openSegment(d, m, sealed{number: number, size: -1})
	var damage *CorruptError
	if errors.As(err, &damage) {
		return nil // not even its header was written
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if r.kind == kindFolded {
		return nil
	}
	if _, err := r.next(); err == nil {
		return &CorruptError{manifestName, 0,
			fmt.Sprintf("%s is not in it and holds commit %d: it is not the latest manifest",
				r.name, r.last)}
	}
	return nil
}

// segments returns the folded segment and the sealed ones.
func (m *manifest) segments() []sealed {
	if m.folded.number == 0 {
		return m.sealed
	}
	return append([]sealed{m.folded}, m.sealed...)
}

// openSegment opens a segment and reads its header. A size of -1 means the size of the file. A
// first of 0 means any.
func openSegment(d disk.Dir, m *manifest, s sealed) (disk.File, *reader, error) {
	name := segmentName(s.number)
	f, err := d.Open(name)
	if err != nil {
		return nil, nil, fmt.Errorf("a segment of the store cannot be opened: %w", err)
	}
	if s.size < 0 {
		if s.size, err = f.Size(); err != nil {
			f.Close()
			return nil, nil, err
		}
	}
	r, err := newReader(f, name, s.number, m.store, s.size)
	if err == nil && s.first != 0 && r.first != s.first {
		err = r.damaged(40, "it begins with record %d, the manifest says %d", r.first, s.first)
	}
	if err == nil && s.first != 0 && (r.kind == kindFolded) != (s.number == m.folded.number) {
		err = r.damaged(12, "its kind is %d, which is not what the manifest says", r.kind)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, r, nil
}

// A scan reads all operations of the folded and sealed segments of a manifest.
type scan struct {
	dir  disk.Dir
	man  *manifest
	dec  codec.Decoder
	from sealed // the segment that is being read
	rec  record
}

// each calls do for each operation. If dec.Borrow is set, the operation is valid until do returns.
func (c *scan) each(ctx context.Context, do func(op store.Op) error) error {
	for _, s := range c.man.segments() {
		if err := c.segment(ctx, s, do); err != nil {
			return err
		}
	}
	return nil
}

func (c *scan) segment(ctx context.Context, s sealed, do func(op store.Op) error) error {
	f, r, err := openSegment(c.dir, c.man, s)
	if err != nil {
		return err
	}
	defer f.Close()
	c.from = s
	for {
		c.rec, err = r.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := c.record(ctx, r, do); err != nil {
			return err
		}
	}
	if r.last != s.last {
		return r.damaged(r.off, "it ends with record %d, the manifest says %d", r.last, s.last)
	}
	return nil
}

func (c *scan) record(ctx context.Context, r *reader, do func(op store.Op) error) error {
	for c.dec.Reset(c.rec.body); c.dec.More(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := c.rec.offset + recordSize + int64(c.dec.Offset())
		op, err := c.dec.Next()
		if err != nil {
			return r.damaged(at, "record %d holds what is %v", c.rec.number, err)
		}
		if err := do(op); err != nil {
			return err
		}
	}
	return nil
}

// errStop ends a scan whose caller needs no more operations.
var errStop = errors.New("stop")

// Load implements store.Store. It reads the log from disk, and needs a few MiB of memory. It may be
// called at any time. Commits continue meanwhile, and Load does not yield them.
func (s *Store) Load(ctx context.Context) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) {
		m, err := s.pin()
		if err != nil {
			yield(nil, err)
			return
		}
		defer s.unpin()
		c := scan{dir: s.dir, man: &m}
		err = c.each(ctx, func(op store.Op) error {
			if !yield(op, nil) {
				return errStop
			}
			return nil
		})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil && err != errStop {
			var damage *CorruptError
			if errors.As(err, &damage) {
				s.mu.Lock()
				s.fail(err)
				s.mu.Unlock()
			}
			yield(nil, fmt.Errorf("store/segment: %w", err))
		}
	}
}

var _ store.Store = (*Store)(nil)
