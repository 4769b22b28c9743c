-- What is kept of runs is counted in bytes: of each event and text, of each run, and of each tenant's runs together. Of
-- what was kept before, a character counts as a byte.
ALTER TABLE event ADD COLUMN cut TEXT NOT NULL DEFAULT '';
ALTER TABLE event ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
UPDATE event SET size = length(body);
ALTER TABLE node ADD COLUMN question_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN answer_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE node SET question_bytes = length(question), answer_bytes = length(answer);
ALTER TABLE run ADD COLUMN kept_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE run SET kept_bytes =
    (SELECT coalesce(sum(size), 0) FROM event WHERE event.run = run.id)
    + (SELECT coalesce(sum(question_bytes + answer_bytes), 0) FROM node WHERE node.run = run.id);

CREATE TABLE tenant_usage (
    tenant     TEXT PRIMARY KEY REFERENCES tenant (id),
    kept_bytes INTEGER NOT NULL
) STRICT;
INSERT INTO tenant_usage (tenant, kept_bytes) SELECT tenant, sum(kept_bytes) FROM run GROUP BY tenant;
