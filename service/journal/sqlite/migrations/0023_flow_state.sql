-- What flows keep between runs: a small JSON value for each flow, and for each ordering key of a flow
-- that declares `ordered_by=` (elsewhere the key is empty). `version` counts the writes: a run's
-- success writes it only while the version is the one it has read. `run_id` is the last that wrote.
CREATE TABLE flow_state (
    flow TEXT NOT NULL,
    key TEXT NOT NULL,
    version INTEGER NOT NULL,
    value BLOB NOT NULL,
    run_id TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (flow, key)
) STRICT, WITHOUT ROWID;
