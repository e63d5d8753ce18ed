//go:build unix

package mux

import (
	"io"
	"net"
	"syscall"
)

// peek waits for the first byte of a connection. If nc is a socket, the byte stays in the socket,
// and whole is nc.
func peek(nc net.Conn) (first byte, whole net.Conn, err error) {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return readFirst(nc)
	}
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var b [1]byte
	var n int
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, perr = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
			if perr != syscall.EINTR {
				return perr != syscall.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return 0, nil, err
	case perr != nil:
		return 0, nil, perr
	case n == 0:
		return 0, nil, io.EOF
	}
	return b[0], nc, nil
}
