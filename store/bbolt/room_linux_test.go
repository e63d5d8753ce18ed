package bbolt

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// small mounts a file system of so many bytes, which takes the right to do so.
func small(t *testing.T, size string) string {
	t.Helper()
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(mount, syscall.MNT_DETACH)) })
	return mount
}

// A filling commits messages to a store until it is full, and takes them out again.
type filling struct {
	t        *testing.T
	store    *Store
	want     *storetest.State
	seq, out uint64
}

const queues = 50

func fillingOf(t *testing.T, s *Store) *filling {
	f := &filling{t: t, store: s, want: storetest.NewState()}
	for id := range uint64(queues) {
		require.NoError(t, f.commit(&store.PutSession{Session: id, ClientID: "c"}))
	}
	return f
}

func (f *filling) commit(ops ...store.Op) error {
	err := f.store.Commit(ctx, ops)
	if err == nil {
		f.want.Apply(ops...)
	}
	return err
}

// fill adds messages of a size until there is no room, 20 KB in each commit at least, and returns
// how many went in.
func (f *filling) fill(size int) (n int) {
	f.t.Helper()
	for {
		var ops []store.Op
		next := f.seq
		for range 1 + 20_000/size {
			m := &store.Message{Message: packets.Message{Topic: "t",
				Payload: bytes.Repeat([]byte("x"), size)}}
			ops = append(ops, &store.Publish{Message: m,
				To: []store.Delivery{{Session: next % queues, Seq: next, QoS: 1}}})
			next++
		}
		if err := f.commit(ops...); err != nil {
			require.ErrorIs(f.t, err, store.ErrFull)
			return n
		}
		f.seq = next
		n += len(ops)
	}
}

// fetch takes n messages out, up to 100 in each commit, and lets a client resume its Session.
func (f *filling) fetch(n uint64) {
	f.t.Helper()
	for end := min(f.out+n, f.seq); f.out < end; {
		ops := []store.Op{&store.PutSession{Session: f.out % queues, ClientID: "c"}}
		for next := min(f.out+1+f.out%100, end); f.out < next; f.out++ {
			ops = append(ops, &store.Done{Session: f.out % queues, Seq: f.out})
		}
		require.NoError(f.t, f.commit(ops...), "%d of %d are out", f.out, f.seq)
	}
}

func (f *filling) same() {
	f.t.Helper()
	got, err := storetest.Fold(f.store.Load(ctx))
	require.NoError(f.t, err)
	require.True(f.t, f.want.Equal(got))
}

func (f *filling) reopen(file string) {
	f.t.Helper()
	require.NoError(f.t, f.store.Close())
	var err error
	f.store, err = Open(file, Options{})
	require.NoError(f.t, err)
}

// noRoom leaves not a byte to others.
func noRoom(t *testing.T, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "ballast")
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	require.NoError(t, err)
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			require.True(t, errors.Is(err, syscall.ENOSPC))
			size /= 2
		}
	}
	require.NoError(t, f.Close())
	return file
}

// On a full disk messages can be taken out, whoever has filled it, after a restart too, and then
// there is room for others.
func TestFetchingMakesRoomOnAFullDisk(t *testing.T) {
	for _, size := range []int{100, 3000, 100_000} {
		dir := small(t, "10m")
		file := filepath.Join(dir, "db")
		s, err := Open(file, Options{})
		require.NoError(t, err)
		f := fillingOf(t, s)
		noRoom(t, dir) // the file has what it needs for the Sessions alone
		first := f.fill(size)
		f.fetch(f.seq)
		f.same()

		require.NoError(t, os.Remove(filepath.Join(dir, "ballast")))
		more := f.fill(size)
		require.Greater(t, more, first, "room comes from elsewhere")
		noRoom(t, dir)
		f.reopen(file)
		f.fill(size)
		for range 6 { // there and back, so that what is kept for fetching is not used up by others
			f.fetch((f.seq - f.out) / 3)
			f.fill(size)
		}
		f.reopen(file)
		f.same()
		f.fetch(f.seq)
		require.Greater(t, f.fill(size), more/2)
		f.fetch(f.seq)
		f.same()
		require.NoError(t, f.store.Close())
	}
}

// A batch that is larger than the disk has no effect, and the store goes on.
func TestABatchForWhichTheDiskIsTooSmall(t *testing.T) {
	dir := small(t, "8m")
	s, err := Open(filepath.Join(dir, "db"), Options{})
	require.NoError(t, err)
	f := fillingOf(t, s)
	m := &store.Message{Message: packets.Message{Topic: "t", Payload: make([]byte, 20<<20)}}
	require.ErrorIs(t, f.commit(&store.PutRetained{Message: m}), store.ErrFull)
	m.Payload = m.Payload[:100_000]
	require.NoError(t, f.commit(&store.PutRetained{Message: m}))
	f.same()
	require.NoError(t, s.Close())
}
