// Package disk is the little of a file system that a store in files needs: one directory of files
// that are written at offsets and synced. Dir is the real one; [Sim] is one in memory that forgets
// what was not synced, tears writes, fills up and fails, so that what a loss of power does can be
// tried at every point.
package disk

import (
	"errors"
	"io"
)

// ErrLocked is returned by Lock while another process, or another holder in this one, has the lock.
var ErrLocked = errors.New("in use already, by this or another process")

// ErrFull is an error that IsFull knows, for faults.
var ErrFull error = errFull

// A Dir is a directory. Names are those of files in it, without a path. What is done to names is
// durable after Sync. Before, a crash may undo any part of it, an earlier change as well as a later
// one. Methods may be called from any goroutine.
type Dir interface {
	// Create makes a new file, empty, to be read and written. It is an error (fs.ErrExist) if there
	// is one.
	Create(name string) (File, error)
	// Open opens a file to be read. It is an error (fs.ErrNotExist) if there is none.
	Open(name string) (File, error)
	// Reopen opens a file to be read and written. It is an error (fs.ErrNotExist) if there is none.
	Reopen(name string) (File, error)
	// Remove removes a file that is not open.
	Remove(name string) error
	// Rename gives a file that is not open another name, in place of the file that had it, in one
	// step.
	Rename(from, to string) error
	// Names returns the names of all files, sorted.
	Names() ([]string, error)
	// Sync makes durable what was done to names.
	Sync() error
	// Lock takes the lock that the name stands for, until the Closer is closed or the process ends.
	// It returns [ErrLocked] and does not wait if it is taken.
	Lock(name string) (io.Closer, error)
}

// A File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size returns the length in bytes.
	Size() (int64, error)
	// Truncate cuts or extends the file.
	Truncate(size int64) error
	// Allocate makes the file size bytes long and reserves the room for them on the disk, so that
	// writing them cannot fail for lack of it. Where the system cannot, it does nothing and returns
	// nil.
	Allocate(size int64) error
	// Sync makes durable what was written. After an error nothing that was written since the last
	// success may be relied upon, whatever a later Sync returns.
	Sync() error
}
