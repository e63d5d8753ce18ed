package segment

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// kill leaves the files of a store as they are, as when its process is killed. A compaction under
// way has ended before.
func (s *Store) kill(t *testing.T) {
	t.Helper()
	s.background.Wait()
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		require.NoError(t, s.file.Close())
	}
	s.err = ErrClosed
	require.NoError(t, s.lock.Close())
}

// checkRoom checks that no sealed segment has more room than it takes.
func checkRoom(t *testing.T, sim *disk.Sim) manifest {
	t.Helper()
	files := sim.Files()
	m, err := parseManifest(files[manifestName])
	require.NoError(t, err)
	for _, seg := range m.segments() {
		require.Len(t, files[segmentName(seg.number)], int(seg.size), "segment %d", seg.number)
	}
	return m
}

// However often a process ends, and whatever little each one writes, neither room nor files become
// more and more.
func TestManyShortLives(t *testing.T) {
	const size = 64 << 10
	for name, end := range map[string]func(s *Store){
		"killed": func(s *Store) { s.kill(t) },
		"closed": func(s *Store) { require.NoError(t, s.Close()) },
		"killed or closed": func(s *Store) {
			if s.last%3 == 0 {
				s.kill(t)
			} else {
				require.NoError(t, s.Close())
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			sim, want := disk.NewSim(1), storetest.NewState()
			most := 0
			for n := range uint64(100) {
				s, err := open(sim, Options{SegmentSize: size})
				require.NoError(t, err)
				same(t, want, fold(t, s))
				op := put(n%7 + 1)
				require.NoError(t, s.Commit(ctx, []store.Op{op}))
				want.Apply(op)
				end(s)
				checkRoom(t, sim)
				used := 0
				for _, data := range sim.Files() {
					used += len(data)
				}
				require.Less(t, used, 2*size, "bytes after %d lives", n+1)
				most = max(most, len(sim.Files()))
			}
			require.LessOrEqual(t, most, fewSegments+5,
				"files: sealed ones, the active one, the next one, a folded one, manifest and lock")
		})
	}
}

// A crash at any call to the disk during the first commit after a kill, or after so many that it
// compacts, leaves a store that has all that was committed, and gives the room back.
func TestCrashWhileReservedRoomIsGivenBack(t *testing.T) {
	for _, lives := range []uint64{1, fewSegments + 1} {
		t.Run(fmt.Sprint(lives, " lives before"), func(t *testing.T) {
			before, want := disk.NewSim(1), storetest.NewState()
			for n := range lives {
				s, err := open(before, Options{SegmentSize: 5000})
				require.NoError(t, err)
				require.NoError(t, s.Commit(ctx, []store.Op{put(n + 1)}))
				want.Apply(put(n + 1))
				s.kill(t)
			}
			at := 1
			for crashAt(t, before, want, at) {
				at++
			}
			require.Greater(t, at, 20, "calls to the disk")
		})
	}
}

// crashAt lets a store crash at a call to the disk during a commit, and tells whether there were so
// many.
func crashAt(t *testing.T, before *disk.Sim, want *storetest.State, at int) (crashed bool) {
	for loss := range disk.Sectors + 1 {
		sim := before.Crash(uint64(at), disk.Nothing)
		s, err := open(sim, Options{SegmentSize: 5000})
		require.NoError(t, err)
		from := sim.Calls()
		sim.SetFault(func(c disk.Call) error {
			if c.N-from >= at {
				return disk.ErrCut
			}
			return nil
		})
		failed := s.Commit(ctx, []store.Op{put(77)})
		crashed = sim.Calls()-from >= at
		sim = sim.Crash(uint64(at), loss)

		s, err = open(sim, Options{SegmentSize: 5000})
		require.NoError(t, err, "call %d, loss %d", at, loss)
		want, got := want.Clone(), fold(t, s)
		if failed == nil || !got.Equal(want) {
			want.Apply(put(77))
		}
		same(t, want, got)
		require.NoError(t, s.Commit(ctx, []store.Op{put(78)}))
		want.Apply(put(78))
		same(t, want, fold(t, s))
		checkRoom(t, sim)
		require.NoError(t, s.Close())
		checkRoom(t, sim)
	}
	return crashed
}

