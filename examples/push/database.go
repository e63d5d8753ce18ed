package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	_ "embed" // for the schema
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver
)

//go:embed schema.sql
var schema string

const schemaVersion = 2 // what schema sets

// What one account may have.
const (
	maxSessions = 100  // sessions
	maxTopics   = 1000 // groups, or devices that it owns
	maxCollapse = 100  // collapse keys that are in use for one inbox or group
)

var (
	errUnknown  = errors.New("there is no such account")
	errTooMany  = errors.New("there are too many of them already")
	errNoTicket = errors.New("the token is unknown, expired or revoked")
)

// A database is what the service knows, in a file of SQLite. Several processes of one machine may
// have it open. A change that has returned survives a crash.
type database struct {
	sql        *sql.DB
	writing    sync.Mutex // SQLite has one writer at a time, and those who wait have no order
	statements sync.Map   // *sql.Stmt by query
}

// A session is what a token stands for.
type session struct {
	ID      string `json:"id"`
	Account string `json:"account"`
	Label   string `json:"label,omitempty"`
	Created second `json:"created"`
	Expires second `json:"expires"`
	Token   string `json:"token,omitempty"` // only where it was just made
}

// A second is a time that the database has in seconds.
type second struct{ time.Time }

// Scan is that of sql.Scanner.
func (s *second) Scan(from any) error {
	n, ok := from.(int64)
	if !ok {
		return fmt.Errorf("expected seconds, got %v", from)
	}
	s.Time = time.Unix(n, 0)
	return nil
}

func openDatabase(file string) (*database, error) {
	pragmas := url.Values{"_txlock": {"immediate"}, "_pragma": {"busy_timeout(5000)",
		"journal_mode(wal)", "synchronous(full)", "foreign_keys(on)"}}
	path := (&url.URL{Path: filepath.ToSlash(file)}).EscapedPath()
	db, err := sql.Open("sqlite", "file:"+path+"?"+pragmas.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(4)
	if err := makeTables(db); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", file, err), db.Close())
	}
	return &database{sql: db}, nil
}

func makeTables(db *sql.DB) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var version int
	err = tx.QueryRow("PRAGMA user_version").Scan(&version)
	if err != nil || version == schemaVersion {
		return err
	}
	if version != 0 {
		return fmt.Errorf("version %d of the database, expected %d", version, schemaVersion)
	}
	if _, err := tx.Exec(schema); err != nil {
		return err
	}
	return tx.Commit()
}

// prepared returns the statement of a query. Each is parsed once for a connection of the database.
func (d *database) prepared(query string) (*sql.Stmt, error) {
	if x, ok := d.statements.Load(query); ok {
		return x.(*sql.Stmt), nil
	}
	x, err := d.sql.Prepare(query)
	if err == nil {
		if kept, ok := d.statements.LoadOrStore(query, x); ok {
			return kept.(*sql.Stmt), x.Close()
		}
	}
	return x, err
}

