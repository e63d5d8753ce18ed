package segment

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
)

const (
	manifestName = "manifest"
	manifestNext = "manifest.new"
	lockName     = "lock"
	suffix       = ".log"
)

// A manifest lists the files of the store, in the order of the log: the folded segment if there is
// one, the sealed segments, and the active segment.
type manifest struct {
	store  uint64
	folded sealed // number 0: none. Its records count from 1
	upTo   uint64 // the last commit that is in folded
	sealed []sealed
	active uint64 // the segment that is written to; 0: none
}

// A sealed segment is never written again.
type sealed struct {
	number      uint64
	size        int64
	first, last uint64 // records
}

// newManifest makes the manifest of an empty store.
func newManifest() manifest {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return manifest{store: binary.LittleEndian.Uint64(b[:])}
}

func (m manifest) clone() manifest {
	m.sealed = slices.Clone(m.sealed)
	return m
}

// last returns the last commit of the folded and the sealed segments.
func (m *manifest) last() uint64 {
	if len(m.sealed) == 0 {
		return m.upTo
	}
	return m.sealed[len(m.sealed)-1].last
}

// grown returns the size of the sealed segments.
func (m *manifest) grown() (n int64) {
	for _, s := range m.sealed {
		n += s.size
	}
	return n
}

// short says whether there are many more sealed segments than the content needs, because many of
// them are short. A segment that one process fills is at least half full. Shorter segments come
// from processes that have ended. The size of the folded segment counts, because removing them
// writes it again.
func (m *manifest) short(length int64) bool {
	return int64(len(m.sealed)) > fewSegments+2*((m.folded.size+m.grown())/length)
}

// numbers returns the numbers of all segments.
func (m *manifest) numbers() (all []uint64) {
	if m.folded.number != 0 {
		all = append(all, m.folded.number)
	}
	for _, s := range m.sealed {
		all = append(all, s.number)
	}
	if m.active != 0 {
		all = append(all, m.active)
	}
	return all
}

func segmentName(number uint64) string { return fmt.Sprintf("%08d%s", number, suffix) }

// segmentNumber returns the number in a file name.
func segmentNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && err == nil && segmentName(n) == name
}

func (m *manifest) text() []byte {
	dst := fmt.Appendf(nil, "dunlin segment store %d\n", version)
	dst = fmt.Appendf(dst, "store %016x\n", m.store)
	if f := m.folded; f.number != 0 {
		dst = fmt.Appendf(dst, "folded %d bytes %d records %d commits %d\n", f.number, f.size,
			f.last, m.upTo)
	}
	for _, s := range m.sealed {
		dst = fmt.Appendf(dst, "sealed %d bytes %d commits %d %d\n", s.number, s.size, s.first,
			s.last)
	}
	if m.active != 0 {
		dst = fmt.Appendf(dst, "active %d\n", m.active)
	}
	return appendChecksum(dst)
}

// appendChecksum appends the last line.
func appendChecksum(b []byte) []byte { return fmt.Appendf(b, "crc32c %08x\n", checksum(0, b)) }

// parseManifest reads the output of text, and accepts nothing else.
func parseManifest(b []byte) (manifest, error) {
	damaged := func(offset int, reason string) (manifest, error) {
		return manifest{}, &CorruptError{manifestName, int64(offset), reason}
	}
	first, _, _ := bytes.Cut(b, []byte("\n"))
	if string(first) != fmt.Sprintf("dunlin segment store %d", version) {
		var v uint64
		if n, err := fmt.Sscanf(string(first), "dunlin segment store %d", &v); n == 1 &&
			err == nil && v > version {
			return damaged(len(first)-1, newer(v))
		}
		return damaged(0, "it is not that of a Dunlin store")
	}
	end := bytes.LastIndex(b, []byte("crc32c "))
	if end < 0 {
		return damaged(len(b), "the file ends too early")
	}
	if !bytes.Equal(b, appendChecksum(bytes.Clone(b[:end]))) {
		return damaged(end, "the checksum does not match")
	}
	var m manifest
	for line := range strings.Lines(string(b[:end])) {
		m.line(line)
	}
	for _, s := range m.segments() {
		if s.size < headerSize {
			return damaged(0, fmt.Sprintf("segment %d has %d bytes", s.number, s.size))
		}
	}
	if again := m.text(); !bytes.Equal(again, b) {
		at := 0
		for at < min(len(again), len(b)) && again[at] == b[at] {
			at++
		}
		return damaged(at, "a line is not understood")
	}
	return m, nil
}

func newer(v uint64) string {
	return fmt.Sprintf(
		"it has format %d, and this program reads format %d: use the newer Dunlin that wrote it", v,
		version)
}

// line reads one line. parseManifest checks that it was a whole line.
func (m *manifest) line(line string) {
	var s sealed
	switch kind, _, _ := strings.Cut(line, " "); kind {
	case "store":
		fmt.Sscanf(line, "store %x\n", &m.store)
	case "folded":
		fmt.Sscanf(line, "folded %d bytes %d records %d commits %d\n", &s.number, &s.size, &s.last,
			&m.upTo)
		s.first = 1
		m.folded = s
	case "sealed":
		fmt.Sscanf(line, "sealed %d bytes %d commits %d %d\n", &s.number, &s.size, &s.first,
			&s.last)
		m.sealed = append(m.sealed, s)
	case "active":
		fmt.Sscanf(line, "active %d\n", &m.active)
	}
}

// readManifest returns fs.ErrNotExist if there is no manifest.
func readManifest(dir disk.Dir) (manifest, error) {
	f, err := dir.Open(manifestName)
	if err != nil {
		return manifest{}, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return manifest{}, err
	}
	const limit = 64 << 20 // a million segments
	if size > limit {
		return manifest{}, &CorruptError{manifestName, limit, "it is too long"}
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) < size {
		return manifest{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	return parseManifest(b)
}

// writeManifest replaces the manifest in one durable step. If renamed is false, the old manifest is
// certainly still in place.
func writeManifest(dir disk.Dir, m *manifest) (renamed bool, err error) {
	if err := dir.Remove(manifestNext); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	f, err := dir.Create(manifestNext)
	if err != nil {
		return false, err
	}
	text := m.text()
	_, err = f.WriteAt(text, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		dir.Remove(manifestNext)
		return false, err
	}
	if err := dir.Rename(manifestNext, manifestName); err != nil {
		// It may have been done all the same.
		is, rerr := readManifest(dir)
		if rerr != nil || !bytes.Equal(is.text(), text) {
			return rerr != nil, err
		}
	}
	return true, dir.Sync()
}
