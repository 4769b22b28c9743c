-- A content is what contexts are of: the files of one text, or of documents. Equal contents of a tenant are one, however
-- many contexts are of it. It has the id of the first of them, whether or not that is still there.
CREATE TABLE content (
    id             TEXT PRIMARY KEY,
    tenant         TEXT NOT NULL REFERENCES tenant (id),
    identity       TEXT NOT NULL,  -- SHA-256 of what makes it the same: kind, text, the documents' names and sizes
    kind           INTEGER NOT NULL,
    sha256         TEXT NOT NULL,
    size_bytes     INTEGER NOT NULL,
    characters     INTEGER NOT NULL,
    documents      INTEGER NOT NULL,
    texts_size     INTEGER NOT NULL,
    texts_mtime_ns INTEGER NOT NULL,
    texts_sha256   TEXT NOT NULL,
    index_size     INTEGER NOT NULL,
    index_mtime_ns INTEGER NOT NULL,
    index_sha256   TEXT NOT NULL,
    deleted_at     INTEGER  -- since then it is no context's; the row goes when its files have gone
) STRICT;
INSERT INTO content (
    id, tenant, identity, kind, sha256, size_bytes, characters, documents, texts_size, texts_mtime_ns, texts_sha256,
    index_size, index_mtime_ns, index_sha256, deleted_at
) SELECT
    id, tenant, identity, kind, sha256, size_bytes, characters, documents, texts_size, texts_mtime_ns, texts_sha256,
    index_size, index_mtime_ns, index_sha256, deleted_at
FROM context;
CREATE UNIQUE INDEX content_once ON content (tenant, identity) WHERE deleted_at IS NULL;
CREATE INDEX content_deleted ON content (id) WHERE deleted_at IS NOT NULL;

-- What is left of a context is its own: a deleted one has no row.
DELETE FROM context WHERE deleted_at IS NOT NULL;
DROP INDEX context_once;
DROP INDEX context_of_tenant;
DROP INDEX context_deleted;
ALTER TABLE context ADD COLUMN content TEXT REFERENCES content (id);
UPDATE context SET content = id;
ALTER TABLE context DROP COLUMN identity;
ALTER TABLE context DROP COLUMN kind;
ALTER TABLE context DROP COLUMN sha256;
ALTER TABLE context DROP COLUMN size_bytes;
ALTER TABLE context DROP COLUMN characters;
ALTER TABLE context DROP COLUMN documents;
ALTER TABLE context DROP COLUMN texts_size;
ALTER TABLE context DROP COLUMN texts_mtime_ns;
ALTER TABLE context DROP COLUMN texts_sha256;
ALTER TABLE context DROP COLUMN index_size;
ALTER TABLE context DROP COLUMN index_mtime_ns;
ALTER TABLE context DROP COLUMN index_sha256;
ALTER TABLE context DROP COLUMN deleted_at;
CREATE INDEX context_of_tenant ON context (tenant, number);
CREATE INDEX context_of_content ON context (content);
-- A context may go with a run; empty before that is made.
ALTER TABLE context ADD COLUMN run TEXT;
CREATE INDEX context_of_run ON context (run) WHERE run IS NOT NULL;

-- What an upload's header says of labels, as JSON.
ALTER TABLE upload ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';

-- A request that deletes is forgotten some time after `forget_at`.
ALTER TABLE request ADD COLUMN forget_at INTEGER;
UPDATE request SET thing = answer WHERE method = 'CreateRun';
CREATE INDEX request_to_forget ON request (tenant, forget_at) WHERE forget_at IS NOT NULL;
