//go:build !linux

package link

import "net"

// An Acceptor accepts the connections of a listener. There are no event loops on this system, for
// which it would do more.
type Acceptor struct{ net.Listener }

// NewAcceptor returns the Acceptor of a listener.
func NewAcceptor(l net.Listener) *Acceptor { return &Acceptor{l} }
