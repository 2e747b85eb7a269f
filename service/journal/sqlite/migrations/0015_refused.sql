-- Why a rule of its flow ended a run as skipped, and the run that goes on instead, a JSON object
-- {"reason": "unique", "run": id}; NULL for a run that its own code skips.
ALTER TABLE runs ADD COLUMN refused TEXT;

-- 1 where the run that is waited for is the work of somebody else: it is not cancelled with the one
-- that waits.
ALTER TABLE waits ADD COLUMN shared INTEGER;

-- Who has a key of `unique(…, until="7d")`, since when, and until when the row is kept. The run may
-- have been pruned since.
CREATE TABLE unique_keys (
    flow TEXT NOT NULL,
    key TEXT NOT NULL,
    run_seq INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (flow, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX unique_keys_by_until ON unique_keys (until);
