package bbolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// This file checks the structure of a file before bbolt maps it into memory: the meta pages, the
// size, each page of the trees and the list of free pages. bbolt trusts all of that. Where it is
// wrong, a read outside of the file ends the process with a signal, a page that leads to itself
// does so with a stack that never ends, and a wrong count with a want of memory. What the values
// hold has checksums of its own and is not looked at here.

// The layout of a file, in the byte order of the machine. A page begins with its number (8 bytes),
// its kind (2), how many elements it has (2), and how many pages it goes on for (4). Elements take
// 16 bytes each.
const (
	pageHeader  = 16
	elementSize = 16
	metaSize    = 64
	bucketSize  = 16 // number of the root page (0: the page follows here), and a sequence

	kindBranch = 0x01
	kindLeaf   = 0x02
	kindFree   = 0x10

	elementBucket = 0x01 // of a leaf's element: its value is a bucket

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	noFreeList  = 1<<64 - 1
	maxDepth    = 100 // of pages and buckets
)

// A meta says where a transaction has left what it committed.
type meta struct {
	pageSize                  int64
	root, freeList, end, txid uint64 // end: how many pages there are
}

// verify checks the file. It returns an error that wraps fs.ErrNotExist if there is none, and one
// that wraps ErrLocked if another process writes to it.
func verify(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is not a file but %v", info.Mode().Type())
	}
	m, err := readMeta(f, info.Size())
	if err != nil {
		return err
	}
	if err = (&verifier{f: f, m: m}).all(info.Size()); err == nil {
		return nil
	}
	// A process that has the file open does not write to the pages of the last transaction, but to
	// those of the transactions before.
	if again, aerr := readMeta(f, info.Size()); aerr != nil || again != m {
		return ErrLocked
	}
	return err
}

// readMeta returns the newer one of the two meta pages.
func readMeta(f io.ReaderAt, size int64) (meta, error) {
	if size == 0 {
		return meta{}, errors.New(
			"the file is empty: what it held is lost, or it has never held a store; remove it to " +
				"begin with a new one")
	}
	if best, ok := parseMeta(f, 0); ok {
		if other, ok := parseMeta(f, best.pageSize); ok && other.txid > best.txid {
			best = other
		}
		return best, nil
	}
	for pageSize := int64(1 << 10); pageSize <= 1<<24; pageSize *= 2 { // of the second one
		if m, ok := parseMeta(f, pageSize); ok && m.pageSize == pageSize {
			return m, nil
		}
	}
	return meta{}, errors.New(
		"it has no valid meta page: it is not a bbolt file, or its beginning is damaged")
}

// parseMeta reads the meta page at an offset, and says whether it is valid.
func parseMeta(f io.ReaderAt, at int64) (m meta, ok bool) {
	var b [pageHeader + metaSize]byte
	if n, _ := f.ReadAt(b[:], at); n < len(b) {
		return m, false
	}
	p, u32, u64 := b[pageHeader:], binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	sum := fnv.New64a()
	sum.Write(p[:metaSize-8])
	m = meta{pageSize: int64(u32(p[8:])), root: u64(p[16:]), freeList: u64(p[32:]),
		end: u64(p[40:]), txid: u64(p[48:])}
	return m, u32(p) == metaMagic && u32(p[4:]) == metaVersion && u64(p[metaSize-8:]) == sum.Sum64()
}

// A verifier reads all pages that are in use, each once.
type verifier struct {
	f    io.ReaderAt
	m    meta
	used []uint64 // a bit for each page
}

func (v *verifier) all(size int64) error {
	m := v.m
	switch {
	case m.pageSize < 512 || m.pageSize > 1<<26 || m.pageSize&(m.pageSize-1) != 0:
		return fmt.Errorf("the file is damaged: its pages have %d bytes", m.pageSize)
	case m.end < 4 || m.end > uint64(size/m.pageSize):
		return fmt.Errorf(
			"the file is damaged: it has %d bytes, which is less than its %d pages of %d bytes "+
				"take: its end is missing",
			size, m.end, m.pageSize)
	}
	v.used = make([]uint64, m.end/64+1)
	v.used[0] = 3 // the meta pages
	if err := v.tree(m.root, nil, nil, 0); err != nil {
		return err
	}
	if m.freeList == noFreeList {
		return nil
	}
	return v.free()
}

func damagedPage(id uint64, format string, args ...any) error {
	return fmt.Errorf("the file is damaged: page %d %s", id, fmt.Sprintf(format, args...))
}

// take marks n pages as used.
func (v *verifier) take(id, n uint64) error {
	if id < 2 || id >= v.m.end || n > v.m.end-id {
		return damagedPage(id, "is in use, with %d more, and there are %d pages", n-1, v.m.end)
	}
	for ; n > 0; id, n = id+1, n-1 {
		if v.used[id/64]&(1<<(id%64)) != 0 {
			return damagedPage(id, "is used twice")
		}
		v.used[id/64] |= 1 << (id % 64)
	}
	return nil
}

// page reads a page, with those that it goes on for.
func (v *verifier) page(id uint64) ([]byte, error) {
	if err := v.take(id, 1); err != nil {
		return nil, err
	}
	b, err := v.read(make([]byte, v.m.pageSize), id)
	if err != nil {
		return nil, err
	}
	if self := binary.NativeEndian.Uint64(b); self != id {
		return nil, damagedPage(id, "says that it is page %d", self)
	}
	more := uint64(binary.NativeEndian.Uint32(b[12:]))
	if more == 0 {
		return b, nil
	}
	if err := v.take(id+1, more); err != nil {
		return nil, err
	}
	return v.read(make([]byte, (1+more)*uint64(v.m.pageSize)), id)
}

