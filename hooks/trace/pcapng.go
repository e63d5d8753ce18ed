package trace

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file writes pcapng (draft-ietf-opsawg-pcapng) with raw IP packets. The TCP connections in it
// are made up: each begins with a handshake and has port 1883 at the server. A connection that was
// there before the trace also begins with a CONNECT and a CONNACK that are made up, because nobody
// could tell the protocol version otherwise. The comments of these packets say so.

// The blocks and options that are written.
const (
	blockSection   = 0x0A0D0D0A
	blockInterface = 1
	blockPacket    = 6
	byteOrder      = 0x1A2B3C4D
	linkRaw        = 101 // LINKTYPE_RAW: an IP packet
	optComment     = 1
	optFlags       = 2 // of a packet
	optUserAppl    = 4 // of a section
	optResolution  = 9 // of an interface
)

const (
	serverPort      = 1883
	maxSegment      = 32 << 10
	maxStreams      = 10_000 // that a file knows of; those beyond begin anew
	madeUp          = "made up by the trace: "
	tcpFIN     byte = 1
	tcpSYN     byte = 2
	tcpPSH     byte = 8
	tcpACK     byte = 16
)

var le = binary.LittleEndian

// appendBlock appends a block. Its body is padded already.
func appendBlock(dst []byte, kind uint32, body []byte) []byte {
	n := uint32(12 + len(body))
	dst = le.AppendUint32(le.AppendUint32(dst, kind), n)
	return le.AppendUint32(append(dst, body...), n)
}

func appendOption(dst []byte, code uint16, value []byte) []byte {
	dst = le.AppendUint16(le.AppendUint16(dst, code), uint16(len(value)))
	return pad(append(dst, value...), len(value))
}

// pad appends zeros behind n bytes, so that they end at a multiple of 4.
func pad(dst []byte, n int) []byte {
	for ; n%4 != 0; n++ {
		dst = append(dst, 0)
	}
	return dst
}

type pcapEncoder struct {
	streams map[uint64]*stream
	made    uint32 // streams so far
	body    []byte
	segment []byte
}

// A stream is a TCP connection that is made up.
type stream struct {
	client, server netip.AddrPort
	next           [2]uint32 // sequence numbers: of the server, of the client
	packets        int
}

func (e *pcapEncoder) begin(dst []byte) []byte {
	e.streams = make(map[uint64]*stream)
	b := le.AppendUint32(nil, byteOrder)
	b = le.AppendUint16(le.AppendUint16(b, 1), 0) // version 1.0
	b = le.AppendUint64(b, 0xFFFF_FFFF_FFFF_FFFF) // length not given
	b = appendOption(b, optUserAppl, []byte("Dunlin"))
	dst = appendBlock(dst, blockSection, le.AppendUint32(b, 0))
	b = le.AppendUint16(le.AppendUint16(nil, linkRaw), 0)
	b = le.AppendUint32(b, 0) // packets are not cut
	b = appendOption(b, optResolution, []byte{9})
	return appendBlock(dst, blockInterface, le.AppendUint32(b, 0))
}

func (e *pcapEncoder) add(dst []byte, p *hooks.TapPacket) []byte {
	s := e.streams[p.Conn]
	connects := p.Incoming && len(p.Data) > 0 && packets.Type(p.Data[0]>>4) == packets.TypeConnect
	if s != nil && connects && s.packets > 0 { // another connection has the number
		dst = e.tcp(dst, s, p, segment{incoming: true, flags: tcpFIN | tcpACK})
		s = nil
	}
	if s == nil {
		s = e.open(p)
		dst = e.handshake(dst, s, p)
		if !connects {
			dst = e.greet(dst, s, p)
		}
	}
	s.packets++
	comment := ""
	if p.Lost > 0 {
		comment = fmt.Sprintf("%d packets are missing before this one", p.Lost)
	}
	if p.Withheld {
		comment = fmt.Sprintf("a %v that cannot be decoded is not shown, because it may hold a "+
			"password. It begins with %x", packets.Type(p.Data[0]>>4), p.Data)
		return e.tcp(dst, s, p, segment{incoming: p.Incoming, flags: tcpACK, comment: comment})
	}
	return e.data(dst, s, p, segment{incoming: p.Incoming, data: p.Data, comment: comment})
}

