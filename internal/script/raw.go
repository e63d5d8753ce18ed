package script

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// parseRaw reads the notation of raw lines. Bytes that may be anything are -1.
func parseRaw(s string) ([]int16, error) {
	r := rawReader{rest: s}
	out, err := r.read(0)
	if err != nil {
		return nil, err
	}
	return out, nil
}

type rawReader struct{ rest string }

// read reads up to the closing bracket, or to the end if that is 0.
func (r *rawReader) read(closing byte) ([]int16, error) {
	var out []int16
	for {
		r.rest = strings.TrimLeft(r.rest, " ")
		if r.rest == "" {
			if closing != 0 {
				return nil, fmt.Errorf("no %c in the raw bytes", closing)
			}
			return out, nil
		}
		c := r.rest[0]
		if c == closing && closing != 0 {
			r.rest = r.rest[1:]
			return out, nil
		}
		part, err := r.item(c)
		if err != nil {
			return nil, err
		}
		n := 1
		if strings.HasPrefix(r.rest, "*") {
			digits := r.rest[1:]
			if i := strings.IndexFunc(digits,
				func(c rune) bool { return c < '0' || c > '9' }); i >= 0 {
				digits = digits[:i]
			}
			if n, err = strconv.Atoi(digits); err != nil || n > 1<<20 {
				return nil, errors.New("a number up to 1048576 has to follow *")
			}
			r.rest = r.rest[1+len(digits):]
		}
		for range n {
			out = append(out, part...)
		}
	}
}

// item reads one element, which begins with c.
func (r *rawReader) item(c byte) ([]int16, error) {
	switch c {
	case '[', '(':
		r.rest = r.rest[1:]
		inner, err := r.read(map[byte]byte{'[': ']', '(': ')'}[c])
		if err != nil {
			return nil, err
		}
		var length []byte
		if c == '(' {
			if len(inner) > 0xffff {
				return nil, errors.New("more than 65535 bytes between ( and )")
			}
			length = binary.BigEndian.AppendUint16(nil, uint16(len(inner)))
		} else {
			length = binary.AppendUvarint(nil, uint64(len(inner)))
		}
		return append(widen(length), inner...), nil
	case '"':
		q, err := strconv.QuotedPrefix(r.rest)
		if err != nil {
			return nil, fmt.Errorf("raw text: %w", err)
		}
		text, _ := strconv.Unquote(q)
		r.rest = r.rest[len(q):]
		return widen([]byte(text)), nil
	}
	if strings.HasPrefix(r.rest, "..") {
		r.rest = r.rest[2:]
		return []int16{-1}, nil
	}
	if len(r.rest) < 2 {
		return nil, fmt.Errorf("raw bytes: half a byte %q", r.rest)
	}
	b, err := strconv.ParseUint(r.rest[:2], 16, 8)
	if err != nil {
		return nil, fmt.Errorf("raw bytes: %q is not a byte in hex", r.rest[:2])
	}
	r.rest = r.rest[2:]
	return []int16{int16(b)}, nil
}

func widen(b []byte) []int16 {
	out := make([]int16, len(b))
	for i, c := range b {
		out[i] = int16(c)
	}
	return out
}

func narrow(b []int16) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		out[i] = byte(c)
	}
	return out
}
