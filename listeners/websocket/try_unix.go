//go:build unix

package websocket

import (
	"errors"
	"net"
	"syscall"
)

// tryFunc returns a function that writes to nc what goes without waiting, or nil if there is no
// way.
func tryFunc(nc net.Conn) func([]byte) (int, error) {
	switch x := nc.(type) {
	case interface{ TryWrite([]byte) (int, error) }:
		return x.TryWrite
	case *net.TCPConn:
		return tryRaw(x)
	case *net.UnixConn:
		return tryRaw(x)
	}
	return nil
}

func tryRaw(sc syscall.Conn) func([]byte) (int, error) {
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return func(b []byte) (n int, err error) {
		rawErr := raw.Write(func(fd uintptr) bool {
			for {
				n, err = syscall.Write(int(fd), b)
				if err != syscall.EINTR {
					return true // never wait
				}
			}
		})
		switch {
		case rawErr != nil:
			return 0, rawErr
		case errors.Is(err, syscall.EAGAIN):
			return 0, nil
		case err != nil:
			return 0, err
		}
		return n, nil
	}
}

// awaitFunc returns a function that waits for something to read from nc, nil if there is no way
// without a buffer.
func awaitFunc(nc net.Conn) func() error {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	var b [1]byte
	return func() error {
		waited := false
		return raw.Read(func(fd uintptr) bool {
			if waited {
				return true
			}
			waited = true
			_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
			return !errors.Is(err, syscall.EAGAIN)
		})
	}
}
