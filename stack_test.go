//go:build !race && !lockcheck

package dunlin

import (
	"net"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// stackBytes is the memory of all stacks, when those that can shrink have shrunk.
func stackBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.StackInuse
}

// An idle connection waits on a stack of 2 KiB at most: what it calls before it waits must not make
// the stack grow, which happens when a function gets a large frame. The race detector makes all
// frames larger.
func TestAnIdleConnectionHasASmallStack(t *testing.T) {
	const n = 400
	b := newTestBroker(t, func(c *Config) { c.EventLoops = EventLoopsOff })
	defer b.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go b.Serve(l)
	before := stackBytes()
	for range n {
		nc, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer nc.Close()
		for _, p := range []packets.Packet{
			&packets.Connect{Version: packets.V5, CleanStart: true}, &packets.Pingreq{},
		} {
			wire, err := p.Append(nil, packets.V5)
			require.NoError(t, err)
			_, err = nc.Write(wire)
			require.NoError(t, err)
			_, err = nc.Read(make([]byte, 256))
			require.NoError(t, err)
		}
	}
	each := (int64(stackBytes()) - int64(before)) / n
	require.LessOrEqual(t, each, int64(2500), "bytes of stack for an idle connection")
}
