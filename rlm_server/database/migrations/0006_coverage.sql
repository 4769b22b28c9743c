-- How much was looked at: of its own text, and, as JSON, of the run's context by the whole tree.
ALTER TABLE node ADD COLUMN coverage_fraction REAL NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN coverage TEXT NOT NULL DEFAULT '';
