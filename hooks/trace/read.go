package trace

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file reads what this package has written.

// Read yields the packets of a file of FormatJSON or FormatPCAPNG, in their order. What the trace
// has made up is not yielded. An error is the last that is yielded. A pcapng file that another
// program has written is read if it has the same form: whole IP packets, TCP port 1883, nothing
// lost or out of order.
func Read(r io.Reader) iter.Seq2[hooks.TapPacket, error] {
	return func(yield func(hooks.TapPacket, error) bool) {
		b := bufio.NewReader(r)
		head, err := b.Peek(4)
		switch {
		case err == io.EOF && len(head) == 0:
		case err == nil && binary.LittleEndian.Uint32(head) == blockSection:
			x := pcapReader{streams: make(map[[2]netip.AddrPort]*reading)}
			x.read(b, yield)
		case len(head) > 0 && head[0] == '{':
			readLines(b, yield)
		default:
			yield(hooks.TapPacket{}, errors.New("trace: expected lines of JSON or pcapng"))
		}
	}
}

// maxBlock is the largest block that is read.
const maxBlock = 16 << 20

type pcapReader struct {
	streams map[[2]netip.AddrPort]*reading
	made    uint64
	unit    time.Duration // of timestamps, in nanoseconds
}

// A reading is a TCP connection that is read.
type reading struct {
	conn    uint64
	client  hooks.Client
	version packets.Version
	rest    [2][]byte // of the server, of the client
}

// read yields the packets of all blocks.
func (x *pcapReader) read(r io.Reader, yield func(hooks.TapPacket, error) bool) {
	var head [8]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return
		} else if err != nil {
			yield(hooks.TapPacket{}, fmt.Errorf("trace: the file ends in a block: %w", err))
			return
		}
		kind, n := le.Uint32(head[:]), le.Uint32(head[4:])
		if n < 12 || n > maxBlock || n%4 != 0 {
			yield(hooks.TapPacket{}, fmt.Errorf("trace: a block of %d bytes", n))
			return
		}
		body := make([]byte, n-8)
		if _, err := io.ReadFull(r, body); err != nil {
			yield(hooks.TapPacket{}, fmt.Errorf("trace: the file ends in a block: %w", err))
			return
		}
		if le.Uint32(body[n-12:]) != n {
			yield(hooks.TapPacket{}, errors.New("trace: a block that does not end with its length"))
			return
		}
		goOn := true
		err := x.block(kind, body[:n-12], func(p hooks.TapPacket) bool {
			goOn = yield(p, nil)
			return goOn
		})
		if err != nil && goOn {
			yield(hooks.TapPacket{}, fmt.Errorf("trace: %w", err))
		}
		if err != nil || !goOn {
			return
		}
	}
}

// block reads one block.
func (x *pcapReader) block(kind uint32, body []byte, yield func(hooks.TapPacket) bool) error {
	switch kind {
	case blockSection:
		if len(body) < 16 || le.Uint32(body) != byteOrder {
			return errors.New("expected a little-endian section")
		}
	case blockInterface:
		if len(body) < 8 || le.Uint16(body) != linkRaw {
			return errors.New("expected an interface with raw IP packets")
		}
		x.unit = time.Microsecond
		for code, value := range options(body[8:]) {
			if code == optResolution && len(value) == 1 && value[0] <= 9 {
				x.unit = time.Duration(math.Pow10(9 - int(value[0])))
			}
		}
	case blockPacket:
		if len(body) < 20 || x.unit == 0 {
			return errors.New("a packet without an interface, or a short one")
		}
		n := int(le.Uint32(body[12:]))
		if n > len(body)-20 {
			return errors.New("a packet that is longer than its block")
		}
		made := false
		for code, value := range options(body[20+(n+3)/4*4:]) {
			made = made || code == optComment && strings.HasPrefix(string(value), madeUp)
		}
		ticks := uint64(le.Uint32(body[4:]))<<32 | uint64(le.Uint32(body[8:]))
		return x.ip(body[20:20+n], time.Unix(0, int64(ticks)*int64(x.unit)), made, yield)
	}
	return nil
}

// options yields the options of a block.
func options(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			code, n := le.Uint16(b), int(le.Uint16(b[2:]))
			if code == 0 || 4+n > len(b) || !yield(code, b[4:4+n]) {
				return
			}
			b = b[min(len(b), 4+(n+3)/4*4):]
		}
	}
}

// ip reads one IP packet.
func (x *pcapReader) ip(
	b []byte, at time.Time, made bool, yield func(hooks.TapPacket) bool,
) error {
	bad := errors.New("an IP packet that is not whole")
	if len(b) < 20 {
		return bad
	}
	var from, to netip.Addr
	switch b[0] >> 4 {
	case 4:
		n, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if n < 20 || total < n || total > len(b) || b[9] != 6 {
			return bad
		}
		from, to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[n:total]
	case 6:
		if len(b) < 40 || b[6] != 6 || 40+int(binary.BigEndian.Uint16(b[4:])) > len(b) {
			return bad
		}
		from, to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[40 : 40+int(binary.BigEndian.Uint16(b[4:]))]
	default:
		return bad
	}
	if len(b) < 20 || int(b[12]>>4)*4 > len(b) || b[12]>>4 < 5 {
		return bad
	}
	a := netip.AddrPortFrom(from, binary.BigEndian.Uint16(b))
	z := netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:]))
	flags, data := b[13], b[int(b[12]>>4)*4:]
	incoming := z.Port() == serverPort
	if !incoming {
		a, z = z, a
	}
	s := x.streams[[2]netip.AddrPort{a, z}]
	if s == nil || flags&(tcpSYN|tcpACK) == tcpSYN {
		x.made++
		s = &reading{conn: x.made, client: hooks.Client{RemoteAddr: textAddr(a.String())}}
		x.streams[[2]netip.AddrPort{a, z}] = s
	}
	return s.take(data, hooks.TapPacket{Time: at, Conn: s.conn, Incoming: incoming}, made, yield)
}

// take adds data to the stream, and yields the packets that are whole, as p is.
func (s *reading) take(
	data []byte, p hooks.TapPacket, made bool, yield func(hooks.TapPacket) bool,
) error {
	way := 0
	if p.Incoming {
		way = 1
	}
	rest := append(s.rest[way], data...)
	for len(rest) > 0 {
		h, err := packets.ParseHeader(rest, s.version)
		if err == packets.ErrShort || err == nil && h.Len+h.Remaining > len(rest) {
			break
		}
		n := len(rest)
		if err == nil {
			n = h.Len + h.Remaining
		}
		p.Data, rest = bytes.Clone(rest[:n]), rest[n:]
		if p.Incoming && packets.Type(p.Data[0]>>4) == packets.TypeConnect {
			s.learn(p.Data)
		}
		client := s.client
		p.Client, p.Version = &client, s.version
		if !made && !yield(p) {
			return nil
		}
	}
	s.rest[way] = bytes.Clone(rest)
	return nil
}

// learn takes what a CONNECT says of the client.
func (s *reading) learn(b []byte) {
	q, _, err := packets.Decode(b, 0, packets.Limits{})
	if err != nil {
		return
	}
	c := q.(*packets.Connect)
	s.version = c.Version
	s.client.ID, s.client.Version, s.client.CleanStart = c.ClientID, c.Version, c.CleanStart
	s.client.Username, s.client.HasUsername, s.client.KeepAlive = c.Username, c.HasUsername,
		c.KeepAlive
}
