//go:build unix && (!linux || !(amd64 || arm64) || race || msan || asan)

package dunlin

import "syscall"

// rawIO says that a syscall.RawConn gives a descriptor that readFD and writeFD work on.
const rawIO = true

func readFD(fd uintptr, b []byte) (int, error)  { return syscall.Read(int(fd), b) }
func writeFD(fd uintptr, b []byte) (int, error) { return syscall.Write(int(fd), b) }

// peekFD says what a read would return now, and takes nothing.
func peekFD(fd uintptr) (int, error) {
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
	return n, err
}
