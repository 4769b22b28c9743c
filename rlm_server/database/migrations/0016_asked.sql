-- What a run is asked for besides its question: the JSON Schema of its answer, empty where that may be any text,
-- instructions, how its models are to write, as JSON, and whether by an RLM.
ALTER TABLE run ADD COLUMN answer_schema TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN instructions TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN sampling TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN strategy TEXT NOT NULL DEFAULT 'rlm';
