package dunlin

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the memory of packets that have come in part.

// A slowSender is a client that sends a large packet in two parts.
type slowSender struct {
	*peerConn
	rest []byte
}

// half sends the greater part of a PUBLISH of size bytes.
func (p *peerConn) half(topic string, size int) *slowSender {
	p.st.t.Helper()
	m := &packets.Publish{Topic: []byte(topic), Payload: make([]byte, size)}
	b, err := m.Append(nil, p.v)
	require.NoError(p.st.t, err)
	go p.nc.Write(b[:size-100])
	synctest.Wait()
	return &slowSender{p, b[size-100:]}
}

func (s *slowSender) finish() {
	go s.nc.Write(s.rest)
	synctest.Wait()
}

// readers starts a Broker that may read so many packets of 60,000 bytes at a time.
func (st *stage) readers(n int) {
	st.stop()
	st.cfg.MaxMemory = (n*65_536 + 100) * 100 / partialPercent
	st.start()
}

func TestPacketsThatComeInPartTakeTheirShareOfMemory(t *testing.T) {
	const clients, size, most = 60, 60_000, 30
	onStage(t, func(st *stage) {
		st.readers(most)
		s := st.clean("s")
		s.subscribe("#", packets.QoS0)
		var senders []*slowSender
		for i := range clients {
			senders = append(senders, st.clean(fmt.Sprint("c", i)).half(fmt.Sprint("t/", i), size))
		}
		require.Less(t, st.b.memory.Of(budget.Partial), int64(st.cfg.MaxMemory)/2)
		require.EqualValues(t, most*65_536, st.b.reading.Used())
		st.clean("other").send(message2("small", "x", packets.QoS0, 0))
		s.want(packets.TypePublish) // small ones go on
		for _, c := range senders {
			c.finish()
		}
		require.Len(t, s.got(), clients, "all come, in turn")
		require.Zero(t, st.b.reading.Used())
		require.Zero(t, st.b.reading.Waiting())
	})
}

// Whoever begins a large packet and does not go on makes nobody wait for long.
func TestALargePacketThatDoesNotComeMakesRoomForOthers(t *testing.T) {
	onStage(t, func(st *stage) {
		st.readers(2)
		s := st.clean("s")
		s.subscribe("#", packets.QoS0)
		a, b := st.clean("a").half("t/a", 60_000), st.clean("b").half("t/b", 60_000)
		time.Sleep(partialTime)
		require.False(t, a.ended(), "while nobody waits it has time")
		c := st.clean("c").half("t/c", 60_000)
		c.finish()
		s.wantNothing("there is no room to read it")
		time.Sleep(partialTime + time.Second)
		require.Len(t, s.got(), 1)
		ended := 0
		for _, x := range []*slowSender{a, b} {
			if x.ended() {
				ended++
				d := x.want(packets.TypeDisconnect)[0].(*packets.Disconnect)
				require.Equal(t, packets.QuotaExceeded, d.Code)
			} else {
				x.finish()
			}
		}
		require.Equal(t, 1, ended)
		require.Len(t, s.got(), 1, "the other one went on")
		require.Zero(t, st.b.reading.Used())
	})
}

// The room of a connection that ends is given back.
func TestAConnectionThatEndsWithinAPacketGivesItsRoomBack(t *testing.T) {
	onStage(t, func(st *stage) {
		st.readers(2)
		for range 10 {
			st.clean("a").half("t", 60_000).nc.Close()
			synctest.Wait()
		}
		require.Zero(t, st.b.reading.Used())
		p := st.clean("p")
		p.send(message2("t", string(make([]byte, 60_000)), packets.QoS1, 1))
		p.want(packets.TypePuback)
	})
}
