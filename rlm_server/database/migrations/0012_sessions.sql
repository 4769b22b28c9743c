-- Sessions, also those that ended within the last day. Times are Unix milliseconds. NULL of `idle_ms` and `life_ms` means
-- what the server says. `used_at` and `turns` of a session that lives may be a little behind.
CREATE TABLE session (
    id             TEXT PRIMARY KEY,
    tenant         TEXT NOT NULL,
    image          TEXT NOT NULL,
    context        TEXT,                      -- its id; it may have been deleted since
    sub_model      TEXT NOT NULL,
    limit_nano_usd INTEGER,
    limit_tokens   INTEGER,
    limit_calls    INTEGER,
    limit_cpu_ms   INTEGER,
    limits         TEXT NOT NULL,             -- JSON: what its code may use
    customer       TEXT NOT NULL DEFAULT '',  -- the path of who pays; empty where that is the tenant
    snapshot       TEXT,                      -- the id of the one that it began from
    parent         TEXT,                      -- the id of the session that it was forked from
    created_at     INTEGER NOT NULL,
    used_at        INTEGER NOT NULL,
    turns          INTEGER NOT NULL DEFAULT 0,
    idle_ms        INTEGER,
    life_ms        INTEGER,
    state          TEXT NOT NULL CHECK (state IN ('active', 'paused', 'ended')),
    stored         TEXT,                      -- where its state is kept; NULL where it is in memory alone
    end_reason     TEXT NOT NULL DEFAULT '',
    end_message    TEXT NOT NULL DEFAULT '',
    ended_at       INTEGER,
    CHECK ((state = 'ended') = (ended_at IS NOT NULL))
) STRICT;
CREATE INDEX session_newest ON session (tenant, created_at, id);
CREATE INDEX session_of_customer ON session (tenant, customer, created_at, id);
CREATE INDEX session_living ON session (tenant, id) WHERE state <> 'ended';
CREATE INDEX session_ended ON session (ended_at) WHERE ended_at IS NOT NULL;

-- States of sessions that are kept beyond the session's end.
CREATE TABLE snapshot (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    session    TEXT,                          -- the id of the one that it was made of; it may have ended since
    image      TEXT NOT NULL,
    context    TEXT,
    name       TEXT NOT NULL DEFAULT '',
    stored     TEXT NOT NULL,                 -- where it is kept
    size_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshot_newest ON snapshot (tenant, created_at, id);
CREATE INDEX snapshot_of_session ON snapshot (tenant, session, created_at, id);

-- A request that is known for as long as a thing is: the thing's id, by which it is forgotten with it.
ALTER TABLE request ADD COLUMN thing TEXT NOT NULL DEFAULT '';
CREATE INDEX request_of_thing ON request (tenant, thing) WHERE thing <> '';
