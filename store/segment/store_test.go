package segment

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

var golden = flag.String("segment.golden", "",
	"write testdata for the format of this `version`, which must be a new one")

func publish(seq uint64, payload string, sessions ...uint64) *store.Publish {
	p := &store.Publish{Message: &store.Message{Message: packets.Message{Topic: "t",
		Payload: []byte(payload), QoS: packets.QoS1}, From: "publisher"}}
	for _, s := range sessions {
		p.To = append(p.To, store.Delivery{Session: s, Seq: seq, QoS: packets.QoS1})
	}
	return p
}

func fold(t *testing.T, s store.Store) *storetest.State {
	t.Helper()
	got, err := storetest.Fold(s.Load(ctx))
	require.NoError(t, err)
	return got
}

func mustOpen(t *testing.T, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	require.NoError(t, err)
	return s
}

func same(t *testing.T, want, got *storetest.State) {
	t.Helper()
	require.Empty(t, want.Diff(got))
}

func TestSecondProcessIsLockedOut(t *testing.T) {
	if dir := os.Getenv("SEGMENT_TEST_DIR"); dir != "" { // this is the second one
		_, err := Open(dir, Options{})
		fmt.Println(errors.Is(err, ErrLocked), err)
		return
	}
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{})
	_, err := Open(dir, Options{})
	require.ErrorIs(t, err, ErrLocked, "nor may the same process open it twice")
	_, err = Verify(dir)
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorIs(t, Dump(io.Discard, dir), ErrLocked)
	second := func() string {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSecondProcessIsLockedOut$")
		cmd.Env = append(os.Environ(), "SEGMENT_TEST_DIR="+dir)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.Contains(t, second(), "true store/segment: "+dir)
	require.NoError(t, s.Close())
	require.Contains(t, second(), "false <nil>")
}

func TestBackupOfALiveStore(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{SegmentSize: 4096})
	h := storetest.NewHistory(5)
	commit := func(n int) {
		for range n {
			require.NoError(t, s.Commit(ctx, h.Batch()))
		}
	}
	commit(60)
	want := h.State.Clone()
	dir := filepath.Join(t.TempDir(), "backup")
	require.NoError(t, s.Backup(ctx, dir))
	commit(60)
	require.ErrorContains(t, s.Backup(ctx, dir), "the directory holds a store")
	_, err := Verify(dir)
	require.NoError(t, err)
	b := mustOpen(t, dir, Options{})
	same(t, want, fold(t, b))
	require.NoError(t, b.Commit(ctx, []store.Op{put(7)}), "the copy is a store of its own")
	require.NoError(t, b.Close())

	other := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(other, "file"), nil, 0o600))
	require.ErrorContains(t, s.Backup(ctx, other), "holds file and no manifest")
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	half := filepath.Join(t.TempDir(), "half")
	require.ErrorIs(t, s.Backup(stopped, half), context.Canceled)
	_, err = Open(half, Options{})
	require.ErrorContains(t, err, "no manifest", "a backup that was broken off is none")
	same(t, h.State, fold(t, s))
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Backup(ctx, filepath.Join(t.TempDir(), "late")), ErrClosed)
}

// TestBackupWhileCommitting takes backups at any moment: each holds the state after some commit.
func TestBackupWhileCommitting(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{SegmentSize: 4096, Durability: store.DurabilityBuffered})
	var done atomic.Int64
	stop, stopped := make(chan struct{}), make(chan error)
	go func() { // the test waits for it
		var err error
		for n := uint64(1); err == nil; n++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			err = s.Commit(ctx, []store.Op{put(n), &store.DeleteSession{Session: n - 1}})
			done.Store(int64(n))
		}
		stopped <- err
	}()
	for i := range 5 {
		low := done.Load()
		dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
		require.NoError(t, s.Backup(ctx, dir))
		high := done.Load() + 1
		b := mustOpen(t, dir, Options{})
		got := fold(t, b)
		require.NoError(t, b.Close())
		require.LessOrEqual(t, len(got.Sessions), 1)
		for n := range got.Sessions {
			require.GreaterOrEqual(t, int64(n), low)
			require.LessOrEqual(t, int64(n), high)
		}
	}
	close(stop)
	require.NoError(t, <-stopped)
	require.NoError(t, s.Close())
}

