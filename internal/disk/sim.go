package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// ErrCut is what a fault returns from the moment in which the power is cut: everything that is not
// synced is then at the mercy of [Sim.Crash].
var ErrCut = errors.New("the power is cut")

const sector = 512

// A Sim is a Dir in memory that tells what is durable from what is not. It must be made by
// [NewSim].
type Sim struct {
	// Fault, if set, is called ahead of each call that reads or changes something, one at a time.
	// If it returns an error the call fails with it: a write has then written a part, a rename,
	// create or remove may have been done, and a sync loses what it should have made durable,
	// although it can still be read. It may also wait, to make a slow disk. Set it while nothing
	// else is going on.
	Fault func(c Call) error
	// Capacity is how many bytes there is room for; 0: no limit. Beyond it calls fail with an error
	// that IsFull knows.
	Capacity int64
	// Block is the unit, in bytes, in which files take room; 0: one byte.
	Block int64

	mu      sync.Mutex // guards all below
	rng     *rand.Rand
	calls   int
	names   map[string]*inode // as they are seen
	durable map[string]*inode // as they are after a crash
	changes []change          // of names since the last Sync
	locked  map[string]bool
}

// A Call is what a Fault decides about.
type Call struct {
	N int // how many calls there have been, this one included
	// "create", "open", "remove", "rename", "names", "syncdir", "lock", "read", "write",
	// "truncate", "allocate", "sync"
	Kind string
	Name string // of the file, as it was opened
	Size int64  // bytes of a write or read; new length for truncate and allocate
}

// A change to names: to gets file, or nobody has the name if file is nil; from loses it.
type change struct {
	from, to string
	file     *inode
}

type inode struct {
	data    []byte // as it is read
	disk    []byte // as it is after a crash, but for what is pending
	pending []write
	lost    bool // a sync failed: disk and pending do not add up to data
}

// A write puts data at off, or sets the length to off if data is nil.
type write struct {
	off  int64
	data []byte
}

// NewSim returns an empty directory. What is left to chance depends on the seed.
func NewSim(seed uint64) *Sim {
	return &Sim{
		rng: rand.New(rand.NewPCG(seed, 2)), names: make(map[string]*inode),
		durable: make(map[string]*inode),
		locked:  make(map[string]bool),
	}
}

// SetFault sets Fault while the directory is in use.
func (s *Sim) SetFault(f func(c Call) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Fault = f
}

// SetCapacity sets Capacity while the directory is in use.
func (s *Sim) SetCapacity(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Capacity = n
}

// Calls returns how many calls there have been.
func (s *Sim) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Files returns the content of all files, as they are read.
func (s *Sim) Files() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := make(map[string][]byte)
	for name, f := range s.names {
		files[name] = slices.Clone(f.data)
	}
	return files
}

// Put makes a file with the content, durably, in place of the one that has the name.
func (s *Sim) Put(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &inode{data: slices.Clone(data), disk: slices.Clone(data)}
	s.names[name], s.durable[name] = f, f
}

// A Loss says how much of what was not synced a crash loses.
type Loss byte

// What a crash may do.
const (
	Everything Loss = iota // nothing that was not synced is there
	// all can be read: only the process was killed. What was not synced can still be lost later
	Nothing
	Tail // what was done first is there, the last write of it torn at some byte
	// any of the sectors are there, and any of the changes of names, in no order
	Sectors
	losses
)

// AnyLoss returns a Loss by chance.
func AnyLoss(rng *rand.Rand) Loss { return Loss(rng.IntN(int(losses))) }

