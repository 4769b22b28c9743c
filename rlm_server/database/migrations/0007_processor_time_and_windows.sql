-- Processor time of sandboxes, in milliseconds.
ALTER TABLE account ADD COLUMN limit_cpu_ms INTEGER;
ALTER TABLE account ADD COLUMN posted_cpu_ms INTEGER NOT NULL DEFAULT 0 CHECK (posted_cpu_ms >= 0);
ALTER TABLE account ADD COLUMN pending_cpu_ms INTEGER NOT NULL DEFAULT 0 CHECK (pending_cpu_ms >= 0);
ALTER TABLE account ADD COLUMN carved_cpu_ms INTEGER NOT NULL DEFAULT 0 CHECK (carved_cpu_ms >= 0);
ALTER TABLE account ADD COLUMN overrun_cpu_ms INTEGER NOT NULL DEFAULT 0 CHECK (overrun_cpu_ms >= 0 AND (
    limit_cpu_ms IS NULL OR posted_cpu_ms + pending_cpu_ms + carved_cpu_ms <= limit_cpu_ms
));
ALTER TABLE hold ADD COLUMN cpu_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE hold ADD COLUMN actual_cpu_ms INTEGER;
-- Which owner of the database reserved it.
ALTER TABLE hold ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
-- Posted holds are numbered in the order they were posted, which no clock can change.
ALTER TABLE hold ADD COLUMN entry INTEGER;
UPDATE hold SET actual_cpu_ms = 0, entry = place.number
FROM (
    SELECT id, row_number() OVER (ORDER BY resolved_at, rowid) AS number FROM hold WHERE state = 'posted'
) AS place
WHERE place.id = hold.id;
DROP INDEX hold_posted;
DROP INDEX hold_overrun;
CREATE UNIQUE INDEX hold_entry ON hold (entry) WHERE entry IS NOT NULL;
CREATE INDEX hold_entry_of_tenant ON hold (tenant, entry) WHERE entry IS NOT NULL;
CREATE INDEX hold_entry_of_run ON hold (run, entry) WHERE entry IS NOT NULL;
CREATE INDEX hold_reserved ON hold (tenant, reserved_at);
CREATE INDEX hold_overrun ON hold (id)
    WHERE actual_nano_usd > nano_usd OR actual_tokens > tokens OR actual_calls > calls OR actual_cpu_ms > cpu_ms;

-- What a tenant may spend in every hour, day or month; the account of each is opened when it is first needed.
CREATE TABLE tenant_window (
    tenant         TEXT NOT NULL,
    span           TEXT NOT NULL CHECK (span IN ('hour', 'day', 'month')),
    limit_nano_usd INTEGER,
    limit_tokens   INTEGER,
    limit_calls    INTEGER,
    limit_cpu_ms   INTEGER,
    PRIMARY KEY (tenant, span)
) STRICT;
