// Package bbolt is a store.Store in one file of go.etcd.io/bbolt, the B+ tree that etcd is built
// on. Use it if you have tools for bbolt. Package store/segment is several times faster, reports
// more about damage, and needs no other module.
//
// The file has the buckets "sessions" (Session to PutSession), "subscriptions" (Session and Topic
// Filter), "received" (Session and Packet Identifier), "messages" (a number that counts up, to the
// message), "queues" (Session and Seq, to the number of the message), "uses" (number of the
// message, Session and Seq, to the rest of the delivery; or number alone, to the topic that it is
// the retained message of), "retained" (topic to number) and "about" (format). Numbers in keys are
// 8 bytes, big-endian. Each value ends with the CRC-32C of key and value.
//
// The store reserves its room on the disk ahead. It keeps a part of this room for batches that only
// remove, so they succeed on a full disk. The room of removed data is then used for new data. The
// file does not shrink.
package bbolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/dunlin-mqtt/dunlin/internal/disk"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/internal/codec"
)

var (
	// ErrClosed is returned by the methods of a Store after Close.
	ErrClosed = errors.New("store/bbolt: closed")
	// ErrLocked is wrapped by the error of Open while the file is open elsewhere.
	ErrLocked = disk.ErrLocked
)

// Options of [Open]. The zero value is a good choice.
type Options struct {
	// Durability says what Commit waits for. The zero value is [store.DurabilitySynced]. With any
	// other value bbolt does not sync, and a loss of power may leave an unusable file. Close syncs.
	Durability store.Durability
}

// A Store is a store.Store in a file. Its methods may be called concurrently, but not from inside a
// Load.
type Store struct {
	db       *bolt.DB
	file     disk.File // that db has open
	pageSize int64

	mu     sync.Mutex // guards all below, and commits
	err    error      // why nothing can be committed any more
	broken bool       // bbolt has panicked: it may hold its locks for ever, and is not called again
	end    int64      // how many bytes the file has at least, as of the commit before the last
	size   int64      // up to where room is reserved
}

const format = "dunlin bbolt store 1"

var (
	bSessions      = []byte("sessions")
	bSubscriptions = []byte("subscriptions")
	bReceived      = []byte("received")
	bMessages      = []byte("messages")
	bQueues        = []byte("queues")
	bUses          = []byte("uses")
	bRetained      = []byte("retained")
	bAbout         = []byte("about")
	kFormat        = []byte("format")
)

// Open opens the store in the file, and creates the file if it does not exist. It reads the whole
// tree to check it. If the file is open in this or another process, the error wraps [ErrLocked].
// Open also fails, and leaves the file unchanged, if the file is truncated, has a damaged
// structure, is not a store, or has a later format.
func Open(file string, opts Options) (*Store, error) {
	switch {
	case file == "":
		return nil, errors.New("store/bbolt: Open: the name of the file is empty")
	case opts.Durability > store.DurabilityNone:
		return nil, fmt.Errorf("store/bbolt: Options.Durability is %d, "+
			"use store.DurabilitySynced, store.DurabilityBuffered or store.DurabilityNone",
			opts.Durability)
	}
	err := verify(file)
	isNew := errors.Is(err, fs.ErrNotExist)
	var s *Store
	if err == nil || isNew {
		s, err = open(file, opts)
	}
	if err == nil && isNew {
		if err = syncFolder(file); err != nil {
			s.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("store/bbolt: %s: %w", file, err)
	}
	return s, nil
}

// syncFolder makes the name of a file durable.
func syncFolder(file string) error {
	d, err := disk.Existing(filepath.Dir(file))
	if err != nil {
		return err
	}
	return d.Sync()
}

// open opens a file that was verified, or that does not exist.
func open(file string, opts Options) (s *Store, err error) {
	var f *os.File
	s = new(Store)
	defer func() {
		if err != nil && f != nil {
			f.Close() // bbolt closes it as well, but where it has panicked
		}
	}()
	err = s.guarded("open", func() error {
		s.db, err = bolt.Open(file, 0o600, &bolt.Options{
			Timeout: time.Millisecond, NoSync: opts.Durability != store.DurabilitySynced,
			FreelistType: bolt.FreelistMapType,
			OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
				var err error
				f, err = os.OpenFile(name, flag, perm)
				return f, err
			},
		})
		if errors.Is(err, berrors.ErrTimeout) {
			return ErrLocked
		}
		if err != nil {
			return err
		}
		s.db.AllocSize = 0 // reserve makes the file longer
		s.file, s.pageSize = disk.FileOf(f), int64(s.db.Info().PageSize)
		if err := prepare(s.db); err != nil {
			return errors.Join(err, s.db.Close())
		}
		return s.db.View(func(tx *bolt.Tx) error {
			s.size, s.end = tx.Size(), tx.Size()
			messages := tx.Bucket(bMessages)
			if last, _ := messages.Cursor().
				Last(); len(last) == 8 && binary.BigEndian.Uint64(last) > messages.Sequence() {
				return fmt.Errorf(
					"the file is damaged: the last message is number %x, and they are counted up "+
						"to %x", last, messages.Sequence())
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// prepare completes an empty file, and checks the format of any other.
func prepare(db *bolt.DB) error {
	var is string
	empty := true
	err := db.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(bAbout); b != nil {
			is = string(b.Get(kFormat))
		}
		return tx.ForEach(func([]byte, *bolt.Bucket) error { empty = false; return nil })
	})
	switch {
	case err != nil:
		return err
	case is == format:
		return nil
	case !empty:
		return fmt.Errorf("the format is %q, this program reads %q", is, format)
	}
	return db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bSessions, bSubscriptions, bReceived, bMessages, bQueues,
			bUses, bRetained} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		about, err := tx.CreateBucket(bAbout)
		if err != nil {
			return err
		}
		return about.Put(kFormat, []byte(format))
	})
}

// guarded calls f and turns a panic into an error. bbolt panics when its file is damaged. Reading
// mapped memory panics when the file has become shorter, or when the disk fails. s.mu is held, or
// no other goroutine has s.
func (s *Store) guarded(what string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			s.broken = true
			err = fmt.Errorf("%s: the file may be damaged: %v", what, r)
		}
	}()
	return f()
}