// Crash returns the directory as it is found after the power was cut, or the process killed. It is
// independent of s, which may be asked again.
func (s *Sim) Crash(seed uint64, loss Loss) *Sim {
	s.mu.Lock()
	defer s.mu.Unlock()
	after := NewSim(seed)
	after.Capacity, after.Block = s.Capacity, s.Block
	if loss == Nothing {
		s.copyTo(after)
		return after
	}
	names := maps.Clone(s.durable)
	kept, share := 0, 1.0
	switch loss {
	case Tail:
		kept = after.rng.IntN(len(s.changes) + 1)
	case Sectors:
		kept, share = len(s.changes), after.rng.Float64()
	}
	for _, c := range s.changes[:kept] {
		if share == 1 || after.rng.Float64() < share {
			c.apply(names)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		after.Put(name, names[name].crash(after.rng, loss))
	}
	return after
}

// copyTo copies all files, synced or not.
func (s *Sim) copyTo(after *Sim) {
	copies := make(map[*inode]*inode)
	copied := func(f *inode) *inode {
		if f != nil && copies[f] == nil {
			c := *f
			c.data, c.disk, c.pending = slices.Clone(f.data), slices.Clone(f.disk),
				slices.Clone(f.pending)
			copies[f] = &c
		}
		return copies[f]
	}
	for name, f := range s.names {
		after.names[name] = copied(f)
	}
	for name, f := range s.durable {
		after.durable[name] = copied(f)
	}
	for _, c := range s.changes {
		after.changes = append(after.changes, change{c.from, c.to, copied(c.file)})
	}
}

// crash returns what is left of a file.
func (f *inode) crash(rng *rand.Rand, loss Loss) []byte {
	data := slices.Clone(f.disk)
	switch loss {
	case Tail:
		kept := rng.IntN(len(f.pending) + 1)
		for i, w := range f.pending[:kept] {
			if i == kept-1 && len(w.data) > 0 {
				w.data = w.data[:rng.IntN(len(w.data)+1)]
			}
			data = w.apply(data)
		}
	case Sectors:
		share := rng.Float64()
		for _, w := range f.pending {
			if w.data == nil {
				if rng.IntN(2) == 0 {
					data = w.apply(data)
				}
				continue
			}
			for _, part := range w.sectors() {
				if rng.Float64() < share {
					data = part.apply(data)
				}
			}
		}
	}
	return data
}

// sectors splits a write as a disk might.
func (w write) sectors() []write {
	var parts []write
	for off, data := w.off, w.data; len(data) > 0; {
		n := min(sector-int(off%sector), len(data))
		parts = append(parts, write{off, data[:n]})
		off, data = off+int64(n), data[n:]
	}
	return parts
}

// apply returns the content after the write.
func (w write) apply(data []byte) []byte {
	end := int(w.off) + len(w.data)
	if w.data == nil && end < len(data) {
		return data[:end]
	}
	if end > len(data) {
		data = append(data, make([]byte, end-len(data))...)
	}
	copy(data[w.off:], w.data)
	return data
}

func (c change) apply(names map[string]*inode) {
	delete(names, c.from)
	if c.file != nil {
		names[c.to] = c.file
	}
}

// call counts a call and asks the Fault. The lock is held.
func (s *Sim) call(kind, name string, size int64) error {
	s.calls++
	if s.Fault == nil {
		return nil
	}
	if err := s.Fault(Call{s.calls, kind, name, size}); err != nil {
		return &fs.PathError{Op: kind, Path: name, Err: err}
	}
	return nil
}

// rename notes a change of names. If it is to fail with an error it is done or not, by chance.
func (s *Sim) change(c change, err error) error {
	if err == nil || !errors.Is(err, ErrCut) && s.rng.IntN(2) == 0 {
		c.apply(s.names)
		s.changes = append(s.changes, c)
	}
	return err
}

// Create implements Dir.
func (s *Sim) Create(name string) (File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.call("create", name, 0)
	if err == nil && s.names[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	f := new(inode)
	if err := s.change(change{to: name, file: f}, err); err != nil {
		return nil, err
	}
	return &simFile{sim: s, inode: f, name: name, writable: true}, nil
}

// Open implements Dir.
func (s *Sim) Open(name string) (File, error) { return s.open(name, false) }

// Reopen implements Dir.
func (s *Sim) Reopen(name string) (File, error) { return s.open(name, true) }

func (s *Sim) open(name string, writable bool) (File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.call("open", name, 0); err != nil {
		return nil, err
	}
	f := s.names[name]
	if f == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &simFile{sim: s, inode: f, name: name, writable: writable}, nil
}

// Remove implements Dir.
func (s *Sim) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.call("remove", name, 0)
	if err == nil && s.names[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	return s.change(change{from: name}, err)
}

// Rename implements Dir.
func (s *Sim) Rename(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.call("rename", to, 0)
	f := s.names[from]
	if f == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	return s.change(change{from: from, to: to, file: f}, err)
}

// Names implements Dir.
func (s *Sim) Names() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.call("names", "", 0); err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(s.names)), nil
}

