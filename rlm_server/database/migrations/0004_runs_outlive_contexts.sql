-- A run outlives its context. SQLite drops no single constraint, so the table is made anew, and those that refer to
-- it: https://www.sqlite.org/lang_altertable.html#otheralter
CREATE TABLE new_run (
    id             TEXT PRIMARY KEY,
    tenant         TEXT NOT NULL REFERENCES tenant (id),
    request_id     TEXT,
    context        TEXT,
    model          TEXT NOT NULL,
    sub_model      TEXT NOT NULL,
    limit_nano_usd INTEGER,
    limit_tokens   INTEGER,
    limit_calls    INTEGER,
    created_at     INTEGER NOT NULL,
    ended_at       INTEGER,
    UNIQUE (tenant, request_id)
) STRICT;

CREATE TABLE new_node (
    id       TEXT PRIMARY KEY,
    run      TEXT NOT NULL REFERENCES new_run (id),
    parent   TEXT REFERENCES new_node (id),
    depth    INTEGER NOT NULL,
    state    TEXT NOT NULL,
    question TEXT NOT NULL,
    answer   TEXT NOT NULL DEFAULT '',
    reason   TEXT NOT NULL DEFAULT '',
    turns    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE new_event (
    run      TEXT NOT NULL REFERENCES new_run (id),
    sequence INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    node     TEXT NOT NULL,
    parent   TEXT NOT NULL,
    depth    INTEGER NOT NULL,
    turn     INTEGER NOT NULL,
    body     TEXT NOT NULL,
    PRIMARY KEY (run, sequence)
) STRICT, WITHOUT ROWID;

INSERT INTO new_run SELECT * FROM run ORDER BY rowid;
INSERT INTO new_node SELECT * FROM node ORDER BY rowid;
INSERT INTO new_event SELECT * FROM event;
DROP TABLE event;
DROP TABLE node;
DROP TABLE run;
ALTER TABLE new_run RENAME TO run;
ALTER TABLE new_node RENAME TO node;
ALTER TABLE new_event RENAME TO event;
CREATE INDEX node_of_run ON node (run);
CREATE INDEX node_unfinished ON node (state) WHERE state IN ('pending', 'running');
