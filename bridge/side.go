package bridge

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A side is the connection of a link to one of its two brokers.
type side struct {
	name    string // for errors
	nc      net.Conn
	in      *bufio.Reader // owned by the pump that reads this side, like packets
	packets *packets.Reader
	v       packets.Version
	timeout time.Duration
	heard   atomic.Int64 // when the last packet came, as UnixNano
	said    atomic.Int64 // when the last one went
	closing atomic.Bool  // only a DISCONNECT is to go

	mu  sync.Mutex
	out *bufio.Writer // guarded by mu
	buf []byte        // guarded by mu
}

// bufferSize is that of each of the two buffers of a side.
const bufferSize = 16 << 10

func newSide(name string, nc net.Conn, v packets.Version, most int, timeout time.Duration) *side {
	s := &side{name: name, nc: nc, v: v, timeout: timeout,
		in: bufio.NewReaderSize(nc, bufferSize), out: bufio.NewWriterSize(nc, bufferSize)}
	s.packets = packets.NewReader(s.in, packets.Limits{PacketSize: most, UserProperties: 1000})
	s.packets.SetVersion(v)
	now := time.Now().UnixNano()
	s.heard.Store(now)
	s.said.Store(now)
	return s
}

// send puts p into the buffer, which it writes when it is full. It waits for the other side, at
// most as long as the timeout.
func (s *side) send(p packets.Packet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := p.Append(s.buf[:0], s.v)
	if err != nil {
		return fmt.Errorf("a packet for %s: %w", s.name, err)
	}
	if s.buf = b; cap(b) > 2*bufferSize {
		s.buf = nil
	}
	s.said.Store(time.Now().UnixNano())
	if len(b) > s.out.Available() {
		s.nc.SetWriteDeadline(s.until())
	}
	_, err = s.out.Write(b)
	return s.failed("write", err)
}

// flush writes what is in the buffer. If another goroutine is writing, it leaves that to it: each
// send is followed by a flush. It must not wait. A broker that takes nothing until somebody reads
// what it says would then wait for the pump that reads, and that pump for the broker.
func (s *side) flush() error {
	if !s.mu.TryLock() {
		return nil
	}
	defer s.mu.Unlock()
	if s.out.Buffered() == 0 {
		return nil
	}
	s.nc.SetWriteDeadline(s.until())
	return s.failed("write", s.out.Flush())
}

// read returns the next packet.
func (s *side) read() (packets.Packet, error) {
	p, err := s.packets.ReadPacket()
	if err != nil {
		return nil, s.failed("read", err)
	}
	s.heard.Store(time.Now().UnixNano())
	return p, nil
}

// whole says whether the next packet is in the buffer already, so that read will not wait.
func (s *side) whole() bool {
	b, _ := s.in.Peek(s.in.Buffered())
	h, err := packets.ParseHeader(b, s.v)
	return err == nil && len(b) >= h.Len+h.Remaining
}

// failed names the side in an error.
func (s *side) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	if pe, ok := errors.AsType[*packets.Error](err); ok {
		return fmt.Errorf("%s sent what it must not send: %w", s.name, pe)
	}
	return fmt.Errorf("%s: %s: %w", s.name, what, err)
}

// connect sends a CONNECT and returns the CONNACK, which must accept it.
func (s *side) connect(p *packets.Connect) (*packets.Connack, error) {
	s.nc.SetReadDeadline(time.Now().Add(s.timeout))
	defer s.nc.SetReadDeadline(time.Time{})
	if err := s.send(p); err != nil {
		return nil, err
	}
	if err := s.flush(); err != nil {
		return nil, err
	}
	got, err := s.read()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("%s has not answered the CONNECT for %v", s.name, s.timeout)
	}
	if err != nil {
		return nil, err
	}
	ack, ok := got.(*packets.Connack)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: expected CONNACK, got %v", s.name, got.Type())
	case ack.Code.Failed():
		reason, _ := ack.Properties.Text(packets.ReasonString)
		return nil, fmt.Errorf("%s refuses the link: %w", s.name,
			&packets.Error{Code: ack.Code, Reason: reason})
	case ack.SessionPresent && p.CleanStart:
		return nil, fmt.Errorf("%s: Session Present after Clean Start", s.name)
	}
	return ack, nil
}

// until is when a write that begins now must have ended.
func (s *side) until() time.Time {
	if s.closing.Load() {
		return time.Now().Add(min(s.timeout, farewell))
	}
	return time.Now().Add(s.timeout)
}

// farewell is how long a DISCONNECT may take.
const farewell = 2 * time.Second

// bye sends a DISCONNECT, as far as that goes, and closes the connection.
func (s *side) bye() {
	s.closing.Store(true)
	s.nc.SetWriteDeadline(s.until()) // for a write that is under way
	if s.send(&packets.Disconnect{}) == nil {
		s.flush()
	}
	s.nc.Close()
}
