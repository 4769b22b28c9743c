-- Which texts of a node are redacted, as JSON: of each its field, the bytes of the whole, and its digest.
ALTER TABLE node ADD COLUMN redacted TEXT NOT NULL DEFAULT '';
