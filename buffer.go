package dunlin

import "sync"

// This file is the memory that bytes are read to and written from.

// A buffer is a pooled byte slice. The pointer is what travels, so that giving it back costs no allocation.
type buffer struct {
	b []byte
	n int // how much of b has been written
}

// The classes are 1 KiB and fourfold up to 4 MiB. Larger ones are not kept.
const (
	minBuffer = 1 << 10
	classes   = 7
)

var pools [classes]sync.Pool

func class(n int) (k, size int) {
	for k, size = 0, minBuffer; size < n && k < classes; k++ {
		size <<= 2
	}
	return k, size
}

// newBuffer returns an empty buffer with room for n bytes.
func newBuffer(n int) *buffer {
	k, size := class(n)
	if k == classes {
		return &buffer{b: make([]byte, 0, n)}
	}
	if x, ok := pools[k].Get().(*buffer); ok {
		return x
	}
	return &buffer{b: make([]byte, 0, size)}
}

// free gives the buffer back. Nobody may use it afterwards.
func (x *buffer) free() {
	if k, size := class(cap(x.b)); k < classes && size == cap(x.b) {
		x.b = x.b[:0]
		pools[k].Put(x)
	}
}
