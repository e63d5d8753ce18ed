//go:build linux && (amd64 || arm64) && !race && !msan && !asan

package link

import (
	"syscall"
	"unsafe"
)

// RawIO says that a syscall.RawConn gives a descriptor that ReadFD and WriteFD work on.
const RawIO = true

// longWrite is a write that may keep the processor for longer than it costs to tell the scheduler
// of it.
const longWrite = 32 << 10

// ReadFD and WriteFD never wait (MSG_DONTWAIT, whatever the mode of the socket), so that, but for a
// long write, they need not tell the scheduler that they enter the kernel: telling it costs a sixth
// of what a message costs that comes alone, because others take the processor over and give it
// back. The tools that look for races and bad memory do not see into such a call: for them,
// fd_unix.go is built.
func ReadFD(fd uintptr, b []byte) (int, error) {
	n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), syscall.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// PeekFD says what a read would return now, and takes nothing.
func PeekFD(fd uintptr) (int, error) {
	var b [1]byte
	n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1,
		syscall.MSG_DONTWAIT|syscall.MSG_PEEK, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// WriteFD writes what the socket takes and does not wait.
func WriteFD(fd uintptr, b []byte) (int, error) {
	if len(b) >= longWrite {
		return syscall.Write(int(fd), b)
	}
	n, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}
