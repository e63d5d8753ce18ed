package segment

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

var ctx = context.Background()

func put(session uint64) store.Op {
	return &store.PutSession{Session: session, ClientID: "client", Expiry: 60}
}

// crashed makes a store with a folded segment, sealed ones and an active one, as it is left by a
// killed process, and returns its files and what it holds after each of the last commits, the
// latest last.
func crashed(t *testing.T, opts Options) (map[string][]byte, []*storetest.State) {
	t.Helper()
	sim := disk.NewSim(1)
	s, err := open(sim, opts)
	require.NoError(t, err)
	h := storetest.NewHistory(11)
	h.Large = 300
	var states []*storetest.State
	commit := func() {
		ops := h.Batch()
		require.NoError(t, s.Commit(ctx, ops))
		if len(ops) > 0 {
			states = append(states, h.State.Clone())
		}
	}
	for range 6 {
		commit()
	}
	require.NoError(t, s.Compact(ctx))
	enough := func() bool {
		s.mu.Lock() // a compaction may be under way
		defer s.mu.Unlock()
		return len(s.man.sealed) >= 2 && s.off >= headerSize+3*recordSize &&
			s.last >= s.man.last()+3
	}
	for !enough() {
		commit()
	}
	after := sim.Crash(1, disk.Nothing)
	require.NoError(t, s.Close())
	return after.Files(), states[len(states)-2:]
}

func simOf(files map[string][]byte) *disk.Sim {
	sim := disk.NewSim(1)
	for name, data := range files {
		sim.Put(name, data)
	}
	return sim
}

// loadSim opens and loads a store and leaves it as a crash would.
func loadSim(sim *disk.Sim) (*storetest.State, error) {
	s, err := open(sim, Options{})
	if err != nil {
		return nil, err
	}
	got, err := storetest.Fold(s.Load(ctx))
	return got, errors.Join(err, s.Close())
}

// checkDamaged loads files of which one was damaged, and returns whether that was refused. If not,
// the store holds one of the states. If whole is set the log may end behind a record.
func checkDamaged(t *testing.T, files map[string][]byte, name string, whole bool,
	states []*storetest.State) (refused bool) {
	t.Helper()
	sim := simOf(files)
	got, err := loadSim(sim)
	after := sim.Files()
	delete(after, lockName)
	require.True(t, maps.EqualFunc(files, after, bytes.Equal), "something was overwritten")
	report, verr := inspectDir(simOf(files), nil)
	if err != nil {
		var damage *CorruptError
		require.ErrorAs(t, err, &damage)
		require.Equal(t, name, damage.File, "%v", err)
		require.Error(t, verr, "Verify does not find: %v", err)
		return true
	}
	require.NoError(t, verr)
	i := slices.IndexFunc(states, got.Equal)
	require.GreaterOrEqual(t, i, 0, "it loads as something that was never committed:\n%s",
		states[len(states)-1].Diff(got))
	require.True(t, i == len(states)-1 || report.Torn > 0 || whole,
		"Verify does not tell of a torn end")
	return false
}

func TestEveryFlippedBitIsFoundOrHarmless(t *testing.T) {
	t.Parallel()
	files, states := crashed(t, Options{SegmentSize: 400})
	delete(files, lockName)
	m, err := parseManifest(files[manifestName])
	require.NoError(t, err)
	require.NotZero(t, m.folded.number)
	require.NotZero(t, m.active)
	require.False(t, checkDamaged(t, files, "", true, states[1:]))
	flips, accepted, step := 0, 0, 1
	if raced {
		step = 7 // the race detector makes it ten times as long
	}
	for name, data := range files {
		end := len(data)
		// behind the records there are zeros; some of them are enough
		if name == segmentName(m.active) {
			end = len(bytes.TrimRight(data, "\x00")) + 40
		}
		for i := 0; i < min(end, len(data))*8; i += step {
			damaged := maps.Clone(files)
			damaged[name] = bytes.Clone(data)
			damaged[name][i/8] ^= 1 << (i % 8)
			flips++
			if checkDamaged(t, damaged, name, false, states) {
				continue
			}
			accepted++
			require.Equal(t, segmentName(m.active), name,
				"a flipped bit at %d is taken for a torn end", i/8)
		}
	}
	t.Logf("%d flips, %d taken for the end of the log", flips, accepted)
	require.Less(t, accepted*3, flips)
}

