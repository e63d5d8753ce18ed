package bbolt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

// grown makes a file whose trees have branches, with free pages and with values that take several
// pages. It returns what the file holds, and its state. The last two commits change nothing.
func grown(t *testing.T) ([]byte, *storetest.State) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "db")
	s, err := Open(file, Options{Durability: store.DurabilityBuffered})
	require.NoError(t, err)
	want := storetest.NewState()
	commit := func(ops ...store.Op) {
		require.NoError(t, s.Commit(ctx, ops))
		for _, op := range ops {
			want.Apply(op)
		}
	}
	for id := range uint64(300) {
		commit(&store.PutSession{Session: id + 1, ClientID: fmt.Sprintf("client %d", id)})
		m := &store.Message{Message: packets.Message{Topic: fmt.Sprint("topic/", id),
			Payload: bytes.Repeat([]byte{byte(id)}, int(id*7))}}
		commit(&store.Publish{Message: m, Retain: id%3 == 0,
			To: []store.Delivery{{Session: id + 1, Seq: 1, QoS: 1}}})
	}
	big := &store.Message{Message: packets.Message{Topic: "big",
		Payload: bytes.Repeat([]byte("payload "), 5000)}}
	commit(&store.PutRetained{Message: big})
	for id := range uint64(100) {
		commit(&store.DeleteSession{Session: 3*id + 1})
	}
	for range 2 {
		commit(&store.DeleteSession{Session: 1})
	}
	require.NoError(t, s.Close())
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return b, want
}

// load opens a file and loads it. It fails if either takes too long.
func load(t *testing.T, b []byte) (*storetest.State, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "db")
	require.NoError(t, os.WriteFile(file, b, 0o600))
	s, err := Open(file, Options{})
	if err != nil {
		return nil, err
	}
	got, err := storetest.Fold(s.Load(ctx))
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case <-closed: // it may fail
	case <-time.After(time.Minute):
		t.Fatal("Close does not return")
	}
	return got, err
}

// end is how many bytes the pages of a file take.
func end(t *testing.T, b []byte) int {
	t.Helper()
	m, err := readMeta(bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	return int(m.pageSize) * int(m.end)
}

func TestATruncatedFileIsRefused(t *testing.T) {
	b, want := grown(t)
	whole, page := end(t, b), os.Getpagesize()
	lengths := []int{0, 1, pageHeader - 1, pageHeader, pageHeader + metaSize, page - 1, page,
		page + 1, page + pageHeader + metaSize}
	for n := 2 * page; n <= whole; n += page {
		lengths = append(lengths, n-1, n, n+1)
	}
	lengths = append(lengths, whole-512, whole-page/2, len(b)-1, len(b))
	for _, n := range lengths {
		got, err := load(t, b[:n])
		if n < whole {
			require.Error(t, err, "%d of %d bytes", n, whole)
			continue
		}
		require.NoError(t, err, "%d of %d bytes", n, whole)
		require.True(t, want.Equal(got))
	}
}

// A file that becomes shorter while it is open cannot be read where it is missing: that is a
// signal, SIGBUS, which ends the process.
func TestAFileThatIsTruncatedWhileItIsOpen(t *testing.T) {
	b, _ := grown(t)
	whole, page := end(t, b), os.Getpagesize()
	for _, n := range []int{0, 1, page, 2 * page, 3 * page, 7*page + 1, whole / 2, whole - page,
		whole - 1} {
		for _, first := range []string{"load", "commit", "backup", "close"} {
			t.Run(fmt.Sprintf("%d of %d bytes are left, and the first thing is to %s", n, whole,
				first), func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "db")
				require.NoError(t, os.WriteFile(file, b, 0o600))
				s, err := Open(file, Options{})
				require.NoError(t, err)
				require.NoError(t, os.Truncate(file, int64(n)))
				calls := map[string]func() error{
					"load":   func() error { _, err := storetest.Fold(s.Load(ctx)); return err },
					"commit": func() error { return s.Commit(ctx, ops()) },
					"backup": func() error {
						return s.Backup(ctx,
							filepath.Join(t.TempDir(), "copy"))
					},
				}
				if call := calls[first]; call != nil {
					require.Error(t, call())
				}
				for _, name := range []string{"load", "backup", "commit"} {
					if first != "close" {
						require.Error(t, calls[name](), name)
					}
				}
				_ = s.Close() // it must return
				_, err = Open(file, Options{})
				require.Error(t, err)
				require.NotErrorIs(t, err, ErrLocked)
			})
		}
	}
}

// The pages behind the check of the size fail, too, when the disk cannot be read. A hole that is
// punched by truncating and extending the file stands for that: what is missing is then read as
// zeros.
func TestAFileThatLosesPagesWhileItIsOpen(t *testing.T) {
	b, _ := grown(t)
	whole, page := end(t, b), os.Getpagesize()
	for n := 2; n < whole/page; n += 3 {
		file := filepath.Join(t.TempDir(), "db")
		require.NoError(t, os.WriteFile(file, b, 0o600))
		s, err := Open(file, Options{})
		require.NoError(t, err)
		require.NoError(t, os.Truncate(file, int64(n*page)))
		require.NoError(t, os.Truncate(file, int64(len(b))))
		_, lerr := storetest.Fold(s.Load(ctx))
		cerr := s.Commit(ctx, ops())
		if lerr != nil {
			require.Error(t, cerr, "nothing is added to a file that is known to be damaged")
		}
		_ = s.Close()
		_, err = load(t, mustRead(t, file))
		require.Error(t, err, "%d pages are left", n)
	}
}

