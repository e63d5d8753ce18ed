package segment

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// A filling commits messages to a store until it is full, and takes them out again.
type filling struct {
	t        *testing.T
	store    *Store
	want     *storetest.State
	seq, out uint64
}

func fillingOf(t *testing.T, s *Store) *filling {
	f := &filling{t: t, store: s, want: storetest.NewState()}
	require.NoError(t, s.Commit(ctx, []store.Op{put(1)}))
	f.want.Apply(put(1))
	return f
}

// add adds a message of 10,000 bytes.
func (f *filling) add() error {
	p := publish(f.seq, strings.Repeat("x", 10_000), 1)
	err := f.store.Commit(ctx, []store.Op{p})
	if err == nil {
		f.want.Apply(p)
		f.seq++
	}
	return err
}

// fill adds until there is no room, and returns how many went in.
func (f *filling) fill() int {
	f.t.Helper()
	for n := 0; ; n++ {
		if err := f.add(); err != nil {
			require.ErrorIs(f.t, err, store.ErrFull)
			return n
		}
	}
}

// drain takes everything out, which works on a full disk, too.
func (f *filling) drain() {
	f.t.Helper()
	for ; f.out < f.seq; f.out++ {
		done := &store.Done{Session: 1, Seq: f.out}
		require.NoError(f.t, f.store.Commit(ctx, []store.Op{done}))
		f.want.Apply(done)
	}
}

// recovers waits until so many messages have been added again. It is for a bubble.
func (f *filling) recovers(n int) {
	f.t.Helper()
	for began := time.Now(); n > 0; n -= f.fill() {
		// a compaction that found no room is followed by a pause, ten times as long as it took
		time.Sleep(10 * time.Millisecond)
		require.Less(f.t, time.Since(began), 2*time.Minute, "%d messages have not found room", n)
	}
}

func TestFullDisk(t *testing.T) {
	t.Run("room that comes from elsewhere is used", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sim := disk.NewSim(1)
			sim.Capacity = 1 << 20
			s, err := open(sim, Options{})
			require.NoError(t, err)
			f := fillingOf(t, s)
			require.Less(t, 30, f.fill(), "segments are shorter on a small disk")
			same(t, f.want, fold(t, s))
			sim.SetCapacity(8 << 20)
			f.recovers(300)
			same(t, f.want, fold(t, s))
			after := sim.Crash(1, disk.Everything)
			require.NoError(t, s.Close())
			got, err := loadSim(after)
			require.NoError(t, err)
			same(t, f.want, got)
		})
	})
	t.Run("what is taken out makes room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sim := disk.NewSim(1)
			sim.Capacity = 1 << 20
			s, err := open(sim, Options{SegmentSize: 256 << 10})
			require.NoError(t, err)
			f := fillingOf(t, s)
			for range 3 {
				f.recovers(30)
				f.drain()
				same(t, f.want, fold(t, s))
			}
			require.NoError(t, s.Close())
		})
	})
}

// Whoever has filled the disk, what adds nothing is committed, also after a kill: clients can
// resume their Sessions and take messages out.
func TestFullDiskLeavesRoomForWhatAddsNothing(t *testing.T) {
	t.Run("bytes", func(t *testing.T) { leavesRoom(t, 1, 0) })
	for n := range int64(8) {
		t.Run(fmt.Sprint("pages, free ", n), func(t *testing.T) { leavesRoom(t, 4<<10, n) })
	}
}

// leavesRoom has so many blocks free when the store is opened on the full disk.
func leavesRoom(t *testing.T, block, free int64) {
	sim := disk.NewSim(1)
	sim.Capacity, sim.Block = 2<<20, block
	s, err := open(sim, Options{SegmentSize: 256 << 10})
	require.NoError(t, err)
	f := fillingOf(t, s)
	for range 30 {
		require.NoError(t, f.add())
	}
	leave := func(free int64) {
		used := free * block
		for _, data := range sim.Files() {
			used += (int64(len(data)) + block - 1) / block * block
		}
		sim.SetCapacity(used)
		s.mu.Lock()
		s.notBefore = time.Now().Add(time.Hour) // no compaction
		s.mu.Unlock()
	}
	leave(0)
	f.fill()
	little := func() {
		t.Helper()
		resumed := put(1)
		require.NoError(t, s.Commit(ctx, []store.Op{resumed, &store.Done{Session: 1, Seq: f.out}}))
		f.want.Apply(&store.Done{Session: 1, Seq: f.out})
		f.out++
	}
	for range 20 {
		little()
	}
	sim = sim.Crash(1, disk.Nothing)
	s, err = open(sim, Options{SegmentSize: 256 << 10})
	require.NoError(t, err)
	f.store = s
	same(t, f.want, fold(t, s))
	leave(free)
	for range 10 {
		little()
	}
	same(t, f.want, fold(t, s))
	require.NoError(t, s.Close())
}