func TestEveryTruncationIsFoundOrHarmless(t *testing.T) {
	t.Parallel()
	files, _ := crashed(t, Options{SegmentSize: 900})
	delete(files, lockName)
	m, err := parseManifest(files[manifestName])
	require.NoError(t, err)
	// All prefixes of the active segment may be what a crash left.
	var prefixes []*storetest.State
	last := ""
	active := segmentName(m.active)
	for n := headerSize; n <= len(files[active]); n++ {
		cut := maps.Clone(files)
		cut[active] = files[active][:n]
		sim := simOf(cut)
		s, err := open(sim, Options{})
		require.NoError(t, err)
		if key := string(binary.AppendUvarint(nil, s.last)); key != last {
			got, err := storetest.Fold(s.Load(ctx))
			require.NoError(t, err)
			prefixes, last = append(prefixes, got), key
		}
		require.NoError(t, s.Close())
	}
	require.GreaterOrEqual(t, len(prefixes), 4)
	for name, data := range files {
		for n := range len(data) {
			cut := maps.Clone(files)
			cut[name] = data[:n]
			refused := checkDamaged(t, cut, name, true, prefixes)
			require.Equal(t, name != active || n < headerSize, refused, "%s cut at %d", name, n)
		}
		cut := maps.Clone(files)
		delete(cut, name)
		_, err := loadSim(simOf(cut))
		require.ErrorContains(t, err, name, "the file is missing")
	}
}

func TestDamageInTheMiddleIsNoTornEnd(t *testing.T) {
	sim := disk.NewSim(1)
	s, err := open(sim, Options{SegmentSize: 20_000})
	require.NoError(t, err)
	var ends []int64
	for i := range uint64(10) {
		require.NoError(t, s.Commit(ctx, []store.Op{put(i + 1)}))
		ends = append(ends, s.off)
	}
	files := sim.Crash(1, disk.Nothing).Files()
	require.NoError(t, s.Close())
	name := segmentName(1)
	for i := range 9 {
		// marker, length, number, checksum, body
		for _, off := range []int64{0, 4, 8, 24, recordSize} {
			damaged := maps.Clone(files)
			damaged[name] = bytes.Clone(files[name])
			at := headerSize + off
			if i > 0 {
				at = ends[i-1] + off
			}
			damaged[name][at] ^= 0x10
			_, err := loadSim(simOf(damaged))
			var damage *CorruptError
			require.ErrorAs(t, err, &damage)
			require.Equal(t, name, damage.File)
			require.Equal(t, at-off, damage.Offset)
		}
	}
}

func TestForeignFilesAreRefused(t *testing.T) {
	good, _ := crashed(t, Options{SegmentSize: 900})
	other, _ := crashed(t, Options{SegmentSize: 900})
	m, err := parseManifest(good[manifestName])
	require.NoError(t, err)
	with := func(name string, data []byte) map[string][]byte {
		files := maps.Clone(good)
		files[name] = data
		return files
	}
	newerSegment := bytes.Clone(good[segmentName(m.active)])
	newerSegment[8] = 2
	binary.LittleEndian.PutUint32(newerSegment[headerSize-4:],
		checksum(0, newerSegment[:headerSize-4]))
	stale := m.clone()
	stale.active = 0
	for _, c := range []struct {
		name  string
		files map[string][]byte
		want  string
	}{
		{"a directory of something else", map[string][]byte{"data.db": []byte("x")},
			"the directory holds data.db and no manifest"},
		{"segments without a manifest",
			map[string][]byte{segmentName(1): good[segmentName(m.active)]},
			"holds 00000001.log and no manifest"},
		{"a manifest of something else", with(manifestName, []byte("hello\n")),
			"manifest is damaged at offset 0: it is not that of a Dunlin store"},
		{"an empty manifest", with(manifestName, nil), "manifest is damaged at offset 0"},
		{"a manifest of a later version",
			with(manifestName, []byte("dunlin segment store 2\nwhatever\n")),
			"manifest is damaged at offset 21: it has format 2"},
		{"a segment of a later version", with(segmentName(m.active), newerSegment),
			segmentName(m.active) + " is damaged at offset 8: it has format 2"},
		{"a segment of another store", with(segmentName(m.active), other[segmentName(m.active)]),
			"it is segment"},
		{"a segment under another name", with(segmentName(m.active),
			good[segmentName(m.folded.number)]), "it is segment"},
		{"a manifest that is not the latest", with(manifestName, stale.text()),
			"it is not the latest manifest"},
		{"a line that a manifest does not have", with(manifestName,
			resign(append(bytes.Clone(good[manifestName]), "extra\n"...))),
			"a line is not understood"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sim := simOf(c.files)
			_, err := loadSim(sim)
			require.ErrorContains(t, err, c.want)
			after := sim.Files()
			if c.files[lockName] == nil {
				delete(after, lockName)
			}
			require.True(t, maps.EqualFunc(c.files, after, bytes.Equal),
				"something was overwritten")
		})
	}
}

