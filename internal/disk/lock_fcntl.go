//go:build aix || (solaris && !illumos)

package disk

import (
	"io"
	"os"
	"syscall"
)

// tryLock takes a lock of the process: it does not keep a second holder in the same process out.
func tryLock(f *os.File) error {
	return syscall.FcntlFlock(f.Fd(), syscall.F_SETLK,
		&syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart})
}
