-- What a backup holds. The statements fit the journals of all versions that may be restored.

-- name: journal_id
SELECT value FROM counters WHERE name = 'id';

-- name: heads
-- The highest seqs that were ever given: a backup that has lower ones leaves something out.
SELECT
    max(coalesce((SELECT max(seq) FROM events), 0),
        coalesce((SELECT value FROM counters WHERE name = 'events'), 0)),
    max(coalesce((SELECT max(seq) FROM runs), 0),
        coalesce((SELECT value FROM counters WHERE name = 'runs'), 0));

-- name: blob_columns
-- The tables and columns that name blobs; before version 10 they were called `spilled`.
SELECT t.name, c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c
WHERE t.type = 'table' AND c.name IN ('blob', 'spilled') AND t.name IN ('steps', 'cache', 'artefacts')
ORDER BY t.name;

-- name: events
SELECT count(*) FROM events;

-- name: runs
SELECT state, count(*) FROM runs GROUP BY state ORDER BY state;

-- name: last_events
-- When the last event of each trigger was accepted, of so many of the newest events (?1).
SELECT trigger, max(accepted_at) FROM (
    SELECT trigger, accepted_at FROM events ORDER BY seq DESC LIMIT ?1) GROUP BY trigger;

-- name: positions
SELECT trigger, count(*) FROM positions GROUP BY trigger;
