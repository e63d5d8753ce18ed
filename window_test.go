package dunlin

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// The window of a client that acknowledges QoS 1 quickly grows while messages wait for it.
func TestTheWindowOfAnAbleClientGrows(t *testing.T) {
	receives := func(n uint32) func(*packets.Connect) {
		return func(c *packets.Connect) {
			c.Properties = c.Properties.AppendUint(packets.ReceiveMaximum, n)
		}
	}
	for _, tt := range []struct {
		name    string
		most    int // MaxInflight, 0: the default
		edit    func(*packets.Connect)
		qos     packets.QoS
		after   time.Duration // between two rounds of acknowledgements
		windows []int
	}{
		{"quick", 0, nil, packets.QoS1, 100 * time.Millisecond, []int{256, 256, 512, 1024, 2048}},
		{"at the default", 0, nil, packets.QoS1, 0,
			[]int{256, 256, 512, 1024, 2048, 4096, 8192, 8192}},
		{"up to MaxInflight", 700, nil, packets.QoS1, 0, []int{256, 256, 512, 700, 700}},
		{"a MaxInflight below the first window", 7, nil, packets.QoS1, 0, []int{7, 7, 7, 7}},
		{"up to Receive Maximum", 0, receives(300), packets.QoS1, 0, []int{256, 256, 300, 300}},
		{"slow", 0, nil, packets.QoS1, 500 * time.Millisecond, []int{256, 256, 256, 256}},
		{"QoS 2", 0, nil, packets.QoS2, 0, []int{256, 256, 256, 256}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.stop()
				st.cfg.MaxInflight, st.cfg.MaxQueuedMessages = tt.most, -1
				st.start()
				edit := tt.edit
				if edit == nil {
					edit = func(*packets.Connect) {}
				}
				s := st.dial("s", packets.V5, true, 3600, edit)
				s.want(packets.TypeConnack)
				s.subscribe("t", tt.qos)
				all := 0
				for _, n := range tt.windows {
					all += n
				}
				for range all + 1 {
					require.NoError(t, st.b.Publish(context.Background(),
						&Message{Topic: "t", QoS: tt.qos}))
				}
				var windows []int
				for range tt.windows {
					ids := s.takeAll()
					windows = append(windows, len(ids))
					time.Sleep(tt.after)
					if tt.qos == packets.QoS2 {
						s.acknowledge(packets.TypePubrec, ids)
						s.want(repeated(packets.TypePubrel, len(ids))...)
						s.acknowledge(packets.TypePubcomp, ids)
						continue
					}
					s.acknowledge(packets.TypePuback, ids)
				}
				require.Equal(t, tt.windows, windows)
				s.nc.Close() // the next connection has to show it anew
				for range 1000 {
					require.NoError(t, st.b.Publish(context.Background(),
						&Message{Topic: "t", QoS: tt.qos}))
				}
				s = st.dial("s", packets.V5, false, 3600, edit)
				s.want(append([]packets.Type{packets.TypeConnack},
					repeated(packets.TypePublish, tt.windows[0])...)...)
			})
		})
	}
}

func repeated(k packets.Type, n int) (all []packets.Type) {
	for range n {
		all = append(all, k)
	}
	return all
}

// takeAll returns the Packet Identifiers of the messages that have come.
func (p *peerConn) takeAll() (ids []uint16) {
	p.st.t.Helper()
	for _, q := range p.got() {
		ids = append(ids, q.(*packets.Publish).PacketID)
	}
	return ids
}

// acknowledge sends all in one write.
func (p *peerConn) acknowledge(k packets.Type, ids []uint16) {
	p.st.t.Helper()
	var b []byte
	var err error
	for _, id := range ids {
		b, err = ack(k, id).Append(b, p.v)
		require.NoError(p.st.t, err)
	}
	_, err = p.nc.Write(b)
	require.NoError(p.st.t, err)
}
