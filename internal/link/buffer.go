package link

import (
	"sync"
	"sync/atomic"
)

// A Buffer is a pooled byte slice. The pointer is what travels, so that giving it back costs no
// allocation.
type Buffer struct {
	B []byte
	// For the caller: Reserve has taken much memory for B since the caller has set it to false
	Grown bool

	// Of a buffer that is being written, whose B does not change:
	// How much the connection has taken; only the goroutine that writes adds to it
	n      atomic.Int64
	failed bool // the connection takes nothing any more; owned by the goroutine that writes
	// The connection has taken all at once, which n does not say; owned likewise
	whole bool
	piece int32 // how much is written at a time, at most; owned likewise

	// The payload that B ends with, if B still has the length tailAt; nil: none that is shared
	tail   []byte
	tailAt int
	shared bool    // B is a payload, and not from a pool
	next   *Buffer // what is written behind B; nil: nothing
}

// EndsWith notes that B ends with a payload that nobody changes. A long one need not be kept in a
// copy for each client that does not take it, see Output.Share.
func (x *Buffer) EndsWith(payload []byte) {
	if len(payload) >= ShareSome {
		x.tail, x.tailAt = payload, len(x.B)
	}
}

// How long a payload is at least that is not copied for those who do not take it: ShareSome once a
// socket has not taken all, ShareMuch before it is written at all, so that it takes a write of its
// own.
const (
	ShareSome = 4 << 10
	ShareMuch = 32 << 10
)

// Taken returns how much the connection has taken, after a TryWrite.
func (x *Buffer) Taken() int {
	if x.whole {
		return len(x.B)
	}
	return int(x.n.Load())
}

// Whole says whether the connection has taken all, after a TryWrite.
func (x *Buffer) Whole() bool { return x.whole }

// The classes are 1 KiB and fourfold up to 4 MiB. Larger ones are not kept.
const (
	minBuffer = 1 << 10
	classes   = 7
)

var pools [classes]sync.Pool

// Fitting is how much room a buffer has that is made for n bytes.
func Fitting(n int) int {
	if k, size := class(n); k < classes {
		return size
	}
	return n
}

func class(n int) (k, size int) {
	for k, size = 0, minBuffer; size < n && k < classes; k++ {
		size <<= 2
	}
	return k, size
}

// NewBuffer returns an empty buffer with room for n bytes.
func NewBuffer(n int) *Buffer {
	k, size := class(n)
	if k == classes {
		return &Buffer{B: make([]byte, 0, n)}
	}
	if x, ok := pools[k].Get().(*Buffer); ok {
		return x
	}
	return &Buffer{B: make([]byte, 0, size)}
}

// Free gives the buffer back. Nobody may use it afterwards.
func (x *Buffer) Free() {
	if x.shared {
		return
	}
	x.tail, x.next, x.Grown = nil, nil, false
	if k, size := class(cap(x.B)); k < classes && size == cap(x.B) {
		x.B = x.B[:0]
		pools[k].Put(x)
	}
}
