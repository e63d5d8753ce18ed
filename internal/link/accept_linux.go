package link

import (
	"net"
	"strconv"
	"syscall"
)

// An Acceptor accepts the connections of a listener. Those of a *net.TCPListener become TCPConns.
// Package net accepts the first of a burst, because it can wait for it; the others come without the
// system calls that it makes for each. One goroutine at a time uses it.
type Acceptor struct {
	from   net.Listener
	raw    syscall.RawConn // of from; nil: package net accepts all
	light  Lightener
	local  *net.TCPAddr // of all connections; nil: it is asked for each
	more   bool         // there may be another one at once
	learnt bool         // values are known
	values [len(inherited)]int

	accept func(fd uintptr) // acceptNow, made once
	// What acceptNow has got; failed: nothing.
	fd     int
	remote syscall.Sockaddr
	failed bool
}

// inherited are the options that package net gives its connections. Linux gives a connection those
// that the listening socket had when the client came. The last two tell whether it did.
var inherited = [...]struct{ level, name int }{
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE},
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL},
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT},
	{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE},
	{syscall.IPPROTO_TCP, syscall.TCP_NODELAY},
}

const telling = len(inherited) - 2 // the first option that tells

// NewAcceptor returns the Acceptor of a listener.
func NewAcceptor(l net.Listener) *Acceptor {
	a := &Acceptor{from: l}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return a
	}
	local, ok := tcp.Addr().(*net.TCPAddr)
	raw, err := tcp.SyscallConn()
	if !ok || err != nil {
		return a
	}
	a.raw, a.accept = raw, a.acceptNow
	if len(local.IP) > 0 && !local.IP.IsUnspecified() {
		a.local = local
	}
	return a
}

// Accept waits for the next connection.
func (a *Acceptor) Accept() (net.Conn, error) {
	if a.more {
		if c := a.next(); c != nil {
			return c, nil
		}
		a.more = false
	}
	nc, err := a.from.Accept() // which says what is wrong, if something is
	if err != nil || a.raw == nil {
		return nc, err
	}
	nc = a.light.Lighten(nc)
	if c, ok := nc.(*TCPConn); ok {
		a.more = a.learnt || a.learn(int(c.fd))
	}
	return nc, nil
}

// learn finds out which options package net has given the connection, and gives them to the
// listener. It returns false if that cannot be.
func (a *Acceptor) learn(fd int) bool {
	for i, o := range inherited {
		var err error
		if a.values[i], err = syscall.GetsockoptInt(fd, o.level, o.name); err != nil {
			return false
		}
	}
	a.learnt = a.raw.Control(func(listener uintptr) { a.give(int(listener)) }) == nil
	return a.learnt
}

// give gives a socket the options, until one is refused.
func (a *Acceptor) give(fd int) {
	for i, o := range inherited {
		if syscall.SetsockoptInt(fd, o.level, o.name, a.values[i]) != nil {
			return
		}
	}
}

// has says whether a connection has the options from the listener.
func (a *Acceptor) has(fd int) bool {
	for i := telling; i < len(inherited); i++ {
		o := inherited[i]
		if v, err := syscall.GetsockoptInt(fd, o.level, o.name); err != nil || v != a.values[i] {
			return false
		}
	}
	return true
}

// next returns a connection that waits, nil if there is none, or something is wrong.
func (a *Acceptor) next() net.Conn {
	a.failed = true
	if err := a.raw.Control(a.accept); err != nil || a.failed {
		return nil
	}
	fd, remote := a.fd, a.remote
	a.remote = nil
	if fd <= 2 { // see duplicate
		other := duplicate(uintptr(fd))
		syscall.Close(fd)
		if fd = other; fd < 0 {
			return nil
		}
	}
	if !a.has(fd) {
		a.give(fd)
	}
	c := &TCPConn{fd: int32(fd), local: a.local}
	if c.local == nil {
		local, _ := syscall.Getsockname(fd) // nil if the client has gone already
		c.local = new(net.TCPAddr)
		*c.local = addressOf(local, make(net.IP, net.IPv6len))
	}
	c.remote = addressOf(remote, c.ip[:])
	return c
}

// acceptNow accepts a connection that waits.
func (a *Acceptor) acceptNow(listener uintptr) {
	for {
		var err error
		a.fd, a.remote, err = syscall.Accept4(int(listener),
			syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		if err != syscall.EINTR && err != syscall.ECONNABORTED {
			a.failed = err != nil
			return
		}
	}
}

// addressOf returns what package net would make of an address. ip is memory for its IP.
func addressOf(a syscall.Sockaddr, ip net.IP) (x net.TCPAddr) {
	switch a := a.(type) {
	case *syscall.SockaddrInet4:
		x.IP, x.Port = append(ip[:0], a.Addr[:]...), a.Port
	case *syscall.SockaddrInet6:
		x.IP, x.Port = append(ip[:0], a.Addr[:]...), a.Port
		if a.ZoneId != 0 {
			x.Zone = strconv.Itoa(int(a.ZoneId))
			if i, err := net.InterfaceByIndex(int(a.ZoneId)); err == nil {
				x.Zone = i.Name
			}
		}
	}
	return x
}
