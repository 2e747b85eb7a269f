-- What flows keep between runs.

-- name: read
-- The state of a flow (?1) under a key (?2).
SELECT flow, key, version, value, run_id, changed_at FROM flow_state WHERE flow = ?1 AND key = ?2;

-- name: listed
-- All states, or those of a flow (?1), up to a bound (?2).
SELECT flow, key, version, value, run_id, changed_at FROM flow_state
WHERE ?1 IS NULL OR flow = ?1 ORDER BY flow, key LIMIT ?2;

-- name: first
-- A flow (?1) keeps a value (?3) under a key (?2) for the first time, from a run (?4) at an instant
-- (?5); nothing if it does already.
INSERT INTO flow_state (flow, key, version, value, run_id, changed_at)
VALUES (?1, ?2, 1, ?3, ?4, ?5) ON CONFLICT DO NOTHING;

-- name: next
-- A flow (?1) keeps another value (?3) under a key (?2), from a run (?4) at an instant (?5) that has
-- read a version (?6); nothing if that is no longer the one there is.
UPDATE flow_state SET version = version + 1, value = ?3, run_id = ?4, changed_at = ?5
WHERE flow = ?1 AND key = ?2 AND version = ?6;

-- name: rename
-- The states of a flow (?1) get a new name (?2), where that has none of its own under the key.
UPDATE OR IGNORE flow_state SET flow = ?2 WHERE flow = ?1;

-- name: forget_steps
-- The steps of a run (?1) recorded at and after that of the state it has read (?2).
DELETE FROM steps WHERE run_seq = ?1
AND seq >= (SELECT seq FROM steps WHERE run_seq = ?1 AND key = ?2);
