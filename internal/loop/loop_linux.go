package loop

import (
	"os"
	"syscall"
	"unsafe"
)

// told is what epoll says of a socket: its slot is in Fd, and the gen of that in Pad.
type told = syscall.EpollEvent

const (
	edge      = 1 << 31 // EPOLLET
	watched   = syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLPRI | edge
	nonBlock  = syscall.O_NONBLOCK
	closeExec = syscall.O_CLOEXEC
)

// open returns a loop without a Worker.
func open() (*loop, error) {
	fd, err := syscall.EpollCreate1(closeExec)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil { // so that os waits for it in the poller
		syscall.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	kick, _, e := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, closeExec|nonBlock, 0)
	if e != 0 {
		syscall.Close(fd)
		return nil, os.NewSyscallError("eventfd2", e)
	}
	l := &loop{fd: fd, file: os.NewFile(uintptr(fd), "epoll"), kick: int(kick)}
	l.raw, err = l.file.SyscallConn()
	if err == nil {
		err = l.watch(kick, kickSlot, 0)
	}
	if err != nil {
		l.file.Close()
		syscall.Close(l.kick)
		return nil, err
	}
	return l, nil
}

// watch has epoll tell of a socket: at once if there is something to read, and then each time that
// something comes, that the other side closes, or that there is an error.
func (l *loop) watch(fd uintptr, slot, gen int32) error {
	e := syscall.EpollEvent{Events: watched, Fd: slot, Pad: gen}
	return os.NewSyscallError("epoll_ctl",
		syscall.EpollCtl(l.fd, syscall.EPOLL_CTL_ADD, int(fd), &e))
}

// eventOf is what a User is told. At the place of urgent data a read returns less than there is, as
// it may at the end.
func eventOf(e *syscall.EpollEvent) Event {
	if e.Events&^syscall.EPOLLIN != 0 {
		return Readable | Drain
	}
	return Readable
}

// look asks epoll what has come, without waiting, and says whether anything has.
func (l *loop) look(fd uintptr) bool {
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, fd,
			uintptr(unsafe.Pointer(&l.events[0])), uintptr(len(l.events)), 0, 0, 0)
		switch e {
		case 0:
			l.got = int(n)
			return n > 0
		case syscall.EINTR:
		default:
			panic("BUG: epoll_pwait: " + e.Error())
		}
	}
}

// kickOff ends the wait of the Worker. Nobody reads what is written: each write is an event.
func (l *loop) kickOff() {
	one := uint64(1)
	syscall.RawSyscall(syscall.SYS_WRITE, uintptr(l.kick), uintptr(unsafe.Pointer(&one)), 8)
}

func (l *loop) closeKick() { syscall.Close(l.kick) }