func mustRead(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return b
}

// Bytes of the headers and elements of pages, and others, changed in several ways: what Open and
// Load make of it is an error, or the state that was there. A meta page that is damaged looks as
// one that a crash tore: then the commit before counts.
func TestDamageDoesNotPanic(t *testing.T) {
	b, want := grown(t)
	whole, page := end(t, b), os.Getpagesize()
	var places []int
	for at := 0; at < whole; at += page {
		for i := range 16 + 5*16 {
			places = append(places, at+i)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	rnd.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	n := 400
	if testing.Short() {
		n = 100
	}
	for range n / 10 {
		places = slices.Insert(places, 0, rnd.IntN(whole))
	}
	refused := 0
	for _, at := range places[:min(n, len(places))] {
		damaged := bytes.Clone(b)
		damaged[at] ^= [...]byte{0x01, 0x21, 0x80, 0xFF}[rnd.IntN(4)]
		got, err := load(t, damaged)
		if err != nil {
			refused++
			continue
		}
		require.True(t, want.Equal(got), "byte %d", at)
	}
	require.Positive(t, refused)
}

// What would send bbolt into the endless, or beyond its memory, however well it looks.
func TestDamageThatBboltTrusts(t *testing.T) {
	b, _ := grown(t)
	m, err := readMeta(bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	page := int(m.pageSize)
	v := &verifier{f: bytes.NewReader(b), m: m, used: make([]uint64, m.end)}
	require.NoError(t, v.tree(m.root, nil, nil, 0))
	branch, leaf := 0, 0
	for id := range int(m.end) {
		if v.used[id/64]&(1<<(id%64)) == 0 ||
			binary.NativeEndian.Uint64(b[id*page:]) != uint64(id) {
			continue
		}
		switch {
		case kindOf(b[id*page:]) == kindBranch:
			branch = id
		case kindOf(b[id*page:]) == kindLeaf && countOf(b[id*page:]) > 1 && id != int(m.root):
			leaf = id
		}
	}
	require.Positive(t, branch)
	require.Positive(t, leaf)
	u16, u32, u64 := binary.NativeEndian.PutUint16, binary.NativeEndian.PutUint32,
		binary.NativeEndian.PutUint64
	for _, tt := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"a branch leads to itself", func(b []byte) {
			u64(b[branch*page+pageHeader+8:],
				uint64(branch))
		}, "is used twice"},
		{"a branch leads behind the end", func(b []byte) {
			u64(b[branch*page+pageHeader+8:],
				m.end)
		}, "there are"},
		{"a branch leads to the list of free pages",
			func(b []byte) { u64(b[branch*page+pageHeader+8:], m.freeList) },
			"not a branch or a leaf"},
		{"a branch has nothing", func(b []byte) { u16(b[branch*page+10:], 0) }, "without elements"},
		{"a branch has a key elsewhere", func(b []byte) { u32(b[branch*page+pageHeader:], 1<<31) },
			"outside"},
		{"a branch has another key than its child", func(b []byte) {
			pos := binary.NativeEndian.Uint32(b[branch*page+2*pageHeader:])
			b[branch*page+2*pageHeader+int(pos)] ^= 0x80
		}, "wrong order"},
		{"a leaf has a value elsewhere", func(b []byte) { u32(b[leaf*page+pageHeader+12:], 1<<31) },
			"outside"},
		{"a leaf has more elements than room", func(b []byte) { u16(b[leaf*page+10:], 0xFFFF) },
			"has no room for"},
		{"a leaf has one element less", func(b []byte) {
			u16(b[leaf*page+10:],
				uint16(countOf(b[leaf*page:])-1))
		}, "outside"},
		{"a leaf has an element twice", func(b []byte) {
			e := b[leaf*page+pageHeader:]
			copy(e[elementSize:], e[:elementSize])
			u32(e[elementSize+4:], binary.NativeEndian.Uint32(e[4:])-elementSize)
		}, "outside"},
		{"a leaf goes on for 4 billion pages", func(b []byte) { u32(b[leaf*page+12:], 1<<32-1) },
			"there are"},
		{"the free pages are as many as can be", func(b []byte) {
			u16(b[int(m.freeList)*page+10:], 0xFFFF)
			u64(b[int(m.freeList)*page+pageHeader:], 1<<62)
		}, "has no room for"},
		{"a free page is in use", func(b []byte) {
			u16(b[int(m.freeList)*page+10:], 1)
			u64(b[int(m.freeList)*page+pageHeader:], uint64(leaf))
		}, "is used twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			damaged := bytes.Clone(b)
			tt.change(damaged)
			_, err := load(t, damaged)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestABackupDoesNotReplaceAFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "db")
	s, err := Open(file, Options{})
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, ops()))
	require.ErrorIs(t, s.Backup(ctx, file), os.ErrExist, "its own file, for instance")
	_, err = storetest.Fold(s.Load(ctx))
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.Error(t, s.Backup(ctx, filepath.Join(dir, "copy")))
	require.NoFileExists(t, filepath.Join(dir, "copy"))
}
