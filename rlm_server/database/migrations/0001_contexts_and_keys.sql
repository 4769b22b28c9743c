-- Times are Unix milliseconds. Only a key's SHA-256 is kept, with its first characters to know it by.
CREATE TABLE tenant (
    id         TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_key (
    sha256     TEXT PRIMARY KEY,
    prefix     TEXT NOT NULL,
    tenant     TEXT NOT NULL REFERENCES tenant (id),
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;

-- The text itself is a file named by the context's id.
CREATE TABLE context (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL REFERENCES tenant (id),
    name       TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    characters INTEGER NOT NULL,
    form       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (tenant, sha256)
) STRICT;
