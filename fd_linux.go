//go:build linux && (amd64 || arm64) && !race && !msan && !asan

package dunlin

import (
	"syscall"
	"unsafe"
)

// rawIO says that a syscall.RawConn gives a descriptor that readFD and writeFD work on.
const rawIO = true

// longWrite is a write that may keep the processor for longer than it costs to tell the scheduler of it.
const longWrite = 32 << 10

// readFD and writeFD never wait (MSG_DONTWAIT, whatever the mode of the socket), so that, but for a long write, they need not tell the scheduler
// that they enter the kernel: telling it costs a sixth of what a message costs that comes alone, because others take the processor over and give
// it back. The tools that look for races and bad memory do not see into such a call: for them, fd_unix.go is built.
func readFD(fd uintptr, b []byte) (int, error) {
	n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), syscall.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// peekFD says what a read would return now, and takes nothing.
func peekFD(fd uintptr) (int, error) {
	var b [1]byte
	n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_DONTWAIT|syscall.MSG_PEEK, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

func writeFD(fd uintptr, b []byte) (int, error) {
	if len(b) >= longWrite {
		return syscall.Write(int(fd), b)
	}
	n, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}
