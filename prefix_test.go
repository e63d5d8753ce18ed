package dunlin

import (
	"encoding/binary"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// samplesFor returns packets as a client sends them, with as many fields as there are.
func samplesFor(v packets.Version) []packets.Packet {
	props := func(p packets.Properties) packets.Properties {
		if v < packets.V5 {
			return nil
		}
		return p.AppendUser("key", "value")
	}
	var none packets.Properties
	all := []packets.Packet{
		&packets.Connect{
			Version: v, CleanStart: true, ClientID: "prefix", Username: "user", HasUsername: true,
			Password: []byte("pass"), HasPassword: true,
			Properties: props(none),
			Will: &packets.Will{Topic: "will", Payload: []byte("payload"), QoS: 1,
				Properties: props(none)},
		},
		&packets.Publish{Topic: []byte("topic"), QoS: 2, PacketID: 1, Payload: []byte("payload"),
			Properties: props(none)},
		&packets.Ack{Kind: packets.TypePuback, PacketID: 300},
		&packets.Ack{Kind: packets.TypePubrec, PacketID: 300},
		&packets.Ack{Kind: packets.TypePubrel, PacketID: 300},
		&packets.Ack{Kind: packets.TypePubcomp, PacketID: 300},
		&packets.Subscribe{PacketID: 1, Properties: props(none),
			Subscriptions: []packets.Subscription{{Filter: "a/+", QoS: 1},
				{Filter: "$share/g/b", QoS: 2}}},
		&packets.Unsubscribe{PacketID: 1, Properties: props(none),
			Filters: []string{"a/+", "$share/g/b"}},
		&packets.Pingreq{},
		&packets.Disconnect{},
	}
	if v == packets.V5 {
		all = append(all,
			&packets.Ack{Kind: packets.TypePuback, PacketID: 300, Code: packets.QuotaExceeded,
				Properties: props(none)},
			&packets.Disconnect{Code: packets.DisconnectWithWill, Properties: props(none)},
			&packets.Auth{Code: packets.ReAuthenticate,
				Properties: props(none.AppendText(packets.AuthenticationMethod, "method"))})
	}
	return all
}

// TestEveryPrefixOfEveryPacketIsSurvived gives a broker each packet cut short at every place, its
// Remaining Length made to fit, and other clients notice nothing: what is cut within its fields
// ends the connection, the rest is a packet that is shorter.
func TestEveryPrefixOfEveryPacketIsSurvived(t *testing.T) {
	b := newTestBroker(t, nil)
	defer b.Close()
	refused, accepted := 0, 0
	for _, v := range []packets.Version{packets.V31, packets.V311, packets.V5} {
		for _, p := range samplesFor(v) {
			whole, err := p.Append(nil, v)
			require.NoError(t, err)
			h, err := packets.ParseHeader(whole, v)
			require.NoError(t, err)
			for n := range h.Remaining {
				cut := binary.AppendUvarint([]byte{whole[0]}, uint64(n))
				cut = append(cut, whole[h.Len:h.Len+n]...)
				f := &feed{t: t, sink: &sink{}}
				f.c, _ = b.adopt(b.ctx, f.sink)
				if p.Type() != packets.TypeConnect {
					f.packet(&packets.Connect{Version: v, CleanStart: true, ClientID: "c"}, v)
				}
				turn := b.getTurn()
				f.c.unpark(turn)
				turn.read.B = append(turn.read.B, cut...)
				err := f.c.input(turn)
				f.c.park(turn)
				if err == nil {
					accepted++
					err = net.ErrClosed
					if f.c.rest != nil {
						t.Errorf("%v %v cut to %d bytes is not taken as a whole packet", v,
							p.Type(), n)
					}
				} else {
					refused++
				}
				f.c.finish(err)
			}
		}
	}
	require.Zero(t, b.Stats().Panics)
	require.Zero(t, b.Stats().Connections)
	require.Greater(t, refused, 200)
	require.Less(t, accepted, 60, "most fields are not optional")
}
