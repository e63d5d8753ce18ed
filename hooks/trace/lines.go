package trace

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the two formats of lines.

// describe is a packet in words.
func describe(p *hooks.TapPacket) string {
	q, err := p.Packet()
	if err != nil {
		return fmt.Sprintf("%d bytes that are not a packet (%v): %x", len(p.Data), err,
			p.Data[:min(len(p.Data), 64)])
	}
	return packets.Trace(q)
}

func address(c *hooks.Client) string {
	if c.RemoteAddr == nil {
		return ""
	}
	return c.RemoteAddr.String()
}

// textEncoder writes lines for people.
type textEncoder struct{}

func (*textEncoder) begin(dst []byte) []byte { return dst }

func (*textEncoder) add(dst []byte, p *hooks.TapPacket) []byte {
	if p.Lost > 0 {
		dst = fmt.Appendf(dst, "... %d packets are missing here\n", p.Lost)
	}
	dst = p.Time.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
	dst = append(dst, ' ')
	dst = strconv.AppendQuoteToASCII(dst, p.Client.ID)
	dst = append(append(dst, ' '), address(p.Client)...)
	if p.Incoming {
		dst = append(dst, " > "...)
	} else {
		dst = append(dst, " < "...)
	}
	return append(append(dst, describe(p)...), '\n')
}

// A line is one of FormatJSON.
type line struct {
	Time     time.Time `json:"time"`
	Conn     string    `json:"conn"` // a number that JavaScript could not hold
	Client   string    `json:"client"`
	Address  string    `json:"address,omitempty"`
	Incoming bool      `json:"incoming"`
	Version  byte      `json:"version"`
	Text     string    `json:"text"`
	Data     []byte    `json:"data"` // the packet, in base64
	Withheld bool      `json:"withheld,omitempty"`
	Lost     uint64    `json:"lost,omitempty"`
}

type jsonEncoder struct{}

func (*jsonEncoder) begin(dst []byte) []byte { return dst }

func (*jsonEncoder) add(dst []byte, p *hooks.TapPacket) []byte {
	b, err := json.Marshal(line{
		Time: p.Time.UTC(), Conn: strconv.FormatUint(p.Conn, 16), Client: p.Client.ID,
		Address: address(p.Client), Incoming: p.Incoming, Version: byte(p.Version),
		Text: describe(p), Data: p.Data, Withheld: p.Withheld, Lost: p.Lost,
	})
	if err != nil { // a time before the year 0, for instance
		return dst
	}
	return append(append(dst, b...), '\n')
}

// textAddr is an address that was read.
type textAddr string

func (textAddr) Network() string  { return "tcp" }
func (a textAddr) String() string { return string(a) }

// readLines reads FormatJSON.
func readLines(r *bufio.Reader, yield func(hooks.TapPacket, error) bool) {
	d := json.NewDecoder(r)
	for n := 1; ; n++ {
		var l line
		err := d.Decode(&l)
		if err == io.EOF {
			return
		}
		conn, bad := strconv.ParseUint(l.Conn, 16, 64)
		if err == nil && bad != nil {
			err = bad
		}
		if err != nil {
			yield(hooks.TapPacket{}, fmt.Errorf("trace: packet %d: %w", n, err))
			return
		}
		c := &hooks.Client{ID: l.Client, Version: packets.Version(l.Version)}
		if l.Address != "" {
			c.RemoteAddr = textAddr(l.Address)
		}
		p := hooks.TapPacket{
			Time: l.Time, Conn: conn, Client: c, Incoming: l.Incoming, Lost: l.Lost,
			Version: packets.Version(l.Version), Data: l.Data, Withheld: l.Withheld,
		}
		if !yield(p, nil) {
			return
		}
	}
}
