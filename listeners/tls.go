package listeners

import (
	"crypto/tls"
	"net"
)

// NewTLS is tls.NewListener with connections that tell a broker how much of what a client has sent
// crypto/tls keeps. That can be a message of a handshake of 64 KiB, 256 KiB if client certificates
// are asked for, which never ends; and what a long one took stays with the connection. The broker
// counts it, and ends the connection if it has no memory for it. With tls.NewListener nothing
// counts it.
//
// Accept returns a *tls.Conn. NetConn of its NetConn is the connection that l has accepted.
func NewTLS(l net.Listener, config *tls.Config) net.Listener {
	return tls.NewListener(telling{l}, config)
}

type telling struct{ net.Listener }

func (l telling) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tellingConn{Conn: nc}, nil
}

// A tellingConn is below a tls.Conn. The goroutine that reads owns its fields.
type tellingConn struct {
	net.Conn
	pending int             // bytes that came since Delivered
	tell    func(int) error // nil: nobody has asked
}

// OnPending has f called with the number of bytes that have come since Delivered, whenever some
// have. An error of f becomes that of Read. The goroutine that reads calls OnPending and Delivered.
func (c *tellingConn) OnPending(f func(n int) error) { c.tell = f }

// Delivered says that Read of the tls.Conn has returned bytes. It returns how many had come for
// that.
func (c *tellingConn) Delivered() (n int) {
	n, c.pending = c.pending, 0
	return n
}

// NetConn returns the connection below.
func (c *tellingConn) NetConn() net.Conn { return c.Conn }

func (c *tellingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.pending += n
	if c.tell != nil && n > 0 {
		if terr := c.tell(c.pending); terr != nil {
			return 0, terr
		}
	}
	return n, err
}
