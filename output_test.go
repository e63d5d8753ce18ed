package dunlin

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// beside runs f in a bubble with a subscriber to t whose writes the test decides, and two
// publishers.
func beside(t *testing.T, f func(b *Broker, s *slowSocket, p, q *testClient)) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBroker(t, func(c *Config) { c.MaxPacketSize = 4 << 20 })
		l, done := serveMemory(t, b)
		l.Buffer = 8 << 20
		defer done()
		takes := func(b []byte) (int, error) { return len(b), nil }
		s := &slowSocket{try: takes, write: takes}
		var nc net.Conn
		nc, s.Conn = net.Pipe()
		served := make(chan error, 1)
		go func() { served <- b.ServeConn(t.Context(), s) }()
		for _, p := range []packets.Packet{connect("s"), subscribeTo("t", 0)} {
			wire, err := p.Append(nil, packets.V5)
			require.NoError(t, err)
			_, err = nc.Write(wire)
			require.NoError(t, err)
			synctest.Wait()
		}
		p, _ := newTestClient(t, dial(t, l), connect("p"))
		q, _ := newTestClient(t, dial(t, l), connect("q"))
		f(b, s, p, q)
		nc.Close()
		<-served
		p.nc.Close()
		q.nc.Close()
	})
}

func toT(size int) *packets.Publish {
	return &packets.Publish{Topic: []byte("t"), Payload: make([]byte, size)}
}

// What the connection has taken of a large buffer does not count against MaxOutboundBytes, although
// the flush that writes the buffer is not over.
func TestBytesThatAreTakenDoNotCount(t *testing.T) {
	beside(t, func(b *Broker, s *slowSocket, p, q *testClient) {
		gate := make(chan struct{})
		taken := 0
		s.try = func(b []byte) (int, error) {
			if taken > 0 {
				<-gate
			}
			taken += len(b)
			return len(b), nil
		}
		const size = 1100 << 10
		p.send(toT(size))
		synctest.Wait()
		require.Greater(t, taken, 0)
		require.Less(t, taken, size, "it takes a part, and then nothing")
		q.send(toT(size))
		time.Sleep(time.Second) // q has waited for the subscriber in vain
		q.send(toT(size))
		time.Sleep(time.Second)
		require.Zero(t, b.Stats().MessagesDropped, "less than MaxOutboundBytes was outstanding")
		q.send(toT(size))
		time.Sleep(time.Second)
		require.EqualValues(t, 1, b.Stats().MessagesDropped, "and now more")
		close(gate)
		synctest.Wait()
		require.Greater(t, taken, 3*size)
	})
}

// A client that takes a large buffer piece by piece has not stalled: publishers wait for it.
func TestAFlushThatGoesOnIsNoStall(t *testing.T) {
	beside(t, func(b *Broker, s *slowSocket, p, q *testClient) {
		s.try = func(b []byte) (int, error) {
			time.Sleep(time.Duration(len(b)>>10) * 12 * time.Microsecond) // 3 ms for 256 KiB
			return len(b), nil
		}
		p.send(toT(1900 << 10))
		synctest.Wait()
		for range 3 {
			q.send(toT(300 << 10))
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		require.Zero(t, b.Stats().MessagesDropped)
	})
}
