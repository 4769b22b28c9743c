-- What a tenant was told itself is JSON. From `deleted_at` on it has nothing more to say, and from `cleared_at` on
-- nothing is left of it but its name and what it spent. `version` is that of its last change: see `tenant_version`.
ALTER TABLE tenant ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE tenant ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';
ALTER TABLE tenant ADD COLUMN changed_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tenant ADD COLUMN deleted_at INTEGER;
ALTER TABLE tenant ADD COLUMN cleared_at INTEGER;
ALTER TABLE tenant ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
UPDATE tenant SET changed_at = created_at;

-- A key without a tenant is an operator's. SQLite changes no column, so the table is made anew.
CREATE TABLE new_api_key (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,  -- the newest has the greatest: lists page by it
    id         TEXT NOT NULL UNIQUE,
    sha256     TEXT NOT NULL UNIQUE,
    prefix     TEXT NOT NULL,
    tenant     TEXT REFERENCES tenant (id),
    labels     TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    used_at    INTEGER,
    revoked_at INTEGER,
    version    INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO new_api_key (id, sha256, prefix, tenant, created_at, revoked_at)
    SELECT 'key_' || substr(sha256, 1, 32), sha256, prefix, tenant, created_at, revoked_at FROM api_key
    ORDER BY created_at, sha256;
DROP TABLE api_key;
ALTER TABLE new_api_key RENAME TO api_key;
CREATE INDEX api_key_of_tenant ON api_key (tenant, number);
CREATE INDEX api_key_revoked ON api_key (version) WHERE revoked_at IS NOT NULL;
CREATE INDEX tenant_changed ON tenant (version);

-- One row: the number of the last change to a tenant or a key. Whoever has seen this number knows of all changes.
CREATE TABLE tenant_version (number INTEGER NOT NULL) STRICT;
INSERT INTO tenant_version VALUES (0);
