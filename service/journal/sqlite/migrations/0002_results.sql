-- Where a step's result comes from when not from here: `origin` is the run that computed it (a cache
-- hit), `spilled` the digest of the file that holds it (a large one).
ALTER TABLE steps ADD COLUMN origin TEXT;
ALTER TABLE steps ADD COLUMN spilled TEXT;
CREATE INDEX steps_spilled ON steps (spilled) WHERE spilled IS NOT NULL;

-- Results of tasks with `cache=`; `key` is a digest of task, code and input.
CREATE TABLE cache (
    seq INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    task TEXT NOT NULL,
    run_id TEXT NOT NULL,
    encoding TEXT NOT NULL CHECK (encoding IN ('json', 'pickle')),
    result BLOB,
    spilled TEXT,
    stored_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX cache_by_key ON cache (key);
CREATE INDEX cache_by_task ON cache (task);
CREATE INDEX cache_expiring ON cache (expires_at);
CREATE INDEX cache_spilled ON cache (spilled) WHERE spilled IS NOT NULL;
