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
    PRIMARY KEY (account, model, span)
) STRICT;
INSERT INTO new_window_limit (account, span, limit_nano_usd, limit_tokens, limit_calls, limit_cpu_ms, since)
    SELECT account, span, limit_nano_usd, limit_tokens, limit_calls, limit_cpu_ms, since FROM window_limit;
DROP TABLE window_limit;
ALTER TABLE new_window_limit RENAME TO window_limit;