// whole returns an error if the file is shorter than its committed content, which is end bytes.
func (s *Store) whole(end int64) error {
	size, err := s.file.Size()
	if err == nil && size < end {
		err = fmt.Errorf("the file has %d bytes, and %d were committed: it was truncated", size,
			end)
	}
	return err
}

// begin begins a read transaction. s.mu is held.
func (s *Store) begin() (tx *bolt.Tx, err error) {
	if s.broken || errors.Is(s.err, ErrClosed) {
		return nil, s.err
	}
	if err := s.whole(s.end); err != nil {
		return nil, err
	}
	err = s.guarded("read", func() error {
		var err error
		tx, err = s.db.Begin(false)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.end = tx.Size()
	if err := s.whole(s.end); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, ops []store.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(ops) == 0 {
		return nil
	}
	err := s.update(ops)
	switch {
	case err == nil:
		return nil
	case disk.IsFull(err):
		// bbolt has rolled back: the page that makes a transaction count is written last, over an
		// old one
		return fmt.Errorf("store/bbolt: %w: %w", store.ErrFull, err)
	case errors.Is(err, berrors.ErrValueTooLarge), errors.Is(err, berrors.ErrKeyTooLarge):
		// likewise
		return fmt.Errorf("store/bbolt: %w: %w", store.ErrTooLarge, err)
	}
	s.err = fmt.Errorf("store/bbolt: %w", err)
	return s.err
}

// Checkpoint implements store.Store. It does nothing: bbolt reuses the room of deleted data, and
// its file does not shrink.
func (s *Store) Checkpoint(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.err, ErrClosed) {
		return s.err
	}
	return ctx.Err()
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.err, ErrClosed) {
		return s.err
	}
	var err error
	switch {
	case s.broken:
		// bbolt might wait for a lock of its own for ever; the file is mapped until the process
		// ends
		err = s.file.Close()
	case s.err == nil && s.db.NoSync:
		err = errors.Join(s.db.Sync(), s.db.Close())
	default:
		err = s.db.Close()
	}
	s.err = ErrClosed
	return err
}

// Backup writes a copy of the store, as it is when it is called, to a new file, which must not be
// there. Commits go on meanwhile. The copy is durable when Backup returns nil; otherwise no file is
// left.
func (s *Store) Backup(ctx context.Context, file string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	to, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("store/bbolt: backup: %w", err)
	}
	err = s.copyTo(ctx, to)
	if err == nil {
		err = to.Sync()
	}
	if err = errors.Join(err, to.Close()); err == nil {
		err = syncFolder(file)
	}
	if err != nil {
		os.Remove(file)
		return fmt.Errorf("store/bbolt: backup: %w", err)
	}
	return nil
}

// copyTo writes the last transaction to a file. It reads the file, not the memory that the file is
// mapped to.
func (s *Store) copyTo(ctx context.Context, to io.Writer) error {
	s.mu.Lock()
	tx, err := s.begin()
	if err != nil && s.broken {
		s.err = err
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = tx.WriteTo(&untilDone{ctx, to})
	return errors.Join(err, tx.Rollback())
}

// untilDone is a Writer that fails when ctx is done.
type untilDone struct {
	ctx context.Context
	to  io.Writer
}

func (u *untilDone) Write(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.to.Write(b)
}

// Load implements store.Store. It is one transaction: nothing can be committed before it ends.
func (s *Store) Load(ctx context.Context) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			yield(nil, s.err)
			return
		}
		err := s.load(ctx, func(op store.Op) bool { return yield(op, nil) })
		if err == nil || err == errStop {
			return
		}
		err = fmt.Errorf("store/bbolt: %w", err)
		if ctx.Err() == nil { // the file is damaged: nothing may be added to it
			s.err = err
		}
		yield(nil, err)
	}
}