// change makes one change, and says whether there was something to change.
func (d *database) change(ctx context.Context, query string, args ...any) (bool, error) {
	x, err := d.prepared(query)
	if err != nil {
		return false, err
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	r, err := x.ExecContext(ctx, args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// list returns the rows of a query. columns says where the values of a row go.
func list[T any](
	ctx context.Context, d *database, columns func(*T) []any, query string, args ...any,
) ([]T, error) {
	x, err := d.prepared(query)
	if err != nil {
		return nil, err
	}
	rows, err := x.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []T{}
	for rows.Next() {
		var row T
		if err := rows.Scan(columns(&row)...); err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, rows.Err()
}

// only is for rows with one value.
func only[T any](row *T) []any { return []any{row} }

// value returns the only value of a query, the zero value if it has no row.
func value[T any](ctx context.Context, d *database, query string, args ...any) (v T, err error) {
	all, err := list(ctx, d, only[T], query, args...)
	if len(all) > 0 {
		v = all[0]
	}
	return v, err
}

func (d *database) has(ctx context.Context, query string, args ...any) (bool, error) {
	return value[bool](ctx, d, "SELECT EXISTS ("+query+")", args...)
}

func (d *database) addAccount(ctx context.Context, name string) (isNew bool, err error) {
	return d.change(ctx, "INSERT INTO accounts VALUES (?, unixepoch()) ON CONFLICT DO NOTHING", name)
}

// removeAccount removes an account with its sessions and its places in groups, and returns who was
// told of its events.
func (d *database) removeAccount(ctx context.Context, name string) (owners []string, err error) {
	owners, err = d.members(ctx, name+"/events")
	if err == nil {
		_, err = d.change(ctx, "DELETE FROM members WHERE topic = ?", name+"/events")
	}
	if err != nil {
		return nil, err
	}
	found, err := d.change(ctx, "DELETE FROM accounts WHERE name = ?", name)
	if err == nil && !found {
		err = errUnknown
	}
	return owners, err
}

func (d *database) hasAccount(ctx context.Context, name string) (bool, error) {
	return d.has(ctx, "SELECT 1 FROM accounts WHERE name = ?", name)
}

func (d *database) mustHave(ctx context.Context, account string) error {
	known, err := d.hasAccount(ctx, account)
	if err == nil && !known {
		err = errUnknown
	}
	return err
}

// insert inserts something of an account by a query that inserts nothing if the account is not
// there, or has too many.
func (d *database) insert(ctx context.Context, account, query string, args ...any) error {
	done, err := d.change(ctx, query, args...)
	if err == nil && !done {
		err = cmp.Or(d.mustHave(ctx, account), errTooMany)
	}
	return err
}

// issue makes a session, whose token is known to nobody else.
func (d *database) issue(
	ctx context.Context, account, label string, life time.Duration,
) (session, error) {
	now := time.Now().Truncate(time.Second)
	x := session{ID: rand.Text()[:16], Account: account, Label: label, Created: second{now},
		Expires: second{now.Add(life + time.Second)}, Token: rand.Text()} // not too early
	return x, d.insert(ctx, account, "INSERT INTO sessions SELECT ?, ?, ?3, ?, ?, ? "+
		"WHERE EXISTS (SELECT 1 FROM accounts WHERE name = ?3) AND (SELECT count(*) "+
		"FROM sessions WHERE account = ?3 AND expires > unixepoch()) < ?", x.ID, hash(x.Token),
		account, label, x.Created.Unix(), x.Expires.Unix(), maxSessions)
}

// refresh makes another session like x, and lets x end within a minute: whoever did not get the
// answer can try again.
func (d *database) refresh(ctx context.Context, x session) (session, error) {
	next, err := d.issue(ctx, x.Account, x.Label, x.Expires.Sub(x.Created.Time)-time.Second)
	if err == nil {
		_, err = d.change(ctx, "UPDATE sessions SET expires = min(expires, unixepoch() + 60) "+
			"WHERE id = ?", x.ID)
	}
	return next, err
}

const selectSession = "SELECT id, account, label, created, expires FROM sessions " +
	"WHERE expires > unixepoch() AND "

func (x *session) columns() []any {
	return []any{&x.ID, &x.Account, &x.Label, &x.Created, &x.Expires}
}

// session returns what a token stands for.
func (d *database) session(ctx context.Context, token string) (session, error) {
	all, err := list(ctx, d, (*session).columns, selectSession+"hash = ?", hash(token))
	if err == nil && len(all) == 0 {
		err = errNoTicket
	}
	if err != nil {
		return session{}, err
	}
	return all[0], nil
}

// sessions returns those of an account.
func (d *database) sessions(ctx context.Context, account string) ([]session, error) {
	return list(ctx, d, (*session).columns, selectSession+"account = ? ORDER BY created, id",
		account)
}

// isLive says whether the session with an ID has not ended.
func (d *database) isLive(ctx context.Context, id string) (bool, error) {
	return d.has(ctx, "SELECT 1 FROM sessions WHERE id = ? AND expires > unixepoch()", id)
}

func (d *database) revoke(ctx context.Context, id string) (found bool, err error) {
	return d.change(ctx, "DELETE FROM sessions WHERE id = ?", id)
}

// join makes an account get what is published to a topic.
func (d *database) join(ctx context.Context, account, topic string) error {
	return d.insert(ctx, account, "INSERT INTO members SELECT ?, ?2 WHERE EXISTS (SELECT 1 "+
		"FROM accounts WHERE name = ?2) AND (SELECT count(*) FROM members WHERE account = ?2) < ? "+
		"ON CONFLICT DO UPDATE SET topic = topic", topic, account, maxTopics)
}

func (d *database) leave(ctx context.Context, account, topic string) (found bool, err error) {
	return d.change(ctx, "DELETE FROM members WHERE topic = ? AND account = ?", topic, account)
}

// topics returns the topics of groups and devices that an account gets, members the accounts that
// get a topic.
func (d *database) topics(ctx context.Context, account string) ([]string, error) {
	return list(ctx, d, only[string], "SELECT topic FROM members WHERE account = ? ORDER BY topic",
		account)
}

func (d *database) members(ctx context.Context, topic string) ([]string, error) {
	return list(ctx, d, only[string], "SELECT account FROM members WHERE topic = ? "+
		"ORDER BY account", topic)
}

// memberships returns the topics of all accounts.
func (d *database) memberships(ctx context.Context) (map[string]map[string]bool, error) {
	type row struct{ account, topic string }
	rows, err := list(ctx, d, func(r *row) []any { return []any{&r.account, &r.topic} },
		"SELECT name, coalesce(topic, '') FROM accounts LEFT JOIN members ON name = account")
	all := make(map[string]map[string]bool)
	for _, r := range rows {
		if all[r.account] == nil {
			all[r.account] = make(map[string]bool)
		}
		if r.topic != "" {
			all[r.account][r.topic] = true
		}
	}
	return all, err
}

// set returns the only values of a query.
func (d *database) set(ctx context.Context, query string) (map[string]bool, error) {
	values, err := list(ctx, d, only[string], query)
	all := make(map[string]bool, len(values))
	for _, v := range values {
		all[v] = true
	}
	return all, err
}

func (d *database) isMember(ctx context.Context, account, topic string) (bool, error) {
	return d.has(ctx, "SELECT 1 FROM members WHERE topic = ? AND account = ?", topic, account)
}

// share says whether two accounts are in the same group.
func (d *database) share(ctx context.Context, a, b string) (bool, error) {
	return d.has(ctx, "SELECT 1 FROM members x JOIN members y ON x.topic = y.topic "+
		"WHERE x.account = ? AND y.account = ? AND x.topic LIKE 'groups/%'", a, b)
}

// collapse returns a number for a push with a collapse key, which is remembered for as long as the
// push may wait.
func (d *database) collapse(
	ctx context.Context, topic, key string, life time.Duration,
) (number int64, err error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	number, err = value[int64](ctx, d, "INSERT INTO collapsed SELECT ?1 || '/' || ?2, 1, 0, "+
		"unixepoch() + ?3 + 1 WHERE (SELECT count(*) FROM collapsed WHERE topic > ?1 || '/' "+
		"AND topic < ?1 || '0' AND topic <> ?1 || '/' || ?2 AND expires > unixepoch()) < ?4 "+
		"ON CONFLICT DO UPDATE SET number = number + 1, expires = max(expires, excluded.expires) "+
		"RETURNING number", topic, key, int64(life/time.Second), maxCollapse)
	if err == nil && number == 0 {
		err = errTooMany
	}
	return number, err
}

// supersede keeps pushes with a lower number from being delivered. topic ends with the key.
func (d *database) supersede(ctx context.Context, topic string, number int64) error {
	_, err := d.change(ctx, "UPDATE collapsed SET latest = max(latest, ?) WHERE topic = ?", number,
		topic)
	return err
}

// latest returns the highest number of a topic with a key that was published, 0 if none is known.
func (d *database) latest(ctx context.Context, topic string) (number int64, err error) {
	return value[int64](ctx, d, "SELECT latest FROM collapsed WHERE topic = ?", topic)
}

// sweep forgets what has expired.
func (d *database) sweep(ctx context.Context) error {
	_, err := d.change(ctx, "DELETE FROM sessions WHERE expires <= unixepoch()")
	if err == nil {
		_, err = d.change(ctx, "DELETE FROM collapsed WHERE expires <= unixepoch()")
	}
	return err
}

func hash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}
