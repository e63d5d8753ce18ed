//go:build unix && (!linux || !(amd64 || arm64) || race || msan || asan)

package dunlin

import "syscall"

// rawIO says that a syscall.RawConn gives a descriptor that readFD and writeFD work on.
const rawIO = true

func readFD(fd uintptr, b []byte) (int, error)  { return syscall.Read(int(fd), b) }
func writeFD(fd uintptr, b []byte) (int, error) { return syscall.Write(int(fd), b) }
