-- Nodes of a run are numbered in the order of their start; a budget may limit the sandbox's processor time.
ALTER TABLE node ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
UPDATE node SET number = place.number
FROM (SELECT id, row_number() OVER (PARTITION BY run ORDER BY rowid) - 1 AS number FROM node) AS place
WHERE place.id = node.id;
ALTER TABLE run ADD COLUMN limit_cpu_ms INTEGER;
