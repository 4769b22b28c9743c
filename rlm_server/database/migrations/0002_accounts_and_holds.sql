-- Money is in nano-US-dollars. A NULL limit is no limit.
-- `carved` is what open carved children were promised and have neither spent nor held.
CREATE TABLE account (
    id               TEXT PRIMARY KEY,
    tenant           TEXT NOT NULL,
    parent           TEXT REFERENCES account (id),
    carve            INTEGER NOT NULL CHECK (carve IN (0, 1)),
    closed           INTEGER NOT NULL CHECK (closed IN (0, 1)),
    limit_nano_usd   INTEGER,
    limit_tokens     INTEGER,
    limit_calls      INTEGER,
    posted_nano_usd  INTEGER NOT NULL CHECK (posted_nano_usd >= 0),
    posted_tokens    INTEGER NOT NULL CHECK (posted_tokens >= 0),
    posted_calls     INTEGER NOT NULL CHECK (posted_calls >= 0),
    pending_nano_usd INTEGER NOT NULL CHECK (pending_nano_usd >= 0),
    pending_tokens   INTEGER NOT NULL CHECK (pending_tokens >= 0),
    pending_calls    INTEGER NOT NULL CHECK (pending_calls >= 0),
    carved_nano_usd  INTEGER NOT NULL CHECK (carved_nano_usd >= 0),
    carved_tokens    INTEGER NOT NULL CHECK (carved_tokens >= 0),
    carved_calls     INTEGER NOT NULL CHECK (carved_calls >= 0),
    overrun_nano_usd INTEGER NOT NULL CHECK (overrun_nano_usd >= 0),
    overrun_tokens   INTEGER NOT NULL CHECK (overrun_tokens >= 0),
    overrun_calls    INTEGER NOT NULL CHECK (overrun_calls >= 0),
    CHECK (limit_nano_usd IS NULL OR posted_nano_usd + pending_nano_usd + carved_nano_usd <= limit_nano_usd),
    CHECK (limit_tokens IS NULL OR posted_tokens + pending_tokens + carved_tokens <= limit_tokens),
    CHECK (limit_calls IS NULL OR posted_calls + pending_calls + carved_calls <= limit_calls)
) STRICT;

CREATE INDEX account_children ON account (parent) WHERE closed = 0;

-- The amounts held, and once posted the actual ones and the provider's usage (NULL where it sent none).
-- Times are Unix milliseconds.
CREATE TABLE hold (
    id              TEXT PRIMARY KEY,
    account         TEXT NOT NULL REFERENCES account (id),
    tenant          TEXT NOT NULL,
    run             TEXT NOT NULL,
    node            TEXT NOT NULL,
    model           TEXT NOT NULL,
    price_version   TEXT NOT NULL,
    nano_usd        INTEGER NOT NULL,
    tokens          INTEGER NOT NULL,
    calls           INTEGER NOT NULL,
    reserved_at     INTEGER NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('pending', 'dispatched', 'posted', 'voided')),
    resolved_at     INTEGER,
    actual_nano_usd INTEGER,
    actual_tokens   INTEGER,
    actual_calls    INTEGER,
    input           INTEGER,
    output          INTEGER,
    cache_read      INTEGER,
    cache_write     INTEGER,
    reasoning       INTEGER,
    CHECK ((state = 'posted') = (actual_nano_usd IS NOT NULL)),
    CHECK ((state IN ('posted', 'voided')) = (resolved_at IS NOT NULL))
) STRICT;

CREATE INDEX hold_unresolved ON hold (state) WHERE state IN ('pending', 'dispatched');
CREATE INDEX hold_posted ON hold (tenant, run, resolved_at) WHERE state = 'posted';
CREATE INDEX hold_overrun ON hold (id)
    WHERE actual_nano_usd > nano_usd OR actual_tokens > tokens OR actual_calls > calls;
