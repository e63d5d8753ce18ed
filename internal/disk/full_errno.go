//go:build !(plan9 || windows)

package disk

import (
	"errors"
	"syscall"
)

const errFull = syscall.ENOSPC

// IsFull tells whether err says that the disk, or what the user may have of it, is full.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
