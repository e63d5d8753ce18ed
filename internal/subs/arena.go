package subs

import (
	"math/bits"
	"slices"
	"unsafe"
)

// This file is what the tree is made of: arenas, which hand out numbered places, and tables,
// which find a number by a hash. The garbage collector has next to nothing to mark in them,
// growing neither copies nor leaves garbage, and memory goes back piece by piece when what it was
// for has gone.

// An arena hands out numbered places for T, the lowest free one first, so that what is there
// stays close together; number 0 is never given out. A chunk without a taken place is given back.
type arena[T any] struct {
	chunks []*[chunkSize]T // nil: no place of it is taken
	vacant []uint64        // of each chunk, a bit for each place that is free
	room   []uint64        // a bit for each chunk that has one
	low    int             // words of room before this one are 0
	spare  *[chunkSize]T   // the last chunk that was given back: becomes the next one
	n      int             // places that are taken
	bytes  int64           // of the chunks
}

const (
	chunkBits = 6
	chunkSize = 1 << chunkBits
)

func (a *arena[T]) at(i uint32) *T {
	return &a.chunks[i>>chunkBits][i%chunkSize]
}

// has says whether place i is taken.
func (a *arena[T]) has(i uint32) bool {
	c := int(i >> chunkBits)
	return i != 0 && c < len(a.chunks) && a.vacant[c]>>(i%chunkSize)&1 == 0
}

// take returns a place, which is zero.
func (a *arena[T]) take() uint32 {
	c := a.withRoom()
	if a.chunks[c] == nil {
		if a.chunks[c], a.spare = a.spare, nil; a.chunks[c] == nil {
			a.chunks[c] = new([chunkSize]T)
		}
		a.bytes += chunkBytes[T]()
	}
	k := bits.TrailingZeros64(a.vacant[c])
	if a.vacant[c] &^= 1 << k; a.vacant[c] == 0 {
		a.room[c/64] &^= 1 << (c % 64)
	}
	a.n++
	return uint32(c<<chunkBits | k)
}

// withRoom returns a chunk with a free place.
func (a *arena[T]) withRoom() int {
	for ; a.low < len(a.room); a.low++ {
		if w := a.room[a.low]; w != 0 {
			return a.low*64 + bits.TrailingZeros64(w)
		}
	}
	c := len(a.chunks)
	a.chunks = append(a.chunks, nil)
	a.vacant = append(a.vacant, untaken(c))
	if c%64 == 0 {
		a.room = append(a.room, 0)
	}
	a.low = c / 64
	a.room[a.low] |= 1 << (c % 64)
	return c
}

// untaken is the vacant word of chunk c while no place of it is taken.
func untaken(c int) uint64 {
	if c == 0 {
		return ^uint64(1) // number 0
	}
	return ^uint64(0)
}

func (a *arena[T]) give(i uint32) {
	c := int(i >> chunkBits)
	a.chunks[c][i%chunkSize] = *new(T)
	a.vacant[c] |= 1 << (i % chunkSize)
	a.room[c/64] |= 1 << (c % 64)
	a.low = min(a.low, c/64)
	a.n--
	if a.vacant[c] == untaken(c) {
		a.spare, a.chunks[c] = a.chunks[c], nil
		a.bytes -= chunkBytes[T]()
		a.trim()
	}
}

// trim forgets chunks at the end that are not there.
func (a *arena[T]) trim() {
	n := len(a.chunks)
	for n > 0 && a.chunks[n-1] == nil {
		n--
		a.room[n/64] &^= 1 << (n % 64)
	}
	a.chunks, a.vacant, a.room = a.chunks[:n], a.vacant[:n], a.room[:(n+63)/64]
	a.low = min(a.low, len(a.room))
	if cap(a.chunks) > 4*n+64 {
		a.chunks, a.vacant = slices.Clone(a.chunks), slices.Clone(a.vacant)
		a.room = slices.Clone(a.room)
	}
}

// chunkBytes is what a chunk takes, with what the arena keeps for it.
func chunkBytes[T any]() int64 {
	return int64(unsafe.Sizeof([chunkSize]T{})) + 16
}

// A table maps hashes to numbers. Several numbers may have one hash: what a number stands for is
// not in here. Open addressing in segments: those that are full are split in two, and two that
// have become nearly empty are joined, so that no change has to wait for a large table to be
// copied.
type table struct {
	dir   []*segment // by the first bits of the hash; neighbours may share one
	depth uint       // how many bits
	deep  int        // segments that share with nobody
	n     int        // segments
}

// A segment fills 8 KiB.
type segment struct {
	depth uint32 // how many first bits of the hash all entries here have in common
	n     uint32
	slots [segmentSlots]uint64 // hash and number, 0: empty
}

