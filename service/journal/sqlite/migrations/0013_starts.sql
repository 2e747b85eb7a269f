-- The starts that throttles count, until they count no more. `flow` is empty for a throttle with a
-- name, which flows share; `key` for one without a key.
CREATE TABLE starts (
    flow TEXT NOT NULL,
    place TEXT NOT NULL,
    key TEXT NOT NULL,
    at INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT;
CREATE INDEX starts_by_until ON starts (until);

-- The runs that rate limits have accepted. `n` counts up for each key, so that the one that was
-- accepted so many runs ago is found at once, however many a rate allows.
CREATE TABLE accepted_runs (
    flow TEXT NOT NULL,
    place TEXT NOT NULL,
    key TEXT NOT NULL,
    n INTEGER NOT NULL,
    at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (flow, place, key, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX accepted_runs_by_until ON accepted_runs (until);
