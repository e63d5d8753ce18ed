package main

import (
	"context"
	"database/sql"
	_ "embed" // for the schema
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"path/filepath"
	"sync"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/dunlin-mqtt/dunlin/store"
)

//go:embed schema.sql
var schema string

// A Store is a store.Store in a SQLite database. Commit returns when SQLite has synced its
// write-ahead log.
type Store struct {
	db *sql.DB

	mu  sync.Mutex // guards err, and the only connection
	err error      // why nothing can be committed any more
}

var errClosed = errors.New("the store is closed")

// OpenStore opens the store in the file, which is made if it is not there. A second process is kept
// out.
func OpenStore(file string) (*Store, error) {
	pragmas := url.Values{"_pragma": {"locking_mode(exclusive)", "journal_mode(wal)",
		"synchronous(full)", "foreign_keys(on)"}}
	path := (&url.URL{Path: filepath.ToSlash(file)}).
		EscapedPath() // "file://broker.db" would be a host
	db, err := sql.Open("sqlite", "file:"+path+"?"+pragmas.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if err := prepare(db); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", file, err), db.Close())
	}
	return &Store{db: db}, nil
}

// prepare makes the tables of an empty database, and checks the version of another.
func prepare(db *sql.DB) error {
	var version, tables int
	if err := db.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if err := db.QueryRow("SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return err
	}
	switch {
	case version == 1:
		return nil
	case version != 0 || tables != 0:
		return fmt.Errorf(
			"it has version %d, and %d tables and the like: it is not a store that this program "+
				"can read", version, tables)
	}
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.Exec(schema); err != nil {
		return err
	}
	return tx.Commit()
}

// Commit implements store.Store: a batch is a transaction.
func (s *Store) Commit(ctx context.Context, ops []store.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.transact(ops)
	var e *sqlite.Error
	if errors.As(err, &e) && e.Code()&0xFF == sqlite3.SQLITE_FULL {
		return fmt.Errorf("%w: %w", store.ErrFull, err) // SQLite has rolled back
	}
	s.err = err
	return err
}

func (s *Store) transact(ops []store.Op) error {
	tx, err := s.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	b := batch{tx, make(map[string]*sql.Stmt)}
	for _, op := range ops {
		if err := b.apply(op); err != nil {
			return fmt.Errorf("%T: %w", op, err)
		}
	}
	return tx.Commit()
}

// Checkpoint implements store.Store. It moves the write-ahead log into the database, which SQLite
// does now and then in any case.
func (s *Store) Checkpoint(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	_, err := s.db.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
	return err
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == errClosed {
		return errClosed
	}
	s.err = errClosed
	return s.db.Close()
}

// A batch applies operations in a transaction.
type batch struct {
	tx       *sql.Tx
	prepared map[string]*sql.Stmt // they end with the transaction
}

// exec runs a statement, which is prepared once for a batch.
func (b *batch) exec(query string, args ...any) (sql.Result, error) {
	stmt := b.prepared[query]
	if stmt == nil {
		var err error
		if stmt, err = b.tx.Prepare(query); err != nil {
			return nil, err
		}
		b.prepared[query] = stmt
	}
	return stmt.Exec(args...)
}

func (b *batch) do(query string, args ...any) error {
	_, err := b.exec(query, args...)
	return err
}

