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

-- name: unused
-- Up to so many (?2) states of keys not used since an instant (?1), the oldest first, and whether an
-- unfinished run has the key. Runs that hold a slot are few; of all others an index is asked.
SELECT s.flow, s.key,
    EXISTS (SELECT 1 FROM runs AS r INDEXED BY runs_by_order
        WHERE r.flow = s.flow AND r.order_key = s.key AND r.state = 'queued')
    OR EXISTS (SELECT 1 FROM runs AS r INDEXED BY runs_suspended_by_order
        WHERE r.flow = s.flow AND r.order_key = s.key
            AND (r.state = 'scheduled' OR r.state = 'retrying' OR r.state = 'waiting'))
    OR (s.flow, s.key) IN (SELECT r.flow, r.order_key FROM runs AS r INDEXED BY runs_by_state
        WHERE r.state = 'running' AND r.order_key IS NOT NULL)
FROM flow_state AS s INDEXED BY flow_state_by_use
WHERE s.key <> '' AND s.used_at < ?1 ORDER BY s.used_at LIMIT ?2;

-- name: in_use
-- States, by flow and key (?1), are in use at an instant (?2).
UPDATE flow_state SET used_at = ?2
WHERE (flow, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1));

-- name: delete_unused
-- States, by flow and key (?1), are deleted.
DELETE FROM flow_state
WHERE (flow, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1));

-- name: rename
-- The states of a flow (?1) get a new name (?2), where that has none of its own under the key.
UPDATE OR IGNORE flow_state SET flow = ?2 WHERE flow = ?1;

-- name: forget_steps
-- The steps of a run (?1) recorded at and after that of the state it has read (?2).
DELETE FROM steps WHERE run_seq = ?1
AND seq >= (SELECT seq FROM steps WHERE run_seq = ?1 AND key = ?2);
