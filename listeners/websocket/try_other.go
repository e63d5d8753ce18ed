//go:build !unix

package websocket

import "net"

// tryFunc returns a function that writes to nc what goes without waiting, or nil if there is no
// way.
func tryFunc(nc net.Conn) func([]byte) (int, error) {
	if x, ok := nc.(interface{ TryWrite([]byte) (int, error) }); ok {
		return x.TryWrite
	}
	return nil
}

// awaitFunc returns nil: there is no way here.
func awaitFunc(net.Conn) func() error { return nil }