func (b *batch) apply(op store.Op) error {
	switch op := op.(type) {
	case *store.PutSession:
		return b.putSession(op)
	case *store.DeleteSession:
		return b.do("DELETE FROM sessions WHERE session = ?", int64(op.Session))
	case *store.PutSubscription:
		return b.do(`INSERT OR REPLACE INTO subscriptions SELECT session, ?, ?, ?, ?, ?, ? FROM sessions WHERE session = ?`,
			op.Filter, op.QoS, op.NoLocal, op.RetainAsPublished, op.RetainHandling, op.ID,
			int64(op.Session))
	case *store.DeleteSubscription:
		return b.do("DELETE FROM subscriptions WHERE session = ? AND filter = ?", int64(op.Session),
			op.Filter)
	case *store.Publish:
		return b.publish(op)
	case *store.Sent:
		return b.do("UPDATE queue SET packet_id = ? WHERE session = ? AND seq = ?", op.ID,
			int64(op.Session), int64(op.Seq))
	case *store.Released:
		return b.do("UPDATE queue SET released = 1 WHERE session = ? AND seq = ?",
			int64(op.Session), int64(op.Seq))
	case *store.Done:
		return b.do("DELETE FROM queue WHERE session = ? AND seq = ?", int64(op.Session),
			int64(op.Seq))
	case *store.Received:
		return b.received(op.Session, op.ID)
	case *store.Forget:
		return b.do("DELETE FROM received WHERE session = ? AND id = ?", int64(op.Session), op.ID)
	case *store.PutRetained:
		return b.publish(&store.Publish{Message: op.Message, Retain: true})
	case *store.DeleteRetained:
		return b.do("DELETE FROM retained WHERE topic = ?", op.Topic)
	}
	panic("BUG: an operation that is none of store's")
}

func (b *batch) putSession(op *store.PutSession) error {
	var will any
	if op.Will != nil {
		text, err := json.Marshal(op.Will)
		if err != nil {
			return err
		}
		will = string(text)
	}
	return b.do(`INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET client = excluded.client, principal = excluded.principal,
		username = excluded.username, named = excluded.named, mount = excluded.mount,
		expiry = excluded.expiry, expires_at = excluded.expires_at, will = excluded.will`,
		int64(op.Session), op.ClientID, op.Principal, op.Username, op.Named, op.Mount, op.Expiry,
		op.ExpiresAt, will)
}

func (b *batch) received(session uint64, id uint16) error {
	return b.do("INSERT OR IGNORE INTO received SELECT session, ? FROM sessions WHERE session = ?",
		id, int64(session))
}

func (b *batch) publish(op *store.Publish) error {
	m := op.Message
	r, err := b.exec("INSERT INTO messages VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
		m.Topic, m.Payload, []byte(m.Properties), m.QoS, m.Retain, m.Expires, m.From)
	if err != nil {
		return err
	}
	id, err := r.LastInsertId()
	if err != nil {
		return err
	}
	used := op.Retain
	for _, d := range op.To {
		var ids any
		if len(d.IDs) > 0 {
			text, err := json.Marshal(d.IDs)
			if err != nil {
				return err
			}
			ids = string(text)
		}
		r, err := b.exec(`INSERT INTO queue (session, seq, message, qos, retain, ids, share)
			SELECT session, ?, ?, ?, ?, ?, ? FROM sessions WHERE session = ?`,
			int64(d.Seq), id, d.QoS, d.Retain, ids, d.Group, int64(d.Session))
		if err != nil {
			return err
		}
		n, err := r.RowsAffected()
		if err != nil {
			return err
		}
		used = used || n > 0
	}
	if op.FromSession != 0 {
		if err := b.received(op.FromSession, op.FromID); err != nil {
			return err
		}
	}
	if !used {
		return b.do("DELETE FROM messages WHERE message = ?", id)
	}
	if !op.Retain {
		return nil
	}
	if err := b.do("DELETE FROM retained WHERE topic = ?", m.Topic); err != nil {
		return err
	}
	return b.do("INSERT INTO retained VALUES (?, ?)", m.Topic, id)
}

var _ store.Store = (*Store)(nil)

// Load implements store.Store. The queues are read first, without messages, then these one by one.
func (s *Store) Load(ctx context.Context) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			yield(nil, s.err)
			return
		}
		l := loader{ctx: ctx, db: s.db, yield: yield}
		if err := l.all(); err != nil && err != errStop {
			yield(nil, err)
		}
	}
}
