package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// MQTT control packet types as they stand in the high nibble of byte one.
const (
	pktConnect    = 1
	pktConnack    = 2
	pktPublish    = 3
	pktPuback     = 4
	pktPubrec     = 5
	pktPubrel     = 6
	pktPubcomp    = 7
	pktSubscribe  = 8
	pktSuback     = 9
	pktPingreq    = 12
	pktPingresp   = 13
	pktDisconnect = 14
)

func appendVar(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func appendStr(b []byte, s string) []byte {
	b = append(b, byte(len(s)>>8), byte(len(s)))
	return append(b, s...)
}

// connectPacket encodes CONNECT for version 4 (3.1.1) or 5.
func connectPacket(v byte, o dialOpts) []byte {
	body := appendStr(nil, "MQTT")
	body = append(body, v)
	var fl byte
	if o.clean {
		fl |= 2
	}
	body = append(body, fl, byte(o.keepAlive>>8), byte(o.keepAlive))
	if v == 5 {
		if o.expiry > 0 {
			body = append(body, 5, 0x11)
			body = binary.BigEndian.AppendUint32(body, o.expiry)
		} else {
			body = append(body, 0)
		}
	}
	body = appendStr(body, o.id)
	p := []byte{pktConnect << 4}
	p = appendVar(p, len(body))
	return append(p, body...)
}

func subscribePacket(v byte, pid uint16, filters []string, qos byte) []byte {
	n := 2
	if v == 5 {
		n++
	}
	for _, f := range filters {
		n += 3 + len(f)
	}
	p := make([]byte, 0, n+5)
	p = append(p, pktSubscribe<<4|2)
	p = appendVar(p, n)
	p = append(p, byte(pid>>8), byte(pid))
	if v == 5 {
		p = append(p, 0)
	}
	for _, f := range filters {
		p = appendStr(p, f)
		p = append(p, qos)
	}
	return p
}

func disconnectPacket() []byte { return []byte{pktDisconnect << 4, 0} }

// stampLen is what each payload begins with: nanoseconds (8 bytes), publisher (4), number (4).
const stampLen = 16

// A stamped is a PUBLISH whose payload begins with a stamp.
type stamped struct {
	v, qos   byte
	retain   bool
	topic    string
	size     int // of the payload
	at       int64
	pub, seq uint32
}

// appendHead encodes the PUBLISH up to and with its stamp. The caller adds the rest of the
// payload, size-stampLen bytes.
func (p *stamped) appendHead(b []byte) []byte {
	h := byte(pktPublish<<4) | p.qos<<1
	if p.retain {
		h |= 1
	}
	n := 2 + len(p.topic) + p.size
	if p.qos > 0 {
		n += 2
	}
	if p.v == 5 {
		n++
	}
	b = append(b, h)
	b = appendVar(b, n)
	b = appendStr(b, p.topic)
	if p.qos > 0 {
		b = binary.BigEndian.AppendUint16(b, uint16(p.seq%65535)+1)
	}
	if p.v == 5 {
		b = append(b, 0)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(p.at))
	b = binary.BigEndian.AppendUint32(b, p.pub)
	return binary.BigEndian.AppendUint32(b, p.seq)
}

// conn is a raw MQTT connection: a socket and a read buffer, nothing more.
type conn struct {
	c    net.Conn
	v    byte
	buf  []byte
	r, w int
}

var errMalformed = errors.New("malformed packet from broker")

// parse takes one whole packet out of the buffer; ok is false when more bytes are needed.
func (c *conn) parse() (hdr byte, body []byte, ok bool, err error) {
	b := c.buf[c.r:c.w]
	if len(b) < 2 {
		return 0, nil, false, nil
	}
	n, sh, i := 0, 0, 1
	for {
		if i >= len(b) {
			return 0, nil, false, nil
		}
		x := b[i]
		i++
		n |= int(x&0x7f) << sh
		if x < 0x80 {
			break
		}
		sh += 7
		if sh > 21 {
			return 0, nil, false, errMalformed
		}
	}
	if len(b) < i+n {
		if need := i + n; need > len(c.buf) {
			nb := make([]byte, need+len(c.buf))
			copy(nb, b)
			c.buf, c.w, c.r = nb, len(b), 0
		}
		return 0, nil, false, nil
	}
	c.r += i + n
	return b[0], b[i : i+n], true, nil
}

// each calls f for every whole packet in the buffer, until that returns an error.
func (c *conn) each(f func(first byte, body []byte) error) error {
	for {
		first, body, ok, err := c.parse()
		if err != nil || !ok {
			return err
		}
		if err := f(first, body); err != nil {
			return err
		}
	}
}

// fill does one read from the socket.
func (c *conn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if c.r > 0 {
		copy(c.buf, c.buf[c.r:c.w])
		c.w -= c.r
		c.r = 0
	}
	n, err := c.c.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

func (c *conn) packet() (byte, []byte, error) {
	for {
		h, b, ok, err := c.parse()
		if err != nil {
			return 0, nil, err
		}
		if ok {
			return h, b, nil
		}
		if err := c.fill(); err != nil {
			return 0, nil, err
		}
	}
}

// publishParts finds the Packet Identifier, 0 for QoS 0, and the payload in the body of a PUBLISH.
func publishParts(v, hdr byte, body []byte) (pid uint16, payload []byte, err error) {
	if len(body) < 2 {
		return 0, nil, errMalformed
	}
	i := 2 + int(binary.BigEndian.Uint16(body))
	if hdr&6 != 0 {
		if len(body) < i+2 {
			return 0, nil, errMalformed
		}
		pid = binary.BigEndian.Uint16(body[i:])
		i += 2
	}
	if v == 5 {
		n, sh := 0, 0
		for {
			if i >= len(body) || sh > 21 {
				return 0, nil, errMalformed
			}
			x := body[i]
			i++
			n |= int(x&0x7f) << sh
			if x < 0x80 {
				break
			}
			sh += 7
		}
		i += n
	}
	if i > len(body) {
		return 0, nil, errMalformed
	}
	return pid, body[i:], nil
}

// dialOpts says how a connection is made.
type dialOpts struct {
	source    int    // above 0: it comes from 127.0.0.(2 + source%60)
	rcvbuf    int    // receive buffer of the socket; 0: that of the system
	bufSize   int    // read buffer; 0: 4 KiB
	id        string // Client Identifier
	clean     bool
	expiry    uint32 // Session Expiry Interval, 5.0
	keepAlive uint16
}

func dialTCP(addr string, o dialOpts) (net.Conn, error) {
	d := net.Dialer{Timeout: 20 * time.Second}
	if o.source > 0 {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+o.source%60))}
	}
	d.KeepAlive = -1
	d.Control = func(network, address string, rc syscall.RawConn) error {
		return rc.Control(func(fd uintptr) {
			if o.source > 0 {
				syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, 24, 1) // IP_BIND_ADDRESS_NO_PORT
			}
			if o.rcvbuf > 0 {
				syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, o.rcvbuf)
			}
		})
	}
	return d.Dial("tcp", addr)
}

