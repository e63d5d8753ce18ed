package packets

import (
	"bufio"
	"errors"
	"io"
)

// A Reader reads packets from a stream. It is not for use by several goroutines at once.
//
// It needs memory only for bytes that have come, whatever length a packet declares. If a read fails for a while, as
// by a deadline, the next ReadPacket goes on where it stopped.
type Reader struct {
	r      *bufio.Reader
	limits Limits
	v      Version
	h      Header // of the packet being read; Len 0: none
	body   []byte // what has come of it
	err    error  // the *Error that ended the stream
}

// firstStep is how much of a body is read before memory for more of it is taken.
const firstStep = 4 << 10

// NewReader returns a Reader that reads from r and holds packets to l. It reads ahead.
func NewReader(r io.Reader, l Limits) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, firstStep), limits: l, v: V311}
}

// SetVersion says how the packets that follow are to be decoded: as 3.1.1 until then. A CONNECT that is read sets its
// own version.
func (r *Reader) SetVersion(v Version) { r.v = v }

// ReadPacket reads the next packet and blocks until it is there. The packet owns its memory. The error is an *Error
// if the packet is not allowed, and is then the answer of all later calls, for the stream cannot be followed any
// further; io.EOF if the stream ends between packets, io.ErrUnexpectedEOF if it ends inside of one; and otherwise
// that of the underlying reader.
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

// readBody reads what is missing of the body, in steps that are no longer than what has come already.
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