// A gate lets one file that is created wait with its first write.
type gate struct {
	disk.Dir
	armed            atomic.Bool
	entered, release chan struct{}
}

type gatedFile struct {
	disk.File
	g *gate
}

func (g *gate) Create(name string) (disk.File, error) {
	f, err := g.Dir.Create(name)
	if err == nil && g.armed.CompareAndSwap(true, false) {
		return &gatedFile{f, g}, nil
	}
	return f, err
}

func (f *gatedFile) WriteAt(p []byte, off int64) (int, error) {
	if off == 0 {
		close(f.g.entered)
		<-f.g.release
	}
	return f.File.WriteAt(p, off)
}

func TestCommitsDoNotWaitForACompaction(t *testing.T) {
	g := &gate{Dir: disk.NewSim(1), entered: make(chan struct{}), release: make(chan struct{})}
	s, err := open(g, Options{SegmentSize: 1 << 20}) // long enough that no other compaction begins
	require.NoError(t, err)
	h := storetest.NewHistory(1)
	for range 30 {
		require.NoError(t, s.Commit(ctx, h.Batch()))
	}
	require.NoError(t, s.seal()) // so that the next file that is created is the compaction's
	g.armed.Store(true)
	done := make(chan error)
	go func() { done <- s.Compact(ctx) }() // the test waits for it
	<-g.entered
	for range 100 { // this ends though the compaction stands still
		require.NoError(t, s.Commit(ctx, h.Batch()))
	}
	close(g.release)
	require.NoError(t, <-done)
	require.NotZero(t, s.man.folded.number)
	same(t, h.State, fold(t, s))
	require.NoError(t, s.Close())
	s, err = open(g.Dir, Options{})
	require.NoError(t, err)
	same(t, h.State, fold(t, s))
	require.NoError(t, s.Close())
}

func TestTheLogStaysSmallUnderLoad(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{SegmentSize: 64 << 10, Durability: store.DurabilityBuffered})
	require.NoError(t, s.Commit(ctx, []store.Op{put(1)}))
	payload := strings.Repeat("x", 1000)
	want := storetest.NewState()
	want.Apply(put(1))
	for seq := range uint64(5000) {
		ops := []store.Op{publish(seq, payload, 1)}
		if seq >= 20 {
			ops = append(ops, &store.Done{Session: 1, Seq: seq - 20})
		}
		want.Apply(ops...)
		require.NoError(t, s.Commit(ctx, ops))
	}
	require.NoError(t, s.Compact(ctx))
	require.NoError(t, s.Close())
	r, err := Verify(dir)
	require.NoError(t, err)
	require.Less(t, r.Bytes, int64(30_000), "5 MB were written, 20 KB are left")
	require.Equal(t, uint64(5001), r.LastCommit)
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	s = mustOpen(t, dir, Options{})
	same(t, want, fold(t, s))
	require.NoError(t, s.Close())
}

// TestCompactionKeepsWhatIsLeft compares with the model while compactions run at any moment.
func TestCompactionKeepsWhatIsLeft(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s, err := open(disk.NewSim(seed), Options{SegmentSize: 3000})
	require.NoError(t, err)
	h := storetest.NewHistory(seed)
	h.Large = 2000
	for n := range 1500 {
		require.NoError(t, s.Commit(ctx, h.Batch()))
		if n%100 == 0 {
			same(t, h.State, fold(t, s))
		}
	}
	same(t, h.State, fold(t, s))
	require.NoError(t, s.Close()) // waits for the compaction that may be under way
	require.NotZero(t, s.man.folded.number)
}

func TestMethodsOfAClosedStore(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{})
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Close(), ErrClosed)
	require.ErrorIs(t, s.Commit(ctx, []store.Op{put(1)}), ErrClosed)
	require.ErrorIs(t, s.Checkpoint(ctx), ErrClosed)
	require.ErrorIs(t, s.Compact(ctx), ErrClosed)
	_, err := storetest.Fold(s.Load(ctx))
	require.ErrorIs(t, err, ErrClosed)
}

