//go:build !race && !lockcheck && !goroutines

package dunlin

import (
	"fmt"
	"net"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// An idleClient is a socket without anything else that takes memory in the program.
type idleClient int

func dialIdle(t *testing.T, addr *net.TCPAddr) idleClient {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	to := &syscall.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}
	require.NoError(t, syscall.Connect(fd, to))
	return idleClient(fd)
}

// ask sends a packet and waits for the n bytes of its answer.
func (fd idleClient) ask(t *testing.T, p packets.Packet, n int) {
	b, err := p.Append(nil, packets.V311)
	require.NoError(t, err)
	_, err = syscall.Write(int(fd), b)
	require.NoError(t, err)
	got, err := syscall.Read(int(fd), make([]byte, 64))
	require.NoError(t, err)
	require.Equal(t, n, got)
}

// An idle connection with one subscription takes little memory: connection, Session and
// subscription, without buffers, a goroutine or a place in the poller of Go.
func TestAnIdleConnectionTakesLittleMemory(t *testing.T) {
	const clients, most = 1000, 1350
	b := newTestBroker(t, nil)
	defer b.Close()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	go b.Serve(l) // ended by Close
	addr := l.Addr().(*net.TCPAddr)
	var before, after runtime.MemStats
	all := make([]idleClient, 0, 2*clients)
	defer func() {
		for _, fd := range all {
			syscall.Close(int(fd))
		}
	}()
	for i := range 2 * clients {
		if i == clients {
			runtime.GC()
			runtime.ReadMemStats(&before)
		}
		c := dialIdle(t, addr)
		all = append(all, c)
		id := fmt.Sprintf("client-%d", i)
		c.ask(t, &packets.Connect{Version: packets.V311, ClientID: id, CleanStart: true,
			KeepAlive: 60}, 4)
		c.ask(t, &packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "devices/" + id}}}, 5)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int64(after.HeapAlloc-before.HeapAlloc) / clients
	t.Logf("%d bytes of heap for each connection", each)
	require.LessOrEqual(t, each, int64(most))
	stack := (int64(after.StackInuse) - int64(before.StackInuse)) / clients
	require.Less(t, stack, int64(200), "no connection has a stack")
}
