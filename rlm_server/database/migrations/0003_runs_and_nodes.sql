-- Times are Unix milliseconds.
CREATE TABLE run (
    id             TEXT PRIMARY KEY,
    tenant         TEXT NOT NULL REFERENCES tenant (id),
    request_id     TEXT,
    context        TEXT REFERENCES context (id),
    model          TEXT NOT NULL,
    sub_model      TEXT NOT NULL,
    limit_nano_usd INTEGER,
    limit_tokens   INTEGER,
    limit_calls    INTEGER,
    created_at     INTEGER NOT NULL,
    ended_at       INTEGER,
    UNIQUE (tenant, request_id)
) STRICT;

-- Every RLM of a run's tree; the root has the run's own id.
CREATE TABLE node (
    id       TEXT PRIMARY KEY,
    run      TEXT NOT NULL REFERENCES run (id),
    parent   TEXT REFERENCES node (id),
    depth    INTEGER NOT NULL,
    state    TEXT NOT NULL,
    question TEXT NOT NULL,
    answer   TEXT NOT NULL DEFAULT '',
    reason   TEXT NOT NULL DEFAULT '',
    turns    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX node_of_run ON node (run);
CREATE INDEX node_unfinished ON node (state) WHERE state IN ('pending', 'running');

CREATE TABLE event (
    run      TEXT NOT NULL REFERENCES run (id),
    sequence INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    node     TEXT NOT NULL,
    parent   TEXT NOT NULL,
    depth    INTEGER NOT NULL,
    turn     INTEGER NOT NULL,
    body     TEXT NOT NULL,
    PRIMARY KEY (run, sequence)
) STRICT, WITHOUT ROWID;
