package segment

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
)

// A CorruptError says that the content of a file is not what was written to it, or that this
// program cannot read it. Nothing has been changed.
type CorruptError struct {
	File   string // in the directory of the store
	Offset int64  // where in the file
	Reason string
}

// Error names file, offset and reason.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged at offset %d: %s", e.File, e.Offset, e.Reason)
}

// The layout of files, see doc.go.
const (
	version    = 1
	magic      = "DunlinSG"
	headerSize = 64
	recordSize = 28                    // of the header of a record
	maxBody    = 1<<31 - 1 - (1 << 20) // of a record

	// flagSynced says that every record before this one was synced when this one was written.
	flagSynced = 1 << 0

	// Kinds of segments.
	kindLog    = 0
	kindFolded = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(seed uint32, b []byte) uint32 { return crc32.Update(seed, castagnoli, b) }

// A header begins each segment.
type header struct {
	number uint64
	store  uint64 // which store it belongs to
	kind   uint32
	marker uint32 // begins each record
	seed   uint32 // of the checksums of records
	first  uint64 // the number of the first record
}

// newHeader chooses marker and seed at random, so that clients who send payloads cannot know what a
// record looks like.
func newHeader(number, store uint64, kind uint32, first uint64) header {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return header{
		number: number, store: store, kind: kind, first: first,
		marker: binary.LittleEndian.Uint32(b[:]) | 1, // not 0, as is what was not written
		seed:   binary.LittleEndian.Uint32(b[4:]),
	}
}

func (h *header) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, magic...)
	dst = binary.LittleEndian.AppendUint32(dst, version)
	dst = binary.LittleEndian.AppendUint32(dst, h.kind)
	dst = binary.LittleEndian.AppendUint64(dst, h.number)
	dst = binary.LittleEndian.AppendUint64(dst, h.store)
	dst = binary.LittleEndian.AppendUint32(dst, h.marker)
	dst = binary.LittleEndian.AppendUint32(dst, h.seed)
	dst = binary.LittleEndian.AppendUint64(dst, h.first)
	dst = append(dst, make([]byte, headerSize-4-(len(dst)-at))...)
	return binary.LittleEndian.AppendUint32(dst, checksum(0, dst[at:]))
}

// parseHeader checks the header of a segment against the expected segment.
func parseHeader(name string, b []byte, number, store uint64) (header, error) {
	damaged := func(offset int64, format string, args ...any) (header, error) {
		return header{}, &CorruptError{name, offset, fmt.Sprintf(format, args...)}
	}
	switch {
	case len(b) < headerSize:
		return damaged(int64(len(b)), "the file ends inside its header")
	case string(b[:len(magic)]) != magic:
		return damaged(0, "it is no segment of a Dunlin store")
	case checksum(0, b[:headerSize-4]) != binary.LittleEndian.Uint32(b[headerSize-4:]):
		return damaged(0, "the checksum of the header does not match")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return damaged(8, "%s", newer(uint64(v)))
	}
	h := header{
		kind:   binary.LittleEndian.Uint32(b[12:]),
		number: binary.LittleEndian.Uint64(b[16:]),
		store:  binary.LittleEndian.Uint64(b[24:]),
		marker: binary.LittleEndian.Uint32(b[32:]),
		seed:   binary.LittleEndian.Uint32(b[36:]),
		first:  binary.LittleEndian.Uint64(b[40:]),
	}
	if h.number != number || h.store != store {
		return damaged(16, "it is segment %d of store %016x, not %d of %016x", h.number, h.store,
			number, store)
	}
	return h, nil
}

// frame fills the header of a record in the first recordSize bytes of b. The rest of b is the body.
func (h *header) frame(b []byte, number uint64, flags uint32) {
	body := b[recordSize:]
	binary.LittleEndian.PutUint32(b, h.marker)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	binary.LittleEndian.PutUint64(b[8:], number)
	binary.LittleEndian.PutUint32(b[16:], flags)
	binary.LittleEndian.PutUint32(b[20:], checksum(h.seed, body))
	binary.LittleEndian.PutUint32(b[24:], checksum(h.seed, b[:24]))
}

// A record is one commit, or a part of a folded segment.
type record struct {
	offset int64
	number uint64
	flags  uint32
	body   []byte
}

// parse reads the header of a record, and says whether it is a valid one.
func (h *header) parse(b []byte) (r record, length int64, sum uint32, ok bool) {
	if binary.LittleEndian.Uint32(b) != h.marker ||
		checksum(h.seed, b[:24]) != binary.LittleEndian.Uint32(b[24:]) {
		return record{}, 0, 0, false
	}
	r = record{number: binary.LittleEndian.Uint64(b[8:]), flags: binary.LittleEndian.Uint32(b[16:])}
	return r, int64(binary.LittleEndian.Uint32(b[4:])), binary.LittleEndian.Uint32(b[20:]), true
}

