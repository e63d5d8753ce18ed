package hooks

import (
	"iter"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// TapOptions say which packets a Tap shows, and when it ends. A packet has to meet all conditions
// that are given; without any, all packets of all clients are shown.
type TapOptions struct {
	// ClientID is the Client Identifier of the client whose packets are shown.
	ClientID string
	// Address is an IP address or a network, such as "10.0.0.0/8". The packets of clients from
	// there are shown, also before the broker knows who they are.
	Address string
	// Filter is a Topic Filter. Only PUBLISH packets are shown, and only those whose topic matches,
	// with the mount point of the client in front. A PUBLISH that has only a Topic Alias is shown
	// if the Tap has seen what the alias stands for.
	Filter string

	// MaxPackets and MaxBytes are how much is shown in all, For how long. Zero: 100,000 packets,
	// 64 MiB, 10 minutes. Negative: no such limit.
	MaxPackets, MaxBytes int
	For                  time.Duration
	// Buffer is how many packets wait for the reader, BufferBytes how much they take together. What
	// comes while there is no room is lost for the Tap, and counted. Zero: 1,024 packets, 4 MiB.
	Buffer, BufferBytes int
}

// A Tap shows the packets of Network Connections, in both directions. A slow reader of a Tap slows
// down nobody: it loses packets.
type Tap interface {
	// Packets yields what the Tap shows, and waits for it. It returns when the Tap has ended and
	// everything that waited was yielded. Only one goroutine may read at a time.
	Packets() iter.Seq[TapPacket]
	// Lost returns how many packets there was no room for.
	Lost() uint64
	// Stop ends the Tap. It may be called several times.
	Stop()
}

// A TapPacket is one packet that a Tap shows.
type TapPacket struct {
	Time time.Time
	// Conn is the number of the connection: the first one of a Broker has 1.
	Conn uint64
	// Client is what the broker knew of the client at this time. It is never nil, and must not be
	// modified. Its ID is empty while no valid CONNECT has come.
	Client *Client
	// Incoming is true for packets from the client.
	Incoming bool
	// Version is the protocol version of the packet.
	Version packets.Version
	// Data is the whole packet, or a part of a packet that could not be decoded. It belongs to the
	// receiver. A password in a CONNECT and Authentication Data are replaced by "***", and a User
	// Name by the result of ShownUser, which hides tokens.
	Data []byte
	// Withheld is true if Data is only the beginning of the packet, because the broker could not
	// tell where in it a password is.
	Withheld bool
	// Lost is how many packets were lost before this one.
	Lost uint64
}

// Packet decodes the packet. The error is that of packets.Decode.
func (p *TapPacket) Packet() (packets.Packet, error) {
	q, _, err := packets.Decode(p.Data, p.Version, packets.Limits{})
	return q, err
}
