package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
)

// roll makes a new segment the active one, with room for a record of so many bytes. Nothing waits
// in buf. s.mu is held.
func (s *Store) roll(need int64, adds bool) error {
	if err := s.clean(); err != nil {
		return s.refuse(err)
	}
	if s.file != nil {
		if err := s.sync(); err != nil {
			return err
		}
	}
	number := s.take()
	f, h, size, err := s.create(number, headerSize+need, adds)
	if disk.IsFull(err) && !adds && s.shorten() {
		f, h, size, err = s.create(number, headerSize+need, adds)
	}
	if err != nil {
		return s.refuse(err)
	}
	m := s.afterSealing()
	m.active = number
	if err := s.install(m); err != nil {
		f.Close()
		if s.err == nil {
			s.dir.Remove(segmentName(number))
		}
		return s.refuse(err)
	}
	s.file, s.head, s.size, s.off, s.unsynced = f, h, size, headerSize, false
	return nil
}

// shorten gives back the room that an earlier process has reserved behind what it has written to
// the active segment, which this one does not go on with, and says whether that was done. It does
// not wait until the segment is sealed, as there is no room for such a manifest.
func (s *Store) shorten() bool {
	return s.file == nil && s.man.active != 0 && s.giveBack(s.man.active, s.off)
}

// refuse ends a commit for which no segment could be made.
func (s *Store) refuse(err error) error {
	switch {
	case s.err != nil:
		return s.err
	case disk.IsFull(err):
		return s.full(err)
	}
	return s.fail(err)
}

// seal ends the active segment, if there is one. Nothing waits in buf. s.mu is held.
func (s *Store) seal() error {
	if s.man.active == 0 {
		return nil
	}
	if err := s.settle(); err != nil {
		return err
	}
	if s.file != nil {
		if err := s.sync(); err != nil {
			return err
		}
	}
	return s.install(s.afterSealing())
}

// afterSealing returns the manifest in which the active segment is sealed.
func (s *Store) afterSealing() manifest {
	m := s.man.clone()
	if m.active != 0 && s.last > m.last() {
		m.sealed = append(m.sealed,
			sealed{number: m.active, size: s.off, first: m.last() + 1, last: s.last})
	}
	m.active = 0
	return m
}

// install makes m the manifest. If that fails, and s goes on, the manifest is still the old one. A
// segment that is not active any more is closed, and its reserved room given back.
func (s *Store) install(m manifest) error {
	renamed, err := writeManifest(s.dir, &m)
	if err != nil {
		if renamed {
			return s.fail(err)
		}
		return err
	}
	old := s.man
	s.man = m
	if old.active == 0 || m.active == old.active {
		return nil
	}
	empty := m.last() == old.last()
	switch {
	case s.file != nil:
		s.file.Truncate(s.off) // what is behind it is not read
		s.file.Close()
		s.file = nil
	case !empty:
		s.giveBack(old.active, s.off)
	}
	if empty {
		s.discard(old.active)
	}
	return nil
}

// giveBack gives back the room that a process, since killed, has reserved behind the first size
// bytes of a segment, and says whether there was any. The segment is not written any more. If a
// crash undoes it, or it fails, it is done again when the store has been opened anew.
func (s *Store) giveBack(number uint64, size int64) bool {
	name := segmentName(number)
	f, err := s.dir.Reopen(name)
	if err != nil {
		s.opts.Logger.Warn("the room behind a segment cannot be given back", "file", name, "err",
			err)
		return false
	}
	defer f.Close()
	cut, err := cutZeros(f, size)
	if err != nil {
		s.opts.Logger.Warn("the room behind a segment cannot be given back", "file", name, "err",
			err)
	}
	return cut && err == nil
}

// cutZeros cuts the zeros off the end of a file, down to from, and tells whether there were any.
// Whatever else is there stays, such as half a record that a crash left.
func cutZeros(f disk.File, from int64) (cut bool, err error) {
	size, err := f.Size()
	if err != nil || size <= from {
		return false, err
	}
	end := size
	var buf, zero [64 << 10]byte
	for kept := 0; kept == 0 && end > from; {
		b := buf[:min(int64(len(buf)), end-from)]
		if n, err := f.ReadAt(b, end-int64(len(b))); n < len(b) {
			return false, err
		}
		if !bytes.Equal(b, zero[:len(b)]) { // comparing is much faster than trimming
			kept = len(bytes.TrimRight(b, "\x00"))
		}
		end -= int64(len(b) - kept)
	}
	if end == size {
		return false, nil
	}
	if err := f.Truncate(end); err != nil {
		return false, err
	}
	return true, f.Sync()
}