func TestTornEndIsLoggedAndDamageIsNot(t *testing.T) {
	files, states := crashed(t, Options{SegmentSize: 2000})
	m, err := parseManifest(files[manifestName])
	require.NoError(t, err)
	name := segmentName(m.active)
	end := len(bytes.TrimRight(files[name], "\x00"))
	files[name][end-1] ^= 1
	var log bytes.Buffer
	s, err := open(simOf(files), Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	require.Contains(t, log.String(), "file="+name)
	same(t, states[len(states)-2], fold(t, s))
	require.NoError(t, s.Commit(ctx, []store.Op{put(77)}), "it starts without help")
	want := states[len(states)-2].Clone()
	want.Apply(put(77))
	same(t, want, fold(t, s))
	require.NoError(t, s.Close())
}

// goldenSteps are the commits in testdata. They must never change.
func goldenSteps() [][]store.Op {
	full := publish(1, "payload", 1, 2)
	full.Message.Properties = packets.Properties(nil).AppendUser("k", "v").
		AppendUint(packets.MessageExpiryInterval, 9)
	full.Message.QoS, full.Message.Retain, full.Message.Expires = packets.QoS2, true,
		1_770_000_000_123_456_789
	full.Retain, full.FromSession, full.FromID = true, 3, 65535
	full.To[0] = store.Delivery{Session: 1, Seq: 1, QoS: packets.QoS2, Retain: true,
		IDs: []uint32{1, 268_435_455}, Group: "$share/g/a/+"}
	will := packets.Message{Topic: "will", Payload: []byte("bye"), QoS: packets.QoS1, Retain: true,
		Properties: packets.Properties(nil).AppendText(packets.ResponseTopic, "r")}
	retained := func(topic, payload string) *store.PutRetained {
		return &store.PutRetained{Message: &store.Message{Message: packets.Message{Topic: topic,
			Payload: []byte(payload)}}}
	}
	return [][]store.Op{
		{&store.PutSession{Session: 1, ClientID: "one", Principal: "p", Username: "u", Named: true,
			Mount: "m/", Expiry: 1<<32 - 1, ExpiresAt: 1_770_000_000_000_000_001,
			Will: &store.Will{Message: will, Delay: 30, At: 1_770_000_000_000_000_002}}, put(2),
			put(3), put(4)},
		{&store.PutSubscription{Session: 1, ID: 268_435_455, Subscription: packets.Subscription{
			Filter: "$share/g/a/+", QoS: packets.QoS2, NoLocal: true, RetainAsPublished: true,
			RetainHandling: 2}},
			&store.PutSubscription{Session: 2,
				Subscription: packets.Subscription{Filter: "#", QoS: packets.QoS1}},
			&store.PutSubscription{Session: 2, Subscription: packets.Subscription{Filter: "gone"}}},
		{full, &store.Sent{Session: 1, Seq: 1, ID: 65535}, &store.Released{Session: 1, Seq: 1}},
		{retained("r", "stays"), retained("gone", "goes"), &store.Received{Session: 2, ID: 1},
			&store.Received{Session: 2, ID: 2}},
		nil, // a checkpoint
		{publish(2, "later", 2, 3, 4), &store.Sent{Session: 2, Seq: 1, ID: 7}},
		{&store.DeleteSubscription{Session: 2, Filter: "gone"}, &store.DeleteSession{Session: 4},
			&store.DeleteRetained{Topic: "gone"}},
		{publish(3, strings.Repeat("large ", 500), 3)}, // in a segment of its own
		{&store.Forget{Session: 2, ID: 1}, &store.Done{Session: 2, Seq: 1}},
		{publish(4, "last", 1)},
	}
}

// TestEveryReleasedFormatLoads opens stores as earlier releases have left them when they were
// killed: with a folded segment, sealed ones, and a torn end.
func TestEveryReleasedFormatLoads(t *testing.T) {
	want := storetest.NewState()
	for _, ops := range goldenSteps() {
		want.Apply(ops...)
	}
	if *golden != "" {
		writeGolden(t, filepath.Join("testdata", *golden))
	}
	dirs, err := filepath.Glob("testdata/v*")
	require.NoError(t, err)
	require.Len(t, dirs, version, "one for each version of the format")
	for _, from := range dirs {
		t.Run(from, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(dir, os.DirFS(from)))
			r, err := Verify(dir)
			require.NoError(t, err)
			require.NotZero(t, r.Torn)
			require.Equal(t, 4, r.Segments)
			s := mustOpen(t, dir, Options{})
			same(t, want, fold(t, s))
			require.NoError(t, s.Commit(ctx, []store.Op{put(9)}))
			require.NoError(t, s.Compact(ctx))
			require.NoError(t, s.Close())
			s = mustOpen(t, dir, Options{})
			more := want.Clone()
			more.Apply(put(9))
			same(t, more, fold(t, s))
			require.NoError(t, s.Close())
		})
	}
}