// Sync implements Dir.
func (s *Sim) Sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.call("syncdir", "", 0); err != nil {
		return err
	}
	for _, c := range s.changes {
		c.apply(s.durable)
	}
	s.changes = nil
	return nil
}

// Lock implements Dir. After Crash nothing is locked.
func (s *Sim) Lock(name string) (io.Closer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.call("lock", name, 0); err != nil {
		return nil, err
	}
	if s.locked[name] {
		return nil, fmt.Errorf("%s: %w", name, ErrLocked)
	}
	s.locked[name] = true
	return &simLock{s, name}, nil
}

type simLock struct {
	sim  *Sim
	name string
}

func (l *simLock) Close() error {
	l.sim.mu.Lock()
	defer l.sim.mu.Unlock()
	delete(l.sim.locked, l.name)
	return nil
}

// simFile is an open file of a Sim. It is used by one goroutine, or read by several.
type simFile struct {
	sim      *Sim
	inode    *inode
	name     string
	writable bool
	closed   bool
}

// call begins a call; the lock is held.
func (f *simFile) call(kind string, size int64, writes bool) error {
	if f.closed {
		return &fs.PathError{Op: kind, Path: f.name, Err: fs.ErrClosed}
	}
	if writes && !f.writable {
		return &fs.PathError{Op: kind, Path: f.name, Err: fs.ErrPermission}
	}
	return f.sim.call(kind, f.name, size)
}

func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	f.sim.mu.Lock()
	defer f.sim.mu.Unlock()
	if err := f.call("read", int64(len(p)), false); err != nil {
		return 0, err
	}
	if off >= int64(len(f.inode.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.inode.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	f.sim.mu.Lock()
	defer f.sim.mu.Unlock()
	n := len(p)
	err := f.call("write", int64(n), true)
	switch {
	case errors.Is(err, fs.ErrClosed), errors.Is(err, fs.ErrPermission):
		return 0, err
	case err != nil:
		n = f.sim.rng.IntN(n + 1)
	default:
		if room := f.sim.room(f.inode); room >= 0 && off+int64(n) > room {
			n, err = int(max(room-off, 0)), &fs.PathError{Op: "write", Path: f.name, Err: errFull}
		}
	}
	if n > 0 {
		f.inode.note(write{off, slices.Clone(p[:n])})
	}
	return n, err
}

// room returns how long the file can get, or -1 if there is no limit. The lock is held.
func (s *Sim) room(f *inode) int64 {
	if s.Capacity == 0 {
		return -1
	}
	room := s.Capacity
	for _, other := range s.names {
		if other != f {
			room -= s.blocks(int64(len(other.data)))
		}
	}
	return max(room-room%max(s.Block, 1), int64(len(f.data)))
}

// blocks is what a file of n bytes takes.
func (s *Sim) blocks(n int64) int64 {
	b := max(s.Block, 1)
	return (n + b - 1) / b * b
}

func (f *inode) note(w write) {
	f.data = w.apply(f.data)
	f.pending = append(f.pending, w)
}

func (f *simFile) Size() (int64, error) {
	f.sim.mu.Lock()
	defer f.sim.mu.Unlock()
	return int64(len(f.inode.data)), nil
}

func (f *simFile) Truncate(size int64) error { return f.resize("truncate", size) }

func (f *simFile) Allocate(size int64) error { return f.resize("allocate", size) }

func (f *simFile) resize(kind string, size int64) error {
	f.sim.mu.Lock()
	defer f.sim.mu.Unlock()
	if err := f.call(kind, size, true); err != nil {
		return err
	}
	if room := f.sim.room(f.inode); room >= 0 && size > room {
		return &fs.PathError{Op: kind, Path: f.name, Err: errFull}
	}
	f.inode.note(write{off: size})
	return nil
}

func (f *simFile) Sync() error {
	f.sim.mu.Lock()
	defer f.sim.mu.Unlock()
	err := f.call("sync", 0, true)
	switch {
	case errors.Is(err, ErrCut):
		return err
	case err != nil:
		f.inode.pending, f.inode.lost = nil, true
		return err
	}
	for _, w := range f.inode.pending {
		f.inode.disk = w.apply(f.inode.disk)
	}
	f.inode.pending = nil
	return nil
}

func (f *simFile) Close() error {
	f.sim.mu.Lock()
	defer f.sim.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}