// create makes a segment of at least need bytes. A commit that adds leaves some room free for those
// that do not.
func (s *Store) create(number uint64, need int64, adds bool) (f disk.File, h header, size int64,
	err error) {
	if f, err = s.dir.Create(segmentName(number)); err != nil {
		return nil, header{}, 0, err
	}
	h = newHeader(number, s.man.store, kindLog, s.last+1)
	if size, err = s.reserve(f, need, adds); err == nil {
		_, err = f.WriteAt(h.append(nil), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = s.dir.Sync()
	}
	if err != nil {
		f.Close()
		s.dir.Remove(segmentName(number))
		return nil, header{}, 0, err
	}
	return f, h, size, nil
}

// reserve finds out how long a segment can get, and reserves the room.
func (s *Store) reserve(f disk.File, need int64, adds bool) (size int64, err error) {
	spare := min(s.opts.SegmentSize/16, (s.man.folded.size+s.man.grown()+s.off)/8)
	if adds {
		need += tailOf(need)
	}
	try := func() error {
		err := f.Allocate(size + spare)
		if err == nil && spare > 0 {
			err = f.Truncate(size)
		}
		if err != nil {
			err = errors.Join(err, f.Truncate(0)) // some of it may have been reserved
		}
		return err
	}
	size = max(s.opts.SegmentSize, need)
	for err = try(); disk.IsFull(err) && size > need; err = try() {
		size = max(size/2, need)
	}
	if disk.IsFull(err) && !adds {
		size, spare = need+spare/8, s.manifestRoom()
		for err = try(); disk.IsFull(err) && size > need; err = try() {
			size = need + (size-need)/2
		}
	}
	return size, err
}

// pageSize is the usual unit, in bytes, in which a file system gives room to a file.
const pageSize = 4 << 10

// manifestRoom is how much room the next manifest takes, in bytes.
func (s *Store) manifestRoom() int64 {
	m := s.afterSealing()
	n := int64(len(m.text())) + pageSize - 1
	return n - n%pageSize
}

// take returns the number of the next segment.
func (s *Store) take() uint64 {
	n := s.next
	s.next++
	return n
}

// settle makes durable, once, what was found in the directory. The process that left it may have
// been killed before it had synced, or after a sync had failed: then a sync alone does nothing. So
// the active segment is written again as it is.
func (s *Store) settle() error {
	if s.settled {
		return nil
	}
	if s.man.active != 0 && s.last > s.man.last() {
		if err := s.rewrite(segmentName(s.man.active), s.off); err != nil {
			return err
		}
	}
	if err := s.dir.Sync(); err != nil {
		return err
	}
	s.settled = true
	return nil
}

// rewrite writes the beginning of a file again, and syncs it.
func (s *Store) rewrite(name string, size int64) error {
	f, err := s.dir.Reopen(name)
	if err != nil {
		return err
	}
	buf := make([]byte, min(windowSize, size))
	for off := int64(0); err == nil && off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if n, rerr := f.ReadAt(buf, off); n < len(buf) {
			err = rerr
			break
		}
		_, err = f.WriteAt(buf, off)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// clean settles, removes segments that a crash left over, and gives back room that is reserved
// behind sealed ones, once.
func (s *Store) clean() error {
	if s.cleaned {
		return nil
	}
	if err := s.settle(); err != nil {
		return err
	}
	names, err := s.dir.Names()
	if err != nil {
		return err
	}
	listed := make(map[string]bool)
	for _, n := range s.man.numbers() {
		listed[segmentName(n)] = true
	}
	for _, name := range names {
		if _, ok := segmentNumber(name); ok && !listed[name] {
			if err := s.dir.Remove(name); err != nil {
				return err
			}
		}
	}
	for _, long := range s.long {
		s.giveBack(long.number, long.size)
	}
	s.cleaned, s.long = true, nil
	return nil
}

// discard removes segments that are not in the manifest any more, as soon as nobody reads them. One
// that cannot be removed is left to clean, after the store is opened again.
func (s *Store) discard(numbers ...uint64) {
	s.obsolete = append(s.obsolete, numbers...)
	if s.pins > 0 {
		return
	}
	for _, n := range s.obsolete {
		if err := s.dir.Remove(segmentName(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.opts.Logger.Warn("a segment that is not needed any more cannot be removed", "file",
				segmentName(n), "err", err)
		}
	}
	s.obsolete = nil
}

// pin returns the manifest of all that was committed, the active segment sealed, whose files stay
// until unpin.
func (s *Store) pin() (manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return manifest{}, s.err
	}
	if err := s.settle(); err != nil {
		return manifest{}, err
	}
	if err := s.flush(); err != nil {
		return manifest{}, err
	}
	s.pins++
	return s.afterSealing(), nil
}

func (s *Store) unpin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins--
	s.discard()
}