// errStop ends a Load that nobody wants to go on.
var errStop = errors.New("stop")

func (s *Store) load(ctx context.Context, yield func(store.Op) bool) error {
	tx, err := s.begin()
	if err != nil {
		return err
	}
	l := loader{ctx: ctx, tx: tx, yield: yield}
	defer tx.Rollback() // it fails only if it was called before
	if err := l.guarded(); err != nil {
		return err
	}
	return ctx.Err()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal appends the checksum of key and value to value.
func seal(key, value []byte) []byte {
	return binary.LittleEndian.AppendUint32(value,
		crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value))
}

// unseal returns the value without its checksum.
func unseal(bucket string, key, sealed []byte) ([]byte, error) {
	n := len(sealed) - 4
	if n < 0 || binary.LittleEndian.Uint32(sealed[n:]) != crc32.Update(crc32.Checksum(key,
		castagnoli), castagnoli, sealed[:n]) {
		return nil, fmt.Errorf(
			"the file is damaged: bucket %s, key %x: the checksum does not match", bucket, key)
	}
	return sealed[:n:n], nil
}

// A loader yields what is in the file.
type loader struct {
	ctx   context.Context
	tx    *bolt.Tx
	yield func(store.Op) bool
	dec   codec.Decoder

	yielding bool // the caller's code runs
}

// guarded is all, with a panic of bbolt as an error. A panic of the caller's goes on.
func (l *loader) guarded() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if l.yielding {
			return
		}
		if r := recover(); r != nil {
			err = fmt.Errorf("load: the file may be damaged: %v", r)
		}
	}()
	return l.all()
}

func (l *loader) give(op store.Op) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	l.yielding = true
	more := l.yield(op)
	l.yielding = false
	if !more {
		return errStop
	}
	return nil
}

func (l *loader) all() error {
	for _, name := range [][]byte{bSessions, bSubscriptions} {
		err := l.tx.Bucket(name).ForEach(func(k, v []byte) error {
			v, err := unseal(string(name), k, v)
			if err != nil {
				return err
			}
			l.dec.Reset(v)
			op, err := l.dec.Next()
			if err != nil {
				return fmt.Errorf("bucket %s, key %x: %w", name, k, err)
			}
			return l.give(op)
		})
		if err != nil {
			return err
		}
	}
	err := l.tx.Bucket(bReceived).ForEach(func(k, v []byte) error {
		if _, err := unseal("received", k, v); err != nil {
			return err
		}
		return l.give(&store.Received{Session: binary.BigEndian.Uint64(k),
			ID: binary.BigEndian.Uint16(k[8:])})
	})
	if err != nil {
		return err
	}
	uses := l.tx.Bucket(bUses).Cursor()
	k, v := uses.First()
	return l.tx.Bucket(bMessages).ForEach(func(number, sealed []byte) error {
		text, err := unseal("messages", number, sealed)
		if err != nil {
			return err
		}
		p := new(store.Publish)
		if p.Message, err = l.dec.DecodeMessage(text); err != nil {
			return fmt.Errorf("bucket messages, key %x: %w", number, err)
		}
		var then []store.Op
		for ; len(k) >= 8 && string(k[:8]) == string(number); k, v = uses.Next() {
			if err := use(p, &then, k, v); err != nil {
				return err
			}
		}
		if err := l.give(p); err != nil {
			return err
		}
		for _, op := range then {
			if err := l.give(op); err != nil {
				return err
			}
		}
		return nil
	})
}

// use adds one use of a message to its Publish, and what became of it to then.
func use(p *store.Publish, then *[]store.Op, k, v []byte) error {
	v, err := unseal("uses", k, v)
	if err != nil {
		return err
	}
	if len(k) == 8 {
		p.Retain = true
		return nil
	}
	u, err := decodeUse(v)
	if err != nil {
		return fmt.Errorf("bucket uses, key %x: %w", k, err)
	}
	u.Session, u.Seq = binary.BigEndian.Uint64(k[8:]), binary.BigEndian.Uint64(k[16:])
	p.To = append(p.To, u.Delivery)
	if u.id != 0 {
		*then = append(*then, &store.Sent{Session: u.Session, Seq: u.Seq, ID: u.id})
	}
	if u.released {
		*then = append(*then, &store.Released{Session: u.Session, Seq: u.Seq})
	}
	return nil
}

var _ store.Store = (*Store)(nil)
