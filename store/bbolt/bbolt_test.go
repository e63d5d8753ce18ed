package bbolt

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

var ctx = context.Background()

func TestContract(t *testing.T) {
	for _, d := range []store.Durability{store.DurabilitySynced, store.DurabilityBuffered} {
		t.Run(d.String(), func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) func() (store.Store, error) {
				file := filepath.Join(t.TempDir(), "db")
				return func() (store.Store, error) { return Open(file, Options{Durability: d}) }
			})
		})
	}
}

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) func() (store.Store, error) {
		file := filepath.Join(b.TempDir(), "db")
		return func() (store.Store, error) { return Open(file, Options{}) }
	})
}

func ops() []store.Op {
	m := &store.Message{Message: packets.Message{Topic: "topic",
		Payload: bytes.Repeat([]byte("payload "), 20)}}
	return []store.Op{&store.PutSession{Session: 1, ClientID: "client"},
		&store.Publish{Message: m, Retain: true,
			To: []store.Delivery{{Session: 1, Seq: 1, QoS: 1}}}}
}

func TestNothingIsLeftOfWhatIsGone(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "db"), Options{})
	require.NoError(t, err)
	h := storetest.NewHistory(3)
	for range 300 {
		require.NoError(t, s.Commit(ctx, h.Batch()))
	}
	var wipe []store.Op
	for id := range h.State.Sessions {
		wipe = append(wipe, &store.DeleteSession{Session: id})
	}
	for topic := range h.State.Retained {
		wipe = append(wipe, &store.DeleteRetained{Topic: topic})
	}
	require.NoError(t, s.Commit(ctx, wipe))
	require.NoError(t, s.db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			if !bytes.Equal(name, bAbout) {
				require.Zero(t, b.Stats().KeyN, "%s", name)
			}
			return nil
		})
	}))
	require.NoError(t, s.Close())
}

func TestLockForeignFilesAndBackup(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "db")
	s, err := Open(file, Options{})
	require.NoError(t, err)
	_, err = Open(file, Options{})
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, s.Commit(ctx, ops()))
	copied := filepath.Join(dir, "copy")
	require.NoError(t, s.Backup(ctx, copied))
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Close(), ErrClosed)
	s, err = Open(copied, Options{})
	require.NoError(t, err)
	got, err := storetest.Fold(s.Load(ctx))
	require.NoError(t, err)
	require.Len(t, got.Sessions, 1)
	require.NoError(t, s.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bAbout).Put(kFormat, []byte("dunlin bbolt store 2"))
	}))
	require.NoError(t, s.Close())
	_, err = Open(copied, Options{})
	require.ErrorContains(t, err, `the format is "dunlin bbolt store 2"`)

	foreign := filepath.Join(dir, "foreign")
	db, err := bolt.Open(foreign, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket([]byte("theirs"))
		return err
	}))
	require.NoError(t, db.Close())
	_, err = Open(foreign, Options{})
	require.ErrorContains(t, err, "this program reads")
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, bytes.Repeat([]byte("text "), 5000), 0o600))
	_, err = Open(text, Options{})
	require.Error(t, err)
}

func TestFlippedBitsOfAPayloadAreFound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "db")
	s, err := Open(file, Options{})
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, ops()))
	require.NoError(t, s.Close())
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	at := bytes.Index(b, []byte("payload payload"))
	require.Positive(t, at)
	for i := range 16 {
		damaged := bytes.Clone(b)
		damaged[at+i] ^= 1 << (i % 8)
		require.NoError(t, os.WriteFile(file, damaged, 0o600))
		s, err := Open(file, Options{})
		require.NoError(t, err)
		_, err = storetest.Fold(s.Load(ctx))
		require.ErrorContains(t, err,
			"bucket messages, key 0000000000000001: the checksum does not match")
		require.NoError(t, s.Close())
	}
}

func TestOpenRefusesWhatMakesNoSense(t *testing.T) {
	_, err := Open("", Options{})
	require.ErrorContains(t, err, "the name of the file is empty")
	_, err = Open(filepath.Join(t.TempDir(), "file"), Options{Durability: 99})
	require.ErrorContains(t, err, "Durability is 99")
}