// A store whose sealed segments still have the room that killed processes had reserved, as versions
// left it that did not give it back.
func TestReservedRoomBehindSealedSegments(t *testing.T) {
	files, states := crashed(t, Options{SegmentSize: 2000})
	want := states[len(states)-1]
	m, err := parseManifest(files[manifestName])
	require.NoError(t, err)
	first, second := segmentName(m.sealed[0].number), segmentName(m.sealed[1].number)
	folded := segmentName(m.folded.number)
	odd := append(bytes.Clone(files[second]), "\x00\x00half a record"...)
	room := make([]byte, 3*windowSize)
	left := maps.Clone(files)
	left[first] = append(bytes.Clone(files[first]), room...)
	left[second] = append(bytes.Clone(odd), room...)
	left[folded] = append(bytes.Clone(files[folded]), room...)
	sim := simOf(left)

	s, err := open(sim, Options{SegmentSize: 2000})
	require.NoError(t, err)
	same(t, want, fold(t, s))
	after := sim.Files()
	require.True(t, maps.EqualFunc(left, after, bytes.Equal), "Open and Load change nothing")
	s.compacting.Lock() // no compaction
	require.NoError(t, s.Commit(ctx, []store.Op{put(77)}))
	after = sim.Files()
	require.Equal(t, files[first], after[first], "zeros are cut off")
	require.Equal(t, odd, after[second], "what is not zero stays")
	require.Equal(t, left[folded], after[folded],
		"no room is ever reserved behind a folded segment: this is something else")
	s.compacting.Unlock()
	want = want.Clone()
	want.Apply(put(77))
	same(t, want, fold(t, s))
	require.NoError(t, s.Close())
}

// Half a record at the end stays when the room behind it is given back.
func TestReservedRoomBehindATornEnd(t *testing.T) {
	sim := disk.NewSim(1)
	s, err := open(sim, Options{SegmentSize: 5 << 20})
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, []store.Op{put(1)}))
	end := s.off
	require.NoError(t, s.Commit(ctx, []store.Op{publish(1, strings.Repeat("x", 1000), 1)}))
	s.kill(t)
	torn := sim.Files()[segmentName(1)]
	clear(torn[end+500:])
	sim.Put(segmentName(1), torn)

	s, err = open(sim, Options{SegmentSize: 5 << 20})
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, []store.Op{put(2)}))
	require.Equal(t, torn[:end+500], sim.Files()[segmentName(1)])
	s.kill(t)
	s, err = open(sim, Options{SegmentSize: 5 << 20})
	require.NoError(t, err)
	want := storetest.NewState()
	want.Apply(put(1), put(2))
	same(t, want, fold(t, s))
	require.NoError(t, s.Close())
}

// If the room cannot be given back, the store serves all the same, and tries again when it is
// opened anew.
func TestReservedRoomThatCannotBeGivenBack(t *testing.T) {
	sim := disk.NewSim(1)
	want := storetest.NewState()
	for n := range uint64(3) {
		s, err := open(sim, Options{SegmentSize: 5000})
		require.NoError(t, err)
		sim.SetFault(func(c disk.Call) error {
			if c.Kind == "truncate" && c.Name <= segmentName(n) { // those of the lives before
				return errors.New("broken")
			}
			return nil
		})
		require.NoError(t, s.Commit(ctx, []store.Op{put(n + 1)}))
		want.Apply(put(n + 1))
		sim.SetFault(nil)
		s.kill(t)
	}
	require.Len(t, sim.Files()[segmentName(1)], 5000)
	s, err := open(sim, Options{SegmentSize: 5000})
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, []store.Op{put(4)}))
	want.Apply(put(4))
	require.Len(t, checkRoom(t, sim).sealed, 3)
	same(t, want, fold(t, s))
	require.NoError(t, s.Close())
}

func TestWhenSegmentsAreShort(t *testing.T) {
	for _, c := range []struct {
		name         string
		folded, each int64
		n            int
		want         bool
	}{
		{"few", 0, 100, fewSegments, false},
		{"one more", 0, 100, fewSegments + 1, true},
		{"many that are full", 0, 1000, 100, false},
		{"many that are half full", 0, 500, 100, false},
		{"few beside what would have to be written again", 10_000, 100, fewSegments + 20, false},
		{"many beside it", 10_000, 1, fewSegments + 21, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := manifest{folded: sealed{size: c.folded}}
			for range c.n {
				m.sealed = append(m.sealed, sealed{size: c.each})
			}
			require.Equal(t, c.want, m.short(1000), fmt.Sprint(m.grown()))
		})
	}
}
