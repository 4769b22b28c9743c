-- The JSON Schema of a run's answer, empty where it may be any text.
ALTER TABLE run ADD COLUMN answer_schema TEXT NOT NULL DEFAULT '';
