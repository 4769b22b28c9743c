-- A key may be bound to a customer: the customer's path, empty where the key is its tenant's as a whole.
ALTER TABLE api_key ADD COLUMN customer TEXT NOT NULL DEFAULT '';

-- What an account may spend in every window of a span ("whole": all that is ever spent), with some models where they are
-- named by a name or a pattern.
CREATE TABLE new_window_limit (
    account        TEXT NOT NULL,
    model          TEXT NOT NULL DEFAULT '',  -- empty: whatever is spent
    span           TEXT NOT NULL CHECK (span IN ('minute', 'hour', 'day', 'month', 'whole')),
    limit_nano_usd INTEGER,
    limit_tokens   INTEGER,
    limit_calls    INTEGER,
    limit_cpu_ms   INTEGER,
    since          INTEGER NOT NULL,
    soft           TEXT NOT NULL DEFAULT '',  -- JSON: what of it is told of when it is spent; a row may have that alone
    PRIMARY KEY (account, model, span)
) STRICT;
INSERT INTO new_window_limit (account, span, limit_nano_usd, limit_tokens, limit_calls, limit_cpu_ms, since)
    SELECT account, span, limit_nano_usd, limit_tokens, limit_calls, limit_cpu_ms, since FROM window_limit;
DROP TABLE window_limit;
ALTER TABLE new_window_limit RENAME TO window_limit;

-- A soft limit was crossed, and is told of. While `once` is there, the same is not told again.
CREATE TABLE budget_event (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL UNIQUE,
    tenant       TEXT NOT NULL,
    account      TEXT NOT NULL,
    customer     TEXT NOT NULL,  -- the path of the customer whose account it is; empty for the tenant's own
    model        TEXT NOT NULL,
    span         TEXT NOT NULL,
    label        TEXT NOT NULL,
    unit         TEXT NOT NULL,
    percent      INTEGER,
    threshold    INTEGER NOT NULL,
    limited      INTEGER,
    used         INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    once         TEXT UNIQUE,
    attempts     INTEGER NOT NULL DEFAULT 0,
    due_at       INTEGER,  -- when it is to be sent next; NULL where it is not
    delivered_at INTEGER,
    given_up_at  INTEGER,
    failure      TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX budget_event_of_tenant ON budget_event (tenant, number);
CREATE INDEX budget_event_due ON budget_event (due_at, tenant) WHERE due_at IS NOT NULL;

-- Where a tenant has its events sent. Both secrets sign until `former_until`.
CREATE TABLE webhook (
    tenant       TEXT PRIMARY KEY,
    url          TEXT NOT NULL,
    secret       TEXT NOT NULL,
    former       TEXT NOT NULL DEFAULT '',
    former_until INTEGER NOT NULL DEFAULT 0,
    enabled      INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    changed_at   INTEGER NOT NULL
) STRICT;