// resign moves the last line of a manifest in front of its checksum, and makes that right.
func resign(b []byte) []byte {
	i := bytes.Index(b, []byte("crc32c "))
	text := append(bytes.Clone(b[:i]), b[i+len("crc32c 01234567\n"):]...)
	return appendChecksum(text)
}

func TestVerifyAndDumpGoOnBehindDamage(t *testing.T) {
	files, _ := crashed(t, Options{SegmentSize: 900})
	m, err := parseManifest(files[manifestName])
	require.NoError(t, err)
	whole, err := inspectDir(simOf(files), nil)
	require.NoError(t, err)
	require.Equal(t, len(m.numbers()), whole.Segments)
	require.Zero(t, whole.Torn)
	planted := map[string]int{segmentName(m.folded.number): headerSize + 30,
		segmentName(m.sealed[0].number): headerSize + 3}
	for name, at := range planted {
		files[name] = bytes.Clone(files[name])
		files[name][at] ^= 1
	}
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	report, err := inspectDir(simOf(files), w)
	require.NoError(t, w.Flush())
	for name := range planted {
		require.ErrorContains(t, err, name+" is damaged at offset 64")
		require.Contains(t, out.String(), "DAMAGED "+name)
	}
	require.Equal(t, whole.Segments, report.Segments)
	require.Equal(t, whole.LastCommit, report.LastCommit)
	require.Less(t, report.Records, whole.Records)
	require.Greater(t, report.Records, 0)
}

// FuzzOpen opens what somebody else has written, with checksums that are right.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("folded 1 bytes 64 records 0 commits 9\nactive 2\n"), []byte{}, []byte{})
	f.Add([]byte("sealed 1 bytes 100 commits 1 1\nactive 2\n"), []byte{2, 2}, []byte{8, 2, 2})
	f.Add([]byte("sealed 1 bytes 9223372036854775807 commits 1 0\n"), []byte{2, 2}, []byte{})
	f.Add([]byte("active 1\nactive 2\nsealed 2 bytes -1 commits 1 18446744073709551615\n"),
		[]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, lines, body1, body2 []byte) {
		sim := disk.NewSim(1)
		sim.Put(manifestName,
			appendChecksum(append([]byte("dunlin segment store 1\nstore 0000000000000007\n"),
				lines...)))
		for i, body := range [][]byte{body1, body2} {
			h := newHeader(uint64(i+1), 7, kindLog, 1)
			b := h.append(nil)
			if len(body) > 0 {
				rec := append(make([]byte, recordSize), body...)
				h.frame(rec, 1, flagSynced)
				b = append(b, rec...)
			}
			sim.Put(segmentName(uint64(i+1)), b)
		}
		if _, err := loadSim(sim); err != nil {
			_, err = inspectDir(sim, bufio.NewWriter(io.Discard))
			require.Error(t, err)
		}
	})
}
