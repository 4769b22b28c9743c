-- A context is a folder named by its id. The contexts of the first version, which were files, are not kept.
DROP TABLE context;

CREATE TABLE context (
    number         INTEGER PRIMARY KEY AUTOINCREMENT,  -- the newest has the greatest: lists page by it
    id             TEXT NOT NULL UNIQUE,
    tenant         TEXT NOT NULL REFERENCES tenant (id),
    identity       TEXT NOT NULL,  -- SHA-256 of what makes it the same: kind, text, the documents' names and sizes
    name           TEXT NOT NULL,
    kind           INTEGER NOT NULL,
    sha256         TEXT NOT NULL,
    size_bytes     INTEGER NOT NULL,
    characters     INTEGER NOT NULL,
    documents      INTEGER NOT NULL,
    texts_size     INTEGER NOT NULL,
    texts_mtime_ns INTEGER NOT NULL,
    texts_sha256   TEXT NOT NULL,
    index_size     INTEGER NOT NULL,
    index_mtime_ns INTEGER NOT NULL,
    index_sha256   TEXT NOT NULL,
    created_at     INTEGER NOT NULL,
    used_at        INTEGER NOT NULL,
    deleted_at     INTEGER  -- from then on it is nobody's; the row goes when its files have gone
) STRICT;

CREATE UNIQUE INDEX context_once ON context (tenant, identity) WHERE deleted_at IS NULL;
CREATE INDEX context_of_tenant ON context (tenant, number) WHERE deleted_at IS NULL;
CREATE INDEX context_deleted ON context (id) WHERE deleted_at IS NOT NULL;

-- An upload that is not finished has a folder named by its id. One without a request id ends with its stream.
CREATE TABLE upload (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL REFERENCES tenant (id),
    request_id TEXT,
    name       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    sha256     TEXT NOT NULL,
    documents  INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,  -- when it began, or was finished
    context    TEXT REFERENCES context (id),  -- what it became
    UNIQUE (tenant, request_id)
) STRICT;

CREATE INDEX upload_of_context ON upload (context);
