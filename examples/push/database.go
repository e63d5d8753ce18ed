package main

import (
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
	ID      string    `json:"id"`
	Account string    `json:"account"`
	Label   string    `json:"label,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Token   string    `json:"token,omitempty"` // only where it was just made
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
	d := &database{sql: db}
	if err := d.write(context.Background(), prepare); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", file, err), db.Close())
	}
	return d, nil
}

func prepare(tx *sql.Tx) error {
	var version int
	if err := tx.QueryRow("PRAGMA user_version").Scan(&version); err != nil || version == 1 {
		return err
	}
	if version != 0 {
		return fmt.Errorf("version %d of the database, expected 1", version)
	}
	_, err := tx.Exec(schema)
	return err
}

// write makes one transaction.
func (d *database) write(ctx context.Context, f func(*sql.Tx) error) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	tx, err := d.sql.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
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

// query runs a query that is prepared.
func (d *database) query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	x, err := d.prepared(query)
	if err != nil {
		return nil, err
	}
	return x.QueryContext(ctx, args...)
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

// names returns the first column of a query.
func (d *database) names(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := d.query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []string{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		all = append(all, name)
	}
	return all, rows.Err()
}

// has says whether a query has a row.
func (d *database) has(ctx context.Context, query string, args ...any) (bool, error) {
	x, err := d.prepared("SELECT EXISTS (" + query + ")")
	if err != nil {
		return false, err
	}
	found := false
	err = x.QueryRowContext(ctx, args...).Scan(&found)
	return found, err
}

func (d *database) addAccount(ctx context.Context, name string) (created bool, err error) {
	return d.change(ctx, "INSERT INTO accounts VALUES (?, ?) ON CONFLICT DO NOTHING", name,
		time.Now().Unix())
}

// removeAccount removes an account with its sessions and its places in groups, and returns who had
// been told of its events.
func (d *database) removeAccount(ctx context.Context, name string) (owners []string, err error) {
	owners, err = d.members(ctx, name+"/events")
	if err != nil {
		return nil, err
	}
	err = d.write(ctx, func(tx *sql.Tx) error {
		r, err := tx.Exec("DELETE FROM accounts WHERE name = ?", name)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, errUnknown)
		}
		_, err = tx.Exec("DELETE FROM members WHERE topic = ?", name+"/events")
		return err
	})
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

// known returns all accounts, and the IDs of all sessions that have not ended.
func (d *database) known(ctx context.Context) (accounts, sessions map[string]bool, err error) {
	names, err := d.accounts(ctx)
	if err != nil {
		return nil, nil, err
	}
	ids, err := d.names(ctx, "SELECT id FROM sessions WHERE expires > ?", time.Now().Unix())
	return set(names), set(ids), err
}

func set(list []string) map[string]bool {
	all := make(map[string]bool, len(list))
	for _, x := range list {
		all[x] = true
	}
	return all
}

func (d *database) accounts(ctx context.Context) ([]string, error) {
	return d.names(ctx, "SELECT name FROM accounts")
}

// issue makes a session, whose token is known to nobody else.
func (d *database) issue(
	ctx context.Context, account, label string, life time.Duration,
) (session, error) {
	now := time.Now().Truncate(time.Second)
	x := session{ID: rand.Text()[:16], Account: account, Label: label, Created: now,
		Expires: now.Add(life + time.Second), Token: rand.Text()} // not earlier than asked for
	err := d.write(ctx, func(tx *sql.Tx) error { return insert(tx, x) })
	return x, err
}

func insert(tx *sql.Tx, x session) error {
	var known bool
	var n int
	err := tx.QueryRow("SELECT EXISTS (SELECT 1 FROM accounts WHERE name = ?1), "+
		"(SELECT count(*) FROM sessions WHERE account = ?1 AND expires > ?2)", x.Account,
		x.Created.Unix()).Scan(&known, &n)
	switch {
	case err != nil:
		return err
	case !known:
		return errUnknown
	case n >= maxSessions:
		return errTooMany
	}
	_, err = tx.Exec("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", x.ID, hash(x.Token),
		x.Account, x.Label, x.Created.Unix(), x.Expires.Unix())
	return err
}

// refresh makes another session like x, and lets x end within a minute: whoever did not get the
// answer can try again.
func (d *database) refresh(ctx context.Context, x session) (session, error) {
	now := time.Now().Truncate(time.Second)
	next := session{ID: rand.Text()[:16], Account: x.Account, Label: x.Label, Created: now,
		Expires: now.Add(x.Expires.Sub(x.Created)), Token: rand.Text()}
	err := d.write(ctx, func(tx *sql.Tx) error {
		if err := insert(tx, next); err != nil {
			return err
		}
		_, err := tx.Exec("UPDATE sessions SET expires = min(expires, ?) WHERE id = ?",
			now.Add(time.Minute).Unix(), x.ID)
		return err
	})
	return next, err
}

// session returns what a token stands for.
func (d *database) session(ctx context.Context, token string) (x session, err error) {
	all, err := d.list(ctx, "hash = ?", hash(token))
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
	return d.list(ctx, "account = ?", account)
}

func (d *database) list(ctx context.Context, where string, arg any) ([]session, error) {
	rows, err := d.query(ctx, "SELECT id, account, label, created, expires "+
		"FROM sessions WHERE "+where+" AND expires > ? ORDER BY created, id", arg,
		time.Now().Unix())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []session{}
	for rows.Next() {
		var x session
		var created, expires int64
		if err := rows.Scan(&x.ID, &x.Account, &x.Label, &created, &expires); err != nil {
			return nil, err
		}
		x.Created, x.Expires = time.Unix(created, 0), time.Unix(expires, 0)
		all = append(all, x)
	}
	return all, rows.Err()
}

// isLive says whether the session with an ID has not ended.
func (d *database) isLive(ctx context.Context, id string) (bool, error) {
	return d.has(ctx, "SELECT 1 FROM sessions WHERE id = ? AND expires > ?", id, time.Now().Unix())
}

func (d *database) revoke(ctx context.Context, id string) (found bool, err error) {
	return d.change(ctx, "DELETE FROM sessions WHERE id = ?", id)
}

// join makes an account get what is published to a topic.
func (d *database) join(ctx context.Context, account, topic string) error {
	return d.write(ctx, func(tx *sql.Tx) error {
		var known bool
		var n int
		err := tx.QueryRow("SELECT EXISTS (SELECT 1 FROM accounts WHERE name = ?1), "+
			"(SELECT count(*) FROM members WHERE account = ?1)", account).Scan(&known, &n)
		switch {
		case err != nil:
			return err
		case !known:
			return errUnknown
		case n >= maxTopics:
			return errTooMany
		}
		_, err = tx.Exec("INSERT INTO members VALUES (?, ?) ON CONFLICT DO NOTHING", topic, account)
		return err
	})
}

func (d *database) leave(ctx context.Context, account, topic string) (found bool, err error) {
	return d.change(ctx, "DELETE FROM members WHERE topic = ? AND account = ?", topic, account)
}

// topics returns the topics of groups and devices that an account gets, members the accounts that
// get a topic.
func (d *database) topics(ctx context.Context, account string) ([]string, error) {
	return d.names(ctx, "SELECT topic FROM members WHERE account = ? ORDER BY topic", account)
}

func (d *database) members(ctx context.Context, topic string) ([]string, error) {
	return d.names(ctx, "SELECT account FROM members WHERE topic = ? ORDER BY account", topic)
}

// memberships returns the topics of all accounts.
func (d *database) memberships(ctx context.Context) (map[string]map[string]bool, error) {
	rows, err := d.query(ctx, "SELECT name, coalesce(topic, '') FROM accounts "+
		"LEFT JOIN members ON name = account")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make(map[string]map[string]bool)
	for rows.Next() {
		var account, topic string
		if err := rows.Scan(&account, &topic); err != nil {
			return nil, err
		}
		if all[account] == nil {
			all[account] = make(map[string]bool)
		}
		if topic != "" {
			all[account][topic] = true
		}
	}
	return all, rows.Err()
}

func (d *database) isMember(ctx context.Context, account, topic string) (bool, error) {
	return d.has(ctx, "SELECT 1 FROM members WHERE topic = ? AND account = ?", topic, account)
}

// share says whether two accounts are in the same group.
func (d *database) share(ctx context.Context, a, b string) (bool, error) {
	return d.has(ctx, "SELECT 1 FROM members x JOIN members y ON x.topic = y.topic "+
		"WHERE x.account = ? AND y.account = ? AND x.topic LIKE 'groups/%'", a, b)
}

// collapse returns the number of a push with a collapse key. What has a lower one is not delivered
// from then on. It is remembered for as long as the push may wait.
func (d *database) collapse(
	ctx context.Context, topic, key string, life time.Duration,
) (number int64, err error) {
	now := time.Now()
	err = d.write(ctx, func(tx *sql.Tx) error {
		var n int
		prefix := topic + "/"
		err := tx.QueryRow("SELECT count(*) FROM collapsed WHERE topic > ? AND topic < ? "+
			"AND topic <> ? AND expires > ?", prefix, topic+"0", prefix+key,
			now.Unix()).Scan(&n) // 0 comes after the slash
		switch {
		case err != nil:
			return err
		case n >= maxCollapse:
			return errTooMany
		}
		return tx.QueryRow("INSERT INTO collapsed VALUES (?, 1, ?) ON CONFLICT DO UPDATE SET "+
			"number = number + 1, expires = max(expires, excluded.expires) RETURNING number",
			prefix+key, now.Add(life).Unix()+1).Scan(&number)
	})
	return number, err
}

// latest returns the highest number for a topic with a key, 0 if none is remembered.
func (d *database) latest(ctx context.Context, topic string) (number int64, err error) {
	x, err := d.prepared("SELECT number FROM collapsed WHERE topic = ?")
	if err != nil {
		return 0, err
	}
	err = x.QueryRowContext(ctx, topic).Scan(&number)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return number, err
}

// sweep forgets what has expired.
func (d *database) sweep(ctx context.Context) error {
	now := time.Now().Unix()
	return d.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("DELETE FROM sessions WHERE expires <= ?", now)
		if err == nil {
			_, err = tx.Exec("DELETE FROM collapsed WHERE expires <= ?", now)
		}
		return err
	})
}

func hash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}
