//go:build unix && (!linux || !(amd64 || arm64) || race || msan || asan)

package link

import "syscall"

// RawIO says that a syscall.RawConn gives a descriptor that ReadFD and WriteFD work on.
const RawIO = true

// ReadFD reads what is there and does not wait.
func ReadFD(fd uintptr, b []byte) (int, error) { return syscall.Read(int(fd), b) }

// WriteFD writes what the socket takes and does not wait.
func WriteFD(fd uintptr, b []byte) (int, error) { return syscall.Write(int(fd), b) }

// PeekFD says what a read would return now, and takes nothing.
func PeekFD(fd uintptr) (int, error) {
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
	return n, err
}