// read fills b with what begins at a page.
func (v *verifier) read(b []byte, id uint64) ([]byte, error) {
	if n, err := v.f.ReadAt(b, int64(id)*v.m.pageSize); n < len(b) {
		return nil, err
	}
	return b, nil
}

func kindOf(page []byte) uint16 { return binary.NativeEndian.Uint16(page[8:]) }

func countOf(page []byte) int { return int(binary.NativeEndian.Uint16(page[10:])) }

// tree checks a page of a tree and all below it. Its keys are at least low and, unless high is nil,
// below high.
func (v *verifier) tree(id uint64, low, high []byte, depth int) error {
	if depth > maxDepth {
		return damagedPage(id, "is %d levels deep", depth)
	}
	b, err := v.page(id)
	if err != nil {
		return err
	}
	if kind := kindOf(b); kind != kindBranch && kind != kindLeaf {
		return damagedPage(id, "is of kind %#x, not a branch or a leaf", kind)
	}
	es, err := elements(id, b)
	if err != nil {
		return err
	}
	if err := order(id, es, low, high); err != nil {
		return err
	}
	if kindOf(b) == kindLeaf {
		return v.buckets(id, es, depth)
	}
	if len(es) == 0 {
		return damagedPage(id, "is a branch without elements")
	}
	for i, e := range es {
		next := high
		if i+1 < len(es) {
			next = es[i+1].key
		}
		if err := v.tree(e.child, e.key, next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// An element is a child of a branch, or a key and its value in a leaf.
type element struct {
	key, value []byte
	child      uint64
	isBucket   bool
}

// elements returns those of a branch or leaf. What they point to follows them without gaps, in the
// same order.
func elements(id uint64, page []byte) ([]element, error) {
	n, u32 := countOf(page), binary.NativeEndian.Uint32
	at := pageHeader + n*elementSize
	if at > len(page) {
		return nil, damagedPage(id, "has no room for %d elements", n)
	}
	es := make([]element, n)
	for i := range es {
		b, e := page[pageHeader+i*elementSize:], &es[i]
		var pos, key, value uint64
		if kindOf(page) == kindBranch {
			pos, key, e.child = uint64(u32(b)), uint64(u32(b[4:])),
				binary.NativeEndian.Uint64(b[8:])
		} else {
			pos, key, value = uint64(u32(b[4:])), uint64(u32(b[8:])), uint64(u32(b[12:]))
			e.isBucket = u32(b)&elementBucket != 0
		}
		if pos != uint64(at-pageHeader-i*elementSize) || key+value > uint64(len(page)-at) {
			return nil, damagedPage(id, "has element %d of %d outside of its place", i, n)
		}
		e.key, e.value = page[at:at+int(key)], page[at+int(key):at+int(key+value)]
		at += int(key + value)
	}
	return es, nil
}

// order checks the keys.
func order(id uint64, es []element, low, high []byte) error {
	for i, e := range es {
		if bytes.Compare(e.key, low) < 0 || i > 0 && bytes.Equal(e.key, low) || high != nil &&
			bytes.Compare(e.key, high) >= 0 {
			return damagedPage(id, "has element %d of %d in the wrong order", i, len(es))
		}
		low = e.key
	}
	return nil
}

// buckets checks the buckets among the elements of a leaf.
func (v *verifier) buckets(id uint64, es []element, depth int) error {
	for _, e := range es {
		if !e.isBucket {
			continue
		}
		if len(e.value) < bucketSize {
			return damagedPage(id, "has a bucket of %d bytes", len(e.value))
		}
		if root := binary.NativeEndian.Uint64(e.value); root != 0 {
			if err := v.tree(root, nil, nil, depth+1); err != nil {
				return err
			}
			continue
		}
		page := e.value[bucketSize:]
		if len(page) < pageHeader || kindOf(page) != kindLeaf || depth > maxDepth {
			return damagedPage(id, "has a bucket that holds no leaf")
		}
		inner, err := elements(id, page)
		if err == nil {
			err = order(id, inner, nil, nil)
		}
		if err == nil {
			err = v.buckets(id, inner, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// free checks the list of free pages: none of them may be in use.
func (v *verifier) free() error {
	id := v.m.freeList
	b, err := v.page(id)
	if err != nil {
		return err
	}
	if kindOf(b) != kindFree {
		return damagedPage(id, "is of kind %#x, not the list of free pages", kindOf(b))
	}
	n, list := uint64(countOf(b)), b[pageHeader:]
	if n == 0xFFFF { // then it begins with the number
		n, list = binary.NativeEndian.Uint64(list), list[8:]
	}
	if n > uint64(len(list)/8) {
		return damagedPage(id, "has no room for %d free pages", n)
	}
	last := uint64(0)
	for i := range n {
		page := binary.NativeEndian.Uint64(list[i*8:])
		if page <= last {
			return damagedPage(id, "has free pages in another order than theirs")
		}
		if err := v.take(page, 1); err != nil {
			return err
		}
		last = page
	}
	return nil
}
