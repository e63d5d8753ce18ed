//go:build !unix

package mux

import "net"

// peek waits for the first byte of a connection.
func peek(nc net.Conn) (first byte, whole net.Conn, err error) { return readFirst(nc) }