const (
	segmentSlots = 1023
	segmentMax   = segmentSlots * 3 / 4
	segmentJoin  = segmentMax / 2 // what two may have together to be joined
	segmentBytes = 8 << 10
)

func newTable() table {
	return table{dir: []*segment{new(segment)}, deep: 1, n: 1}
}

// bytes is what the table takes beyond an empty one.
func (d *table) bytes() int64 { return int64(d.n-1)*segmentBytes + int64(len(d.dir)-1)*8 }

// slotOf returns where in its segment an entry belongs, by bits that do not choose the segment.
func slotOf(x uint32) uint32 {
	return x & 0xffff * segmentSlots >> 16
}

func (d *table) segment(x uint32) *segment {
	return d.dir[x>>(32-d.depth)]
}

// find returns the number with hash x for which is holds, 0 if there is none.
func (d *table) find(x uint32, is func(n uint32) bool) uint32 {
	s := d.segment(x)
	for i := slotOf(x); s.slots[i] != 0; i = (i + 1) % segmentSlots {
		if e := s.slots[i]; uint32(e>>32) == x && is(uint32(e)) {
			return uint32(e)
		}
	}
	return 0
}

// add adds number n, which is not 0, with hash x.
func (d *table) add(x, n uint32) {
	for d.segment(x).n >= segmentMax {
		d.split(x)
	}
	d.segment(x).add(uint64(x)<<32 | uint64(n))
}

// split makes two segments out of the one of x.
func (d *table) split(x uint32) {
	s := d.segment(x)
	if uint(s.depth) == d.depth {
		dir := make([]*segment, 2*len(d.dir))
		for i := range dir {
			dir[i] = d.dir[i/2]
		}
		d.dir = dir
		d.depth++
		d.deep = 0
	}
	old := s.slots
	s.slots, s.n = [segmentSlots]uint64{}, 0
	s.depth++
	other := &segment{depth: s.depth}
	for _, e := range old {
		switch {
		case e == 0:
		case e>>(64-s.depth)&1 == 0:
			s.add(e)
		default:
			other.add(e)
		}
	}
	d.n++
	if uint(s.depth) == d.depth {
		d.deep += 2
	}
	// The places of the old segment are a run of the directory; the second half of it is for the
	// other.
	run := 1 << (d.depth - uint(s.depth))
	first := int(x>>(32-d.depth)) &^ (2*run - 1)
	for i := range run {
		d.dir[first+run+i] = other
	}
}

func (s *segment) add(e uint64) {
	i := slotOf(uint32(e >> 32))
	for s.slots[i] != 0 {
		if i++; i == segmentSlots {
			i = 0
		}
	}
	s.slots[i] = e
	s.n++
}

// remove takes number n with hash x out and closes the gap, so that a search may still end at the
// first empty slot.
func (d *table) remove(x, n uint32) {
	s := d.segment(x)
	i := slotOf(x)
	for s.slots[i] != uint64(x)<<32|uint64(n) {
		if s.slots[i] == 0 {
			panic("BUG: something in the subscription tree is not in its table")
		}
		i = (i + 1) % segmentSlots
	}
	s.n--
	for j := i; ; {
		if j = (j + 1) % segmentSlots; s.slots[j] == 0 {
			break
		}
		home := slotOf(uint32(s.slots[j] >> 32))
		if (j+segmentSlots-home)%segmentSlots >= (j+segmentSlots-i)%segmentSlots {
			s.slots[i] = s.slots[j]
			i = j
		}
	}
	s.slots[i] = 0
	if s.n <= segmentJoin && s.n%32 == 0 { // to look each time would cost more than the removal
		d.join(x)
	}
}

// join makes one segment of the one of x and its neighbour if they have little, and goes on with
// that.
func (d *table) join(x uint32) {
	for {
		s := d.segment(x)
		if s.depth == 0 {
			return
		}
		y := x ^ 1<<(32-s.depth)
		other := d.segment(y)
		if other.depth != s.depth || s.n+other.n > segmentJoin {
			return
		}
		for _, e := range other.slots {
			if e != 0 {
				s.add(e)
			}
		}
		run := 1 << (d.depth - uint(s.depth))
		first := int(y>>(32-d.depth)) &^ (run - 1)
		for i := range run {
			d.dir[first+i] = s
		}
		d.n--
		if uint(s.depth) == d.depth {
			d.deep -= 2
		}
		s.depth--
		d.halve()
	}
}

// halve makes the directory as small as it can be.
func (d *table) halve() {
	for d.deep == 0 && d.depth > 0 {
		dir := make([]*segment, len(d.dir)/2)
		for i := range dir {
			dir[i] = d.dir[2*i]
		}
		d.dir = dir
		d.depth--
		for _, s := range dir {
			if uint(s.depth) == d.depth {
				d.deep++
			}
		}
	}
}
