//go:build unix && (!linux || !(amd64 || arm64) || race || msan || asan)

package dunlin

import "syscall"

// rawIO says that a syscall.RawConn gives a descriptor that readFD and writeFD work on.
const rawIO = true

func readFD(fd uintptr, b []byte) (int, error)  { return syscall.Read(int(fd), b) }
func writeFD(fd uintptr, b []byte) (int, error) { return syscall.Write(int(fd), b) }

// unreadFD says whether a read would return something at once, be it the end.
func unreadFD(fd uintptr) bool {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
	return err == nil
}
