-- What a Dunlin broker keeps, in tables that one can look into with the sqlite3 shell. Sessions, sequence numbers and instants
-- are 64-bit numbers as SQLite has them, signed; an instant is in Unix nanoseconds, 0 meaning never.
CREATE TABLE sessions (
	session    INTEGER PRIMARY KEY,
	client     TEXT NOT NULL,
	principal  TEXT NOT NULL,
	username   TEXT NOT NULL,
	named      INTEGER NOT NULL,
	mount      TEXT NOT NULL,
	expiry     INTEGER NOT NULL,
	expires_at INTEGER NOT NULL,
	will       TEXT -- JSON
);
CREATE TABLE subscriptions (
	session  INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
	filter   TEXT NOT NULL,
	qos      INTEGER NOT NULL,
	no_local INTEGER NOT NULL,
	retain_as_published INTEGER NOT NULL,
	retain_handling     INTEGER NOT NULL,
	id       INTEGER NOT NULL,
	PRIMARY KEY (session, filter)
) WITHOUT ROWID;
CREATE TABLE received (
	session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
	id      INTEGER NOT NULL,
	PRIMARY KEY (session, id)
) WITHOUT ROWID;
-- A message is here once, however many queues it waits in, and as long as there is one, or it is retained.
CREATE TABLE messages (
	message    INTEGER PRIMARY KEY AUTOINCREMENT,
	topic      TEXT NOT NULL,
	payload    BLOB,
	properties BLOB,
	qos        INTEGER NOT NULL,
	retain     INTEGER NOT NULL,
	expires    INTEGER NOT NULL,
	sender     TEXT NOT NULL
);
CREATE TABLE queue (
	session   INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
	seq       INTEGER NOT NULL,
	message   INTEGER NOT NULL REFERENCES messages,
	qos       INTEGER NOT NULL,
	retain    INTEGER NOT NULL,
	ids       TEXT, -- JSON
	share     TEXT NOT NULL,
	packet_id INTEGER NOT NULL DEFAULT 0,
	released  INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE INDEX queue_message ON queue (message);
CREATE TABLE retained (
	topic   TEXT PRIMARY KEY,
	message INTEGER NOT NULL REFERENCES messages
) WITHOUT ROWID;
CREATE INDEX retained_message ON retained (message);

CREATE TRIGGER dequeued AFTER DELETE ON queue BEGIN
	DELETE FROM messages WHERE message = old.message
		AND NOT EXISTS (SELECT 1 FROM queue WHERE message = old.message)
		AND NOT EXISTS (SELECT 1 FROM retained WHERE message = old.message);
END;
CREATE TRIGGER unretained AFTER DELETE ON retained BEGIN
	DELETE FROM messages WHERE message = old.message
		AND NOT EXISTS (SELECT 1 FROM queue WHERE message = old.message);
END;
PRAGMA user_version = 1;