// A reader reads the records of a segment, from the first one to end.
type reader struct {
	header
	file disk.File
	name string
	off  int64  // of the next record
	end  int64  // where records end, or the file
	last uint64 // the record before

	window []byte // what was read of the file, from at on
	at     int64
}

const windowSize = 1 << 20

// newReader reads the header. The records end at end.
func newReader(file disk.File, name string, number, store uint64, end int64) (*reader, error) {
	r := &reader{file: file, name: name, off: headerSize, end: end}
	b, err := r.bytes(0, min(headerSize, end))
	if err != nil {
		return nil, err
	}
	if r.header, err = parseHeader(name, b, number, store); err != nil {
		return nil, err
	}
	r.last = r.first - 1
	return r, nil
}

// bytes returns n bytes of the file, valid until the next call. The file must have them.
func (r *reader) bytes(off, n int64) ([]byte, error) {
	if off >= r.at && off+n <= r.at+int64(len(r.window)) {
		return r.window[off-r.at:][:n], nil
	}
	size := min(max(n, windowSize), r.end-off)
	if int64(cap(r.window)) < size || int64(cap(r.window)) > 8*max(n, windowSize) {
		r.window = make([]byte, size)
	}
	r.window, r.at = r.window[:size], off
	if k, err := r.file.ReadAt(r.window, off); int64(k) < size {
		r.window = nil
		if errors.Is(err, io.EOF) {
			return nil, r.damaged(off+int64(k), "the file ends, %d bytes too early", size-int64(k))
		}
		return nil, fmt.Errorf("%s: %w", r.name, err)
	}
	return r.window[:n], nil
}

func (r *reader) damaged(offset int64, format string, args ...any) error {
	return &CorruptError{r.name, offset, fmt.Sprintf(format, args...)}
}

// next returns the next record, valid until the call after. Its error is io.EOF or a CorruptError.
// After a CorruptError the reader does not move.
func (r *reader) next() (record, error) {
	if r.off >= r.end {
		return record{}, io.EOF
	}
	if r.end-r.off < recordSize {
		return record{}, r.damaged(r.off, "%d bytes are no record", r.end-r.off)
	}
	b, err := r.bytes(r.off, recordSize)
	if err != nil {
		return record{}, err
	}
	rec, length, sum, ok := r.parse(b)
	switch {
	case !ok:
		return record{}, r.damaged(r.off, "the header of a record does not match its checksum")
	case length > r.end-r.off-recordSize:
		return record{}, r.damaged(r.off, "a record of %d bytes does not fit the file", length)
	case rec.number != r.last+1:
		return record{}, r.damaged(r.off, "record %d follows record %d", rec.number, r.last)
	}
	if rec.body, err = r.bytes(r.off+recordSize, length); err != nil {
		return record{}, err
	}
	if checksum(r.seed, rec.body) != sum {
		return record{}, r.damaged(r.off, "record %d does not match its checksum", rec.number)
	}
	rec.offset = r.off
	r.off += recordSize + length
	r.last = rec.number
	return rec, nil
}

// skip continues after damage, at the next header of a record that has all of the flags. It says
// whether there is one.
func (r *reader) skip(flags uint32) (found bool, err error) {
	marker := binary.LittleEndian.AppendUint32(nil, r.marker)
	for off := r.off + 1; off+recordSize <= r.end; {
		b, err := r.bytes(off, min(windowSize, r.end-off))
		if err != nil {
			return false, err
		}
		for i := 0; i+recordSize <= len(b); i++ {
			k := bytes.Index(b[i:], marker)
			if k < 0 || i+k+recordSize > len(b) {
				break
			}
			i += k
			if rec, _, _, ok := r.parse(b[i:]); ok && rec.number > r.last &&
				rec.flags&flags == flags {
				r.off, r.last = off+int64(i), rec.number-1
				return true, nil
			}
		}
		off += int64(len(b)) - recordSize + 1
	}
	return false, nil
}

// blank says whether the rest of the file is zero.
func (r *reader) blank() (bool, error) {
	for off := r.off; off < r.end; {
		b, err := r.bytes(off, min(windowSize, r.end-off))
		if err != nil {
			return false, err
		}
		if len(bytes.Trim(b, "\x00")) > 0 {
			return false, nil
		}
		off += int64(len(b))
	}
	return true, nil
}
