-- A tenant's customers have accounts, under the tenant's own and under each other. `path` is the ids from the top to
-- this one, joined by `/`. The limit here is what was asked for; that of the account is never below what is used.
CREATE TABLE customer (
    account        TEXT PRIMARY KEY REFERENCES account (id),
    tenant         TEXT NOT NULL,
    id             TEXT NOT NULL,
    parent         TEXT NOT NULL,  -- the id of the one above; empty where that is the tenant
    path           TEXT NOT NULL,
    name           TEXT NOT NULL,
    created_at     INTEGER NOT NULL,
    limit_nano_usd INTEGER,
    limit_tokens   INTEGER,
    limit_calls    INTEGER,
    limit_cpu_ms   INTEGER,
    UNIQUE (tenant, id)
) STRICT;
CREATE INDEX customer_under ON customer (tenant, parent, id);

-- Who pays: the path of the nearest customer, empty where there is none above.
ALTER TABLE hold ADD COLUMN customer TEXT NOT NULL DEFAULT '';
CREATE INDEX hold_of_customer ON hold (tenant, customer, reserved_at) WHERE customer <> '';
CREATE INDEX hold_entry_of_customer ON hold (tenant, customer, entry) WHERE customer <> '';
ALTER TABLE run ADD COLUMN customer TEXT NOT NULL DEFAULT '';
CREATE INDEX run_newest ON run (tenant, created_at, id);
CREATE INDEX run_of_customer ON run (tenant, customer, created_at, id);

-- What any account may spend in every window of a span. A window that begins at `since` or later and has no row has
-- nothing in it; what an earlier one has is counted.
CREATE TABLE window_limit (
    account        TEXT NOT NULL,
    span           TEXT NOT NULL CHECK (span IN ('minute', 'hour', 'day', 'month')),
    limit_nano_usd INTEGER,
    limit_tokens   INTEGER,
    limit_calls    INTEGER,
    limit_cpu_ms   INTEGER,
    since          INTEGER NOT NULL,
    PRIMARY KEY (account, span)
) STRICT;
INSERT INTO window_limit (account, span, limit_nano_usd, limit_tokens, limit_calls, limit_cpu_ms, since)
    SELECT tenant, span, limit_nano_usd, limit_tokens, limit_calls, limit_cpu_ms, 4611686018427387904
    FROM tenant_window;
DROP TABLE tenant_window;

-- What was spent in a window, in a row like an account's. Old ones are removed, up to a time for each span.
CREATE TABLE window_account (
    id               TEXT PRIMARY KEY,
    tenant           TEXT NOT NULL,
    parent           TEXT,
    carve            INTEGER NOT NULL,
    closed           INTEGER NOT NULL,
    limit_nano_usd   INTEGER,
    limit_tokens     INTEGER,
    limit_calls      INTEGER,
    limit_cpu_ms     INTEGER,
    posted_nano_usd  INTEGER NOT NULL CHECK (posted_nano_usd >= 0),
    posted_tokens    INTEGER NOT NULL CHECK (posted_tokens >= 0),
    posted_calls     INTEGER NOT NULL CHECK (posted_calls >= 0),
    posted_cpu_ms    INTEGER NOT NULL CHECK (posted_cpu_ms >= 0),
    pending_nano_usd INTEGER NOT NULL CHECK (pending_nano_usd >= 0),
    pending_tokens   INTEGER NOT NULL CHECK (pending_tokens >= 0),
    pending_calls    INTEGER NOT NULL CHECK (pending_calls >= 0),
    pending_cpu_ms   INTEGER NOT NULL CHECK (pending_cpu_ms >= 0),
    carved_nano_usd  INTEGER NOT NULL CHECK (carved_nano_usd >= 0),
    carved_tokens    INTEGER NOT NULL CHECK (carved_tokens >= 0),
    carved_calls     INTEGER NOT NULL CHECK (carved_calls >= 0),
    carved_cpu_ms    INTEGER NOT NULL CHECK (carved_cpu_ms >= 0),
    overrun_nano_usd INTEGER NOT NULL CHECK (overrun_nano_usd >= 0),
    overrun_tokens   INTEGER NOT NULL CHECK (overrun_tokens >= 0),
    overrun_calls    INTEGER NOT NULL CHECK (overrun_calls >= 0),
    overrun_cpu_ms   INTEGER NOT NULL CHECK (overrun_cpu_ms >= 0),
    CHECK (limit_nano_usd IS NULL OR posted_nano_usd + pending_nano_usd + carved_nano_usd <= limit_nano_usd),
    CHECK (limit_tokens IS NULL OR posted_tokens + pending_tokens + carved_tokens <= limit_tokens),
    CHECK (limit_calls IS NULL OR posted_calls + pending_calls + carved_calls <= limit_calls),
    CHECK (limit_cpu_ms IS NULL OR posted_cpu_ms + pending_cpu_ms + carved_cpu_ms <= limit_cpu_ms)
) STRICT;
INSERT INTO window_account (
    id, tenant, carve, closed, limit_nano_usd, limit_tokens, limit_calls, limit_cpu_ms,
    posted_nano_usd, posted_tokens, posted_calls, posted_cpu_ms,
    pending_nano_usd, pending_tokens, pending_calls, pending_cpu_ms,
    carved_nano_usd, carved_tokens, carved_calls, carved_cpu_ms,
    overrun_nano_usd, overrun_tokens, overrun_calls, overrun_cpu_ms
) SELECT
    id, tenant, carve, closed, limit_nano_usd, limit_tokens, limit_calls, limit_cpu_ms,
    posted_nano_usd, posted_tokens, posted_calls, posted_cpu_ms,
    pending_nano_usd, pending_tokens, pending_calls, pending_cpu_ms,
    carved_nano_usd, carved_tokens, carved_calls, carved_cpu_ms,
    overrun_nano_usd, overrun_tokens, overrun_calls, overrun_cpu_ms
FROM account WHERE id >= 'window:' AND id < 'window;';
-- For the time of the removal: whether anything refers to a row is looked up for each.
CREATE INDEX account_parent ON account (parent);
CREATE INDEX hold_account ON hold (account);
DELETE FROM account WHERE id >= 'window:' AND id < 'window;';
DROP INDEX account_parent;
DROP INDEX hold_account;

CREATE TABLE window_removed (
    span   TEXT PRIMARY KEY,
    before INTEGER NOT NULL  -- windows that begin before this may have been removed
) STRICT;

-- Labels of anything: `kind` says of what. They stay when it is deleted, so that its usage can still be summed by them.
CREATE TABLE label (
    kind  TEXT NOT NULL,
    id    TEXT NOT NULL,
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (kind, id, key)
) STRICT;
CREATE INDEX label_value ON label (kind, key, value, id);

-- What was asked for under a request id, by a tenant, or where that is empty by an operator; and the id of what it was
-- answered with, or an operator's whole answer without secrets. An empty hash is not known.
CREATE TABLE request (
    tenant         TEXT NOT NULL,
    method         TEXT NOT NULL,
    request_id     TEXT NOT NULL,
    content_sha256 TEXT NOT NULL,
    answer         TEXT NOT NULL,
    at             INTEGER NOT NULL,
    PRIMARY KEY (tenant, method, request_id)
) STRICT;
INSERT INTO request (tenant, method, request_id, content_sha256, answer, at)
    SELECT tenant, 'CreateRun', request_id, '', id, created_at FROM run WHERE request_id IS NOT NULL;
