//go:build !unix

package link

import "errors"

// RawIO is false where the runtime does not wait for readiness: there all connections are read
// through a buffer of their own.
const RawIO = false

// ReadFD, WriteFD and PeekFD are never called.
func ReadFD(uintptr, []byte) (int, error)  { return 0, errors.ErrUnsupported }
func WriteFD(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
func PeekFD(uintptr) (int, error)          { return 0, errors.ErrUnsupported }