// open dials, sends CONNECT and waits for a good CONNACK.
func open(cfg *config, o dialOpts) (*conn, error) {
	nc, err := dialTCP(cfg.addr, o)
	if err != nil {
		return nil, err
	}
	if o.bufSize == 0 {
		o.bufSize = 4096
	}
	c := &conn{c: nc, v: cfg.version, buf: make([]byte, o.bufSize)}
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := nc.Write(connectPacket(cfg.version, o)); err != nil {
		nc.Close()
		return nil, err
	}
	h, b, err := c.packet()
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("waiting for CONNACK: %w", err)
	}
	if h>>4 != pktConnack || len(b) < 2 || b[1] != 0 {
		nc.Close()
		return nil, fmt.Errorf("refused: packet %#x % x", h, b[:min(len(b), 8)])
	}
	nc.SetDeadline(time.Time{})
	return c, nil
}

// subscribe sends one SUBSCRIBE and waits for its SUBACK.
func (c *conn) subscribe(packetID uint16, filters []string, qos byte) error {
	if _, err := c.c.Write(subscribePacket(c.v, packetID, filters, qos)); err != nil {
		return err
	}
	return c.suback()
}

// suback waits for a SUBACK and skips all else.
func (c *conn) suback() error {
	c.c.SetReadDeadline(time.Now().Add(60 * time.Second))
	defer c.c.SetReadDeadline(time.Time{})
	for {
		first, body, err := c.packet()
		if err != nil {
			return fmt.Errorf("waiting for SUBACK: %w", err)
		}
		if first>>4 == pktSuback {
			if code := body[len(body)-1]; code >= 0x80 {
				return fmt.Errorf("SUBACK with Reason Code %#x", code)
			}
			return nil
		}
	}
}
