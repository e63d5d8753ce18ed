package disk

import (
	"errors"
	"syscall"
)

// From winerror.h: ERROR_DISK_FULL, ERROR_HANDLE_DISK_FULL, ERROR_DISK_QUOTA_EXCEEDED.
const (
	errFull       syscall.Errno = 112
	errHandleFull syscall.Errno = 39
	errQuota      syscall.Errno = 1295
)

// IsFull tells whether err says that the disk, or what the user may have of it, is full.
func IsFull(err error) bool {
	return errors.Is(err, errFull) || errors.Is(err, errHandleFull) || errors.Is(err, errQuota)
}
