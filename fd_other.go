//go:build !unix

package dunlin

import "errors"

// rawIO is false where the runtime does not wait for readiness: there all connections are read through a buffer of their own.
const rawIO = false

func readFD(uintptr, []byte) (int, error)  { return 0, errors.ErrUnsupported }
func writeFD(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
func peekFD(uintptr) (int, error)          { return 0, errors.ErrUnsupported }
