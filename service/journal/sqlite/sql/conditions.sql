-- What is asked about a new run before it is stored: unique, mode, the bound.

-- name: first_unfinished
-- The first unfinished run of a flow (?1) with a unique key (?2).
SELECT r.seq, r.id FROM run_keys AS k CROSS JOIN runs AS r ON r.seq = k.run_seq
WHERE k.flow = ?1 AND k.place = 'unique' AND k.key = ?2 ORDER BY k.run_seq LIMIT 1;

-- name: first_within
-- The run of a flow (?1) that has a unique key (?2) at an instant (?3), if it was accepted so short
-- a time (?4) before, or after by a clock that has been set back. One that has failed, was cancelled
-- or refused has given it up.
SELECT u.run_seq, u.run_id FROM unique_keys AS u LEFT JOIN runs AS r ON r.seq = u.run_seq
WHERE u.flow = ?1 AND u.key = ?2 AND abs(?3 - u.accepted_at) < ?4
    AND NOT coalesce(r.state = 'failed' OR r.state = 'cancelled' OR r.refused IS NOT NULL, 0);

-- name: hold_unique
-- A run of a flow (?1) has a unique key (?2): its seq (?3), its id (?4), since when (?5) and until
-- when (?6).
INSERT INTO unique_keys (flow, key, run_seq, run_id, accepted_at, until)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (flow, key) DO UPDATE SET run_seq = excluded.run_seq, run_id = excluded.run_id,
    accepted_at = excluded.accepted_at, until = excluded.until;

-- name: release_unique
-- Runs (?1, a JSON array) that are deleted give up their unique keys, unless they have succeeded.
DELETE FROM unique_keys WHERE (flow, key, run_seq) IN (
    SELECT r.flow, r.keys ->> '$.unique', r.seq
    FROM json_each(?1) AS v CROSS JOIN runs AS r ON r.seq = v.value
    WHERE r.keys IS NOT NULL AND (r.state <> 'succeeded' AND r.state <> 'skipped'
        OR r.refused IS NOT NULL));

-- name: rename_unique
-- The unique keys of a flow (?1) get its new name (?2).
UPDATE OR REPLACE unique_keys SET flow = ?2 WHERE flow = ?1;

-- name: end_unique
-- Unique keys whose time has passed at an instant (?1), at most ?2.
DELETE FROM unique_keys WHERE (flow, key) IN (
    SELECT flow, key FROM unique_keys WHERE until <= ?1 ORDER BY until LIMIT ?2);

-- name: of_mode
-- The unfinished runs of a flow (?1) with a key of its mode (?2), the oldest first: seq, id, the
-- seq of the event, and whether the run only waits for its first start. One that an operator has
-- queued again waits too; one that is being undone does not.
SELECT r.seq, r.id, r.event_seq, r.state = 'queued' AND r.started_at IS NULL AND r.dead = 0
FROM run_keys AS k CROSS JOIN runs AS r ON r.seq = k.run_seq
WHERE k.flow = ?1 AND k.place = 'mode' AND k.key = ?2 AND +r.state <> 'scheduled'
ORDER BY k.run_seq;

-- name: cancelled_by
-- The unfinished runs of a flow (?1) that an event cancels, by their key (?2), the oldest first.
SELECT r.id FROM run_keys AS k CROSS JOIN runs AS r ON r.seq = k.run_seq
WHERE k.flow = ?1 AND k.place = 'cancel_on' AND k.key = ?2 ORDER BY k.run_seq;

-- name: waits_for
-- Whether a run (?2, its id) is another one (?1), or awaits it, directly or through others.
WITH RECURSIVE awaiting (seq) AS (
    SELECT ?1 UNION
    SELECT w.run_seq FROM awaiting AS a JOIN runs AS r ON r.seq = a.seq
    JOIN waits AS w ON w.topic = 'run:' || r.id)
SELECT 1 FROM awaiting AS a JOIN runs AS r ON r.seq = a.seq WHERE r.id = ?2;

-- name: count_queued
-- How many runs of a flow (?1) are queued, up to a number (?2).
SELECT count(*) FROM (
    SELECT 1 FROM runs INDEXED BY runs_by_state WHERE state = 'queued' AND flow = ?1 LIMIT ?2);

-- name: is_paused
-- Whether a flow (?1), or everything, is paused at an instant (?2).
SELECT 1 FROM paused WHERE (name = 'flow:' || ?1 OR name = '*') AND (until IS NULL OR until > ?2)
LIMIT 1;

-- name: force
-- A new run (?1) was started past the mode of its flow.
UPDATE runs SET forced = 1 WHERE seq = ?1;

-- name: force_again
-- A run (?1) that is queued again is started past the mode of its flow: it has no key there.
UPDATE runs SET forced = 1, keys = json_set(keys, '$.mode', NULL) WHERE seq = ?1;

-- name: refuse
-- A new run (?1) was refused for a reason (?2), by a rule (?3).
UPDATE runs SET reason = ?2, refused = ?3 WHERE seq = ?1;

-- name: event_of
-- The seq of the event of a run (?1).
SELECT event_seq FROM runs WHERE seq = ?1;

-- name: skip
-- A queued run (?1) ends as skipped at an instant (?2), for a reason (?3), by a rule (?4).
UPDATE runs SET state = 'skipped', finished_at = ?2, reason = ?3, refused = ?4
WHERE seq = ?1 AND state = 'queued';

-- name: await_instead
-- The step of a run (?1, ?2) waits for another run than the one it has made: its id (?3), and the
-- note for people (?4).
UPDATE steps SET origin = ?3, result = ?4 WHERE run_seq = ?1 AND key = ?2;

-- name: is_finished
-- Whether a run (?1, its id) has ended, or is gone.
SELECT NOT EXISTS (SELECT 1 FROM runs WHERE id = ?1 AND finished_at IS NULL);
