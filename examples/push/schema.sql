-- The version of this schema is in user_version. Times are seconds since 1970.
PRAGMA user_version = 2;

-- An account is a user or a device: users/ann, devices/door. Its name is the topic of its inbox.
CREATE TABLE accounts (
	name    TEXT PRIMARY KEY,
	created INTEGER NOT NULL
) WITHOUT ROWID;

-- A session lets whoever has its token act for an account until it expires. Only the hash is kept.
CREATE TABLE sessions (
	id      TEXT PRIMARY KEY,
	hash    BLOB NOT NULL UNIQUE,
	account TEXT NOT NULL REFERENCES accounts ON DELETE CASCADE,
	label   TEXT NOT NULL,
	created INTEGER NOT NULL,
	expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_account ON sessions (account);
CREATE INDEX sessions_expires ON sessions (expires);

-- An account gets what is published to a topic: groups/birds if it is a member of that group,
-- devices/door/events if it owns that device.
CREATE TABLE members (
	topic   TEXT NOT NULL,
	account TEXT NOT NULL REFERENCES accounts ON DELETE CASCADE,
	PRIMARY KEY (topic, account)
) WITHOUT ROWID;
CREATE INDEX members_account ON members (account);

-- Pushes with a collapse key are numbered. Those below latest are not delivered any more. A number
-- becomes latest when its push is published.
CREATE TABLE collapsed (
	topic   TEXT PRIMARY KEY, -- of the inbox or group, a slash, and the key
	number  INTEGER NOT NULL,
	latest  INTEGER NOT NULL,
	expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX collapsed_expires ON collapsed (expires);
