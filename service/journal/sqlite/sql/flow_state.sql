-- What flows keep between runs.

-- name: read
-- The state of a flow (?1) under a key (?2).
SELECT flow, key, version, value, run_id, changed_at FROM flow_state WHERE flow = ?1 AND key = ?2;

-- name: listed
-- All states, or those of a flow (?1) and of a key (?2), up to a bound (?3).
SELECT flow, key, version, value, run_id, changed_at FROM flow_state
WHERE (?1 IS NULL OR flow = ?1) AND (?2 IS NULL OR key = ?2) AND value <> CAST('null' AS BLOB)
ORDER BY flow, key LIMIT ?3;

-- name: count
-- How many values a flow (?1) keeps, under a key (?2) or any.
SELECT count(*) FROM flow_state
WHERE flow = ?1 AND (?2 IS NULL OR key = ?2) AND value <> CAST('null' AS BLOB);

-- name: first
-- A flow (?1) keeps a value (?3) under a key (?2) for the first time, from a run (?4) at an instant
-- (?5); nothing if it does already.
INSERT INTO flow_state (flow, key, version, value, run_id, changed_at, used_at)
VALUES (?1, ?2, 1, ?3, ?4, ?5, ?5) ON CONFLICT DO NOTHING;

-- name: next
-- A flow (?1) keeps another value (?3) under a key (?2), from a run (?4) at an instant (?5) that has
-- read a version (?6); nothing if that is no longer the one there is.
UPDATE flow_state SET version = version + 1, value = ?3, run_id = ?4, changed_at = ?5, used_at = ?5
WHERE flow = ?1 AND key = ?2 AND version = ?6;

-- name: clear
-- A flow (?1) keeps nothing any more, under a key (?2) or any, from an instant (?3) on. The row stays
-- with the next version, so that a run that has read the old value starts over and does not write.
UPDATE flow_state SET version = version + 1, value = CAST('null' AS BLOB), run_id = '', changed_at = ?3
WHERE flow = ?1 AND (?2 IS NULL OR key = ?2) AND value <> CAST('null' AS BLOB);

-- name: used
-- The states whose keys ended runs (?1) had were used when those ended.
UPDATE flow_state SET used_at = max(used_at, r.finished_at) FROM (
    SELECT flow, order_key, max(finished_at) AS finished_at FROM runs
    WHERE seq IN (SELECT value FROM json_each(?1))
        AND order_key IS NOT NULL AND finished_at IS NOT NULL
    GROUP BY flow, order_key) AS r
WHERE flow_state.flow = r.flow AND flow_state.key = r.order_key;

-- name: is_unused
-- Whether there may be a state of a key that was not used since an instant (?1).
SELECT 1 FROM flow_state INDEXED BY flow_state_by_use WHERE key <> '' AND used_at < ?1 LIMIT 1;

-- name: in_use
-- Of the states not used since an instant (?1), those whose key an unfinished run has are in use (?2).
UPDATE flow_state SET used_at = ?2
WHERE key <> '' AND used_at < ?1 AND (flow, key) IN (
    SELECT r.flow, r.order_key FROM runs AS r INDEXED BY runs_by_state
    WHERE r.state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting')
        AND r.order_key IS NOT NULL
        AND r.flow IN (SELECT s.flow FROM flow_state AS s WHERE s.key <> '' AND s.used_at < ?1));

-- name: delete_unused
-- The states of keys not used since an instant (?1), at most so many (?2).
DELETE FROM flow_state WHERE (flow, key) IN (
    SELECT flow, key FROM flow_state INDEXED BY flow_state_by_use
    WHERE key <> '' AND used_at < ?1 ORDER BY used_at LIMIT ?2);

-- name: rename
-- The states of a flow (?1) get a new name (?2), where that has none of its own under the key.
UPDATE OR IGNORE flow_state SET flow = ?2 WHERE flow = ?1;

-- name: forget_steps
-- The steps of a run (?1) recorded at and after that of the state it has read (?2).
DELETE FROM steps WHERE run_seq = ?1
AND seq >= (SELECT seq FROM steps WHERE run_seq = ?1 AND key = ?2);
