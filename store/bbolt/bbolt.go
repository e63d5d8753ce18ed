// Package bbolt is a store.Store in one file of go.etcd.io/bbolt, a well-known B+ tree that etcd stands on, for those who
// prefer it or have tools for it. Package store/segment is several times faster, tells more about damage, and needs no other
// module.
//
// The file has the buckets "sessions" (Session to PutSession), "subscriptions" (Session and Topic Filter), "received" (Session and
// Packet Identifier), "messages" (a number that counts up, to the message), "queues" (Session and Seq, to the number of the message), "uses"
// (number of the message, Session and Seq, to the rest of the delivery; or number alone, to the topic that it is the retained message of),
// "retained" (topic to number) and "about" (format). Numbers in keys are 8 bytes, big-endian. Each value ends with
// the CRC-32C of key and value.
package bbolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
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
	// ErrLocked is wrapped by what Open returns while the file is open elsewhere.
	ErrLocked = disk.ErrLocked
)

// Options of [Open]. The zero value is a good choice.
type Options struct {
	// Durability is what Commit waits for. The zero value is [store.Synced]. With any other bbolt does not sync, and a loss of
	// power may leave a file that cannot be used; Close syncs.
	Durability store.Durability
}

// A Store is a store.Store in a file. Its methods may be called from any goroutine, but none from inside a Load.
type Store struct {
	db *bolt.DB

	mu  sync.Mutex // guards err and commits
	err error      // why nothing can be committed any more
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

// Open opens the store in the file, which is made if it is not there. It fails with an error that wraps [ErrLocked] if
// it is open in this or another process, and if the file is one of something else or of a later format, which is then left as it is.
func Open(file string, opts Options) (s *Store, err error) {
	defer recovered(&err, "open")
	switch {
	case file == "":
		return nil, errors.New("store/bbolt: Open: the name of the file is empty")
	case opts.Durability > store.None:
		return nil, fmt.Errorf("store/bbolt: Options.Durability is %d, use store.Synced, store.Buffered or store.None", opts.Durability)
	}
	db, err := bolt.Open(file, 0o600, &bolt.Options{
		Timeout: time.Millisecond, NoSync: opts.Durability != store.Synced, FreelistType: bolt.FreelistMapType,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		err = ErrLocked
	}
	if err != nil {
		return nil, fmt.Errorf("store/bbolt: %s: %w", file, err)
	}
	if err := prepare(db); err != nil {
		return nil, errors.Join(fmt.Errorf("store/bbolt: %s: %w", file, err), db.Close())
	}
	return &Store{db: db}, nil
}

// prepare makes what an empty file lacks, and checks the format of another.
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
		for _, name := range [][]byte{bSessions, bSubscriptions, bReceived, bMessages, bQueues, bUses, bRetained} {
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

// recovered turns a panic into an error: bbolt panics when its file is damaged.
func recovered(err *error, what string) {
	if r := recover(); r != nil {
		*err = damaged(what, r)
	}
}

func damaged(what string, why any) error {
	return fmt.Errorf("store/bbolt: %s: the file may be damaged: %v", what, why)
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
	case disk.IsFull(err): // bbolt has rolled back: the page that makes a transaction count is written last, over an old one
		return fmt.Errorf("store/bbolt: %w: %w", store.ErrFull, err)
	}
	s.err = fmt.Errorf("store/bbolt: %w", err)
	return s.err
}

func (s *Store) update(ops []store.Op) (err error) {
	defer recovered(&err, "commit")
	return s.db.Update(func(tx *bolt.Tx) error {
		b := newBatch(tx)
		for _, op := range ops {
			if err := b.apply(op); err != nil {
				return err
			}
		}
		return nil
	})
}

// Checkpoint implements store.Store. It does nothing: bbolt uses the room of what was deleted again, and its file does not shrink.
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
	if s.err == nil && s.db.NoSync {
		err = s.db.Sync()
	}
	s.err = ErrClosed
	return errors.Join(err, s.db.Close())
}

// Backup writes a copy of the store, as it is when it is called, to a new file. Commits go on meanwhile.
func (s *Store) Backup(ctx context.Context, file string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.db.View(func(tx *bolt.Tx) error { return tx.CopyFile(file, 0o600) })
	if err != nil {
		return fmt.Errorf("store/bbolt: backup: %w", err)
	}
	return nil
}

// Load implements store.Store. It is one transaction: nothing can be committed before it ends.
func (s *Store) Load(ctx context.Context) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if errors.Is(s.err, ErrClosed) {
			yield(nil, s.err)
			return
		}
		if err := s.load(ctx, func(op store.Op) bool { return yield(op, nil) }); err != nil && err != errStop {
			yield(nil, err)
		}
	}
}

// errStop ends a Load that nobody wants to go on.
var errStop = errors.New("stop")

func (s *Store) load(ctx context.Context, yield func(store.Op) bool) (err error) {
	l := loader{ctx: ctx, yield: yield}
	defer func() {
		if l.yielding {
			return // a panic of the caller's goes on
		}
		if r := recover(); r != nil {
			err = damaged("load", r)
		}
	}()
	return s.db.View(func(tx *bolt.Tx) error {
		l.tx = tx
		if err := l.all(); err != nil {
			return err
		}
		return ctx.Err()
	})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal appends the checksum of key and value to value.
func seal(key, value []byte) []byte {
	return binary.LittleEndian.AppendUint32(value, crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value))
}

// unseal returns the value without its checksum.
func unseal(bucket string, key, sealed []byte) ([]byte, error) {
	n := len(sealed) - 4
	if n < 0 || binary.LittleEndian.Uint32(sealed[n:]) != crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, sealed[:n]) {
		return nil, fmt.Errorf("store/bbolt: the file is damaged: bucket %s, key %x: the checksum does not match", bucket, key)
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
				return fmt.Errorf("store/bbolt: bucket %s, key %x: %w", name, k, err)
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
		return l.give(&store.Received{Session: binary.BigEndian.Uint64(k), ID: binary.BigEndian.Uint16(k[8:])})
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
			return fmt.Errorf("store/bbolt: bucket messages, key %x: %w", number, err)
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
		return fmt.Errorf("store/bbolt: bucket uses, key %x: %w", k, err)
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
