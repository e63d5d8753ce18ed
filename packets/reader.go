package packets

import (
	"bufio"
	"errors"
	"io"
)

// A Reader reads packets from a stream. Only one goroutine may use it at a time.
//
// It takes memory only for bytes that have arrived, whatever length a packet declares. After a
// temporary read error, such as a deadline, the next ReadPacket continues where the last one
// stopped.
type Reader struct {
	r      *bufio.Reader
	limits Limits
	v      Version
	h      Header // of the packet being read; Len 0: none
	body   []byte // the bytes of the body that have arrived
	err    error  // the *Error that ended the stream
}

// firstStep is the number of bytes of a body to read before the buffer grows.
const firstStep = 4 << 10

// NewReader returns a Reader that reads from r and enforces l. It reads ahead.
func NewReader(r io.Reader, l Limits) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, firstStep), limits: l, v: V311}
}

// SetVersion sets the version for decoding the packets that follow. The default is 3.1.1. A CONNECT
// sets its own version.
func (r *Reader) SetVersion(v Version) { r.v = v }

// ReadPacket blocks until it has read the next packet. The packet owns its memory. The error is
//
//   - an *Error if the packet is not allowed; all later calls return the same error, because the
//     stream is out of step,
//   - io.EOF if the stream ends between packets, io.ErrUnexpectedEOF if it ends inside one,
//   - otherwise the error of the underlying reader.
func (r *Reader) ReadPacket() (Packet, error) {
	if r.err != nil {
		return nil, r.err
	}
	p, err := r.readPacket()
	if _, ok := errors.AsType[*Error](err); ok {
		r.err = err
	}
	return p, err
}

func (r *Reader) readPacket() (Packet, error) {
	if r.h.Len == 0 {
		if err := r.readHeader(); err != nil {
			return nil, err
		}
	}
	if err := r.readBody(); err != nil {
		return nil, err
	}
	h, body := r.h, r.body
	r.h, r.body = Header{}, nil
	p, err := decode(h, body, r.v, r.limits)
	if err != nil {
		return nil, err
	}
	if c, ok := p.(*Connect); ok {
		r.v = c.Version
	}
	return p, nil
}

// readHeader reads a fixed header.
func (r *Reader) readHeader() error {
	for n := 1; ; n++ {
		b, err := r.r.Peek(n)
		h, parseErr := ParseHeader(b, r.v)
		switch {
		case parseErr == nil:
			r.h = h
			if _, err := r.r.Discard(h.Len); err != nil {
				return err
			}
			return r.limits.CheckHeader(h)
		case parseErr != ErrShort:
			return parseErr
		case err == io.EOF && len(b) > 0:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
}

// readBody reads the missing rest of the body. No step is longer than the bytes that have already
// arrived.
func (r *Reader) readBody() error {
	for len(r.body) < r.h.Remaining {
		have := len(r.body)
		if have == cap(r.body) {
			grown := make([]byte, have, min(max(2*have, firstStep), r.h.Remaining))
			copy(grown, r.body)
			r.body = grown
		}
		n, err := io.ReadFull(r.r, r.body[have:cap(r.body)])
		r.body = r.body[:have+n]
		switch {
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return nil
}