// open makes up a connection.
func (e *pcapEncoder) open(p *hooks.TapPacket) *stream {
	if len(e.streams) >= maxStreams {
		clear(e.streams)
	}
	e.made++
	s := &stream{next: [2]uint32{1000, 1000}}
	s.client, s.server = addrOf(p.Client.RemoteAddr), addrOf(p.Client.LocalAddr)
	if !s.client.IsValid() {
		n := e.made
		ip := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
		s.client = netip.AddrPortFrom(ip, 40000)
	}
	if port := s.client.Port(); port <= serverPort { // may be that of another protocol
		s.client = netip.AddrPortFrom(s.client.Addr(), port+50000)
	}
	server := s.server.Addr()
	if !server.IsValid() {
		server = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if server.Is4() != s.client.Addr().Is4() { // both in one family
		server = netip.AddrFrom16(server.As16())
		s.client = netip.AddrPortFrom(netip.AddrFrom16(s.client.Addr().As16()), s.client.Port())
	}
	s.server = netip.AddrPortFrom(server, serverPort)
	e.streams[p.Conn] = s
	return s
}

// addrOf returns the zero value for what is not an address with a port.
func addrOf(a fmt.Stringer) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

func (e *pcapEncoder) handshake(dst []byte, s *stream, p *hooks.TapPacket) []byte {
	who := fmt.Sprintf("%sTCP connection of client %q from %s", madeUp, p.Client.ID,
		address(p.Client))
	dst = e.tcp(dst, s, p, segment{incoming: true, flags: tcpSYN, comment: who})
	dst = e.tcp(dst, s, p, segment{flags: tcpSYN | tcpACK})
	return e.tcp(dst, s, p, segment{incoming: true, flags: tcpACK})
}

// greet makes up the CONNECT and the CONNACK of a connection that was there before.
func (e *pcapEncoder) greet(dst []byte, s *stream, p *hooks.TapPacket) []byte {
	c := greeting(p)
	ack := &packets.Connack{}
	b, err := c.Append(nil, c.Version)
	a, bad := ack.Append(nil, c.Version)
	if err != nil || bad != nil {
		return dst
	}
	comment := madeUp + "the connection was there before"
	dst = e.data(dst, s, p, segment{incoming: true, data: b, comment: comment})
	return e.data(dst, s, p, segment{data: a, comment: comment})
}

// greeting is the CONNECT that p might have had.
func greeting(p *hooks.TapPacket) *packets.Connect {
	c := &packets.Connect{
		Version: p.Version, ClientID: p.Client.ID, CleanStart: p.Client.CleanStart,
		KeepAlive: p.Client.KeepAlive, HasUsername: p.Client.HasUsername,
		Username: p.Client.Username,
	}
	if c.Version == 0 {
		c.Version = packets.V311
	}
	if c.ClientID == "" {
		c.CleanStart = true
	}
	return c
}

// A segment is what is sent on a stream.
type segment struct {
	incoming bool
	flags    byte
	data     []byte
	comment  string // of the first part
}

// data appends the parts of a packet.
func (e *pcapEncoder) data(dst []byte, s *stream, p *hooks.TapPacket, x segment) []byte {
	x.flags = tcpPSH | tcpACK
	for rest := x.data; len(rest) > 0; x.comment = "" {
		n := min(len(rest), maxSegment)
		x.data, rest = rest[:n], rest[n:]
		dst = e.tcp(dst, s, p, x)
	}
	return dst
}

// tcp appends a block with one segment.
func (e *pcapEncoder) tcp(dst []byte, s *stream, p *hooks.TapPacket, x segment) []byte {
	from, to, mine, its := s.server, s.client, 0, 1
	direction := uint32(2) // outbound
	if x.incoming {
		from, to, mine, its, direction = s.client, s.server, 1, 0, 1
	}
	ip := appendIP(e.segment[:0], from.Addr(), to.Addr(), 20+len(x.data))
	at := len(ip)
	ip = binary.BigEndian.AppendUint16(ip, from.Port())
	ip = binary.BigEndian.AppendUint16(ip, to.Port())
	ip = binary.BigEndian.AppendUint32(ip, s.next[mine])
	ack := s.next[its]
	if x.flags&tcpACK == 0 {
		ack = 0
	}
	ip = binary.BigEndian.AppendUint32(ip, ack)
	ip = append(ip, 5<<4, x.flags, 0xFF, 0xFF, 0, 0, 0, 0)
	ip = append(ip, x.data...)
	sum := checksum(pseudo(from.Addr(), to.Addr(), len(ip)-at), ip[at:])
	binary.BigEndian.PutUint16(ip[at+16:], sum)
	e.segment = ip
	s.next[mine] += uint32(len(x.data))
	if x.flags&(tcpSYN|tcpFIN) != 0 {
		s.next[mine]++
	}
	ns := uint64(p.Time.UnixNano())
	b := le.AppendUint32(e.body[:0], 0) // interface
	b = le.AppendUint32(le.AppendUint32(b, uint32(ns>>32)), uint32(ns))
	b = le.AppendUint32(le.AppendUint32(b, uint32(len(ip))), uint32(len(ip)))
	b = pad(append(b, ip...), len(ip))
	if x.comment != "" {
		b = appendOption(b, optComment, []byte(x.comment[:min(len(x.comment), 1024)]))
	}
	b = appendOption(b, optFlags, le.AppendUint32(nil, direction))
	e.body = le.AppendUint32(b, 0)
	return appendBlock(dst, blockPacket, e.body)
}

// appendIP appends the IP header for n bytes of TCP.
func appendIP(dst []byte, from, to netip.Addr, n int) []byte {
	if !from.Is4() {
		dst = append(dst, 6<<4, 0, 0, 0)
		dst = binary.BigEndian.AppendUint16(dst, uint16(n))
		dst = append(dst, 6, 64) // TCP, hop limit
		return append(append(dst, from.AsSlice()...), to.AsSlice()...)
	}
	at := len(dst)
	dst = append(dst, 4<<4|5, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(20+n))
	dst = append(dst, 0, 0, 0x40, 0, 64, 6, 0, 0) // not fragmented, TTL, TCP
	dst = append(append(dst, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(dst[at+10:], checksum(0, dst[at:]))
	return dst
}

// pseudo is the sum of the pseudo header of n bytes of TCP.
func pseudo(from, to netip.Addr, n int) (sum uint32) {
	for _, a := range [][]byte{from.AsSlice(), to.AsSlice()} {
		for i := 0; i < len(a); i += 2 {
			sum += uint32(a[i])<<8 | uint32(a[i+1])
		}
	}
	return sum + 6 + uint32(n)
}

// checksum is that of IP and TCP (RFC 1071), begun with sum.
func checksum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xFFFF {
		sum = sum>>16 + sum&0xFFFF
	}
	return ^uint16(sum)
}
