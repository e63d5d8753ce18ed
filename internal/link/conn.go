package link

import (
	"net"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/lock"
)

// A conn is a net.Conn whose methods, except for the addresses, are called with no lock held.
type conn struct{ net.Conn }

// Read is that of the net.Conn.
func (n conn) Read(b []byte) (int, error) {
	lock.NoneHeld("Read of a net.Conn")
	return n.Conn.Read(b)
}

// Write is that of the net.Conn.
func (n conn) Write(b []byte) (int, error) {
	lock.NoneHeld("Write of a net.Conn")
	return n.Conn.Write(b)
}

// Close is that of the net.Conn.
func (n conn) Close() error {
	lock.Brief("Close of a net.Conn")
	return n.Conn.Close()
}

// SetDeadline is that of the net.Conn.
func (n conn) SetDeadline(at time.Time) error {
	lock.Brief("SetDeadline of a net.Conn")
	return n.Conn.SetDeadline(at)
}

// SetReadDeadline is that of the net.Conn.
func (n conn) SetReadDeadline(at time.Time) error {
	lock.Brief("SetReadDeadline of a net.Conn")
	return n.Conn.SetReadDeadline(at)
}

// SetWriteDeadline is that of the net.Conn.
func (n conn) SetWriteDeadline(at time.Time) error {
	lock.Brief("SetWriteDeadline of a net.Conn")
	return n.Conn.SetWriteDeadline(at)
}