// writeGolden writes the golden directory of a new version of the format.
func writeGolden(t *testing.T, dir string) {
	t.Helper()
	require.NoDirExists(t, dir, "what was released must never change")
	sim := disk.NewSim(1)
	s, err := open(sim, Options{SegmentSize: 2000})
	require.NoError(t, err)
	for _, ops := range goldenSteps() {
		if ops == nil {
			require.NoError(t, s.Compact(ctx))
		} else {
			require.NoError(t, s.Commit(ctx, ops))
		}
	}
	files := sim.Crash(1, disk.Nothing).Files()
	end := s.off
	require.NoError(t, s.Close())
	m, err := parseManifest(files[manifestName])
	require.NoError(t, err)
	require.Len(t, m.sealed, 2, "and a folded one, and an active one")
	copy(files[segmentName(m.active)][end:], "half a record")
	require.NoError(t, os.MkdirAll(dir, 0o777))
	for name, data := range files {
		if name != lockName {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o666))
		}
	}
}

func TestDumpShowsEachOperation(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{})
	for _, ops := range goldenSteps() {
		require.NoError(t, s.Commit(ctx, ops))
	}
	require.NoError(t, s.Close())
	var out strings.Builder
	require.NoError(t, Dump(&out, dir))
	for _, want := range []string{
		"dunlin segment store 1\n", "segment 00000001.log kind log first 1\n",
		"record 1 offset 64 bytes",
		`  PutSession session 1 client "one" principal "p" user "u" named true mount "m/" expiry 4294967295 expires 1770000000000000001 will topic "will" qos 1 retain true`,
		`  PutSubscription session 1 filter "$share/g/a/+" qos 2 no local true retain as published true retain handling 2 id 268435455`,
		`  Publish topic "t" qos 2 retain true properties`,
		`payload of 7 bytes "payload" from "publisher" expires 1770000000123456789 retain true received from session 3 as 65535`,
		`    to session 1 seq 1 qos 2 retain true ids [1 268435455] group "$share/g/a/+"`,
		`payload of 3000 bytes "large large large large large la"...`,
		"  Sent &{Session:1 Seq:1 ID:65535}", "  Released &{Session:1 Seq:1}",
		"  Done &{Session:2 Seq:1}", "  Received &{Session:2 ID:1}",
		"  Forget &{Session:2 ID:1}", "  DeleteSession &{Session:4}",
		"  DeleteSubscription &{Session:2 Filter:gone}",
		`  PutRetained topic "r" qos 0 retain false properties  payload of 5 bytes "stays"`,
		"  DeleteRetained &{Topic:gone}",
	} {
		require.Contains(t, out.String(), want)
	}
	_, err := Verify(filepath.Join(dir, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestOpenRefusesWhatMakesNoSense(t *testing.T) {
	for _, tt := range []struct {
		name, dir string
		opts      Options
		want      string
	}{
		{"no directory", "", Options{}, "the name of the directory is empty"},
		{"a segment of less than nothing", t.TempDir(), Options{SegmentSize: -1},
			"SegmentSize is -1"},
		{"a segment that no disk has room for", t.TempDir(), Options{SegmentSize: 1<<40 + 1},
			"SegmentSize is 1099511627777"},
		{"a durability that is none", t.TempDir(), Options{Durability: 99}, "Durability is 99"},
	} {
		_, err := Open(tt.dir, tt.opts)
		require.ErrorContains(t, err, tt.want, tt.name)
		if tt.dir != "" {
			names, err := os.ReadDir(tt.dir)
			require.NoError(t, err)
			require.Empty(t, names, "nothing is made for what is refused")
		}
	}
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{})
	defer s.Close()
	_, err := Open(dir, Options{})
	require.ErrorContains(t, err, "by this or another process")
}
