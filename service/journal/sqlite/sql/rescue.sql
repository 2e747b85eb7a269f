-- Rescue at start, and runs whose flow is gone or renamed.

-- name: given_up
-- Runs found running that have killed the process so many times in a row (?1) with this one.
SELECT seq, id FROM runs WHERE state = 'running' AND consecutive_crashes + 1 >= ?1;

-- name: mark_failed
-- The step (?2) that says that a run (?1) has failed, at an instant (?3), with an error (?4). If
-- it is there, the work left to do was given up once more.
INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at, encoding, error)
VALUES (?1, ?2, ?2, 'failed', 1, ?3, ?3, 'json', ?4)
ON CONFLICT (run_seq, key) DO UPDATE SET tries = tries + 1;

-- name: requeue
-- Runs found running, at an instant (?1). At the bound (?2) the undo starts isolated (?3).
UPDATE runs SET
    state = 'queued',
    consecutive_crashes = iif(consecutive_crashes + 1 >= ?2, ?3, consecutive_crashes + 1),
    crashes = crashes + 1,
    due_at = ?1
WHERE state = 'running';

-- name: orphans_that_failed
-- The queued runs of a flow (?2) that have failed, by the key of that step (?1), and whether
-- they have registered undos, by their task (?3).
SELECT r.seq, r.id, s.error, r.dead, r.undo IS 'failed',
    EXISTS (SELECT 1 FROM steps AS u WHERE u.run_seq = r.seq AND u.task = ?3)
FROM runs AS r INDEXED BY runs_by_state
CROSS JOIN steps AS s ON s.run_seq = r.seq AND s.key = ?1
WHERE r.state = 'queued' AND r.flow = ?2;

-- name: not_running
-- A run (?1) that waits to start or to go on: id, flow, state, whether it is a dead letter, whether
-- its undo has failed, and whether it has registered undos, by their task (?2).
SELECT r.id, r.flow, r.state, r.dead, r.undo IS 'failed',
    EXISTS (SELECT 1 FROM steps AS u WHERE u.run_seq = r.seq AND u.task = ?2)
FROM runs AS r
WHERE r.seq = ?1 AND (r.state = 'queued' OR r.state = 'retrying' OR r.state = 'waiting'
    OR r.state = 'scheduled');

-- name: fail
-- A run (?1) fails at an instant (?2) with an error (?3); its undos (?4) are left.
UPDATE runs SET state = 'failed', dead = 1, finished_at = ?2, error = ?3,
    undo = iif(?4, 'failed', undo)
WHERE seq = ?1;

-- name: supersede_step_of
-- So that a retry runs the step an error (?2) names again, as after any outcome of a run (?1).
UPDATE steps SET superseded = 1
WHERE run_seq = ?1 AND state = 'failed' AND key = json_extract(?2, '$.step');

-- name: rename_dead
-- The dead letters of a flow (?1) get a new name (?2), unless the event has a run of that name.
UPDATE OR IGNORE runs SET flow = ?2 WHERE flow = ?1 AND dead = 1;

-- name: rename_unfinished
-- The unfinished runs of a flow (?1) get a new name (?2), unless the event has a run of that name.
UPDATE OR IGNORE runs SET flow = ?2
WHERE flow = ?1 AND state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting');

-- name: dead_letters
-- How many dead letters a flow (?1) has, and how many of them are not undone.
SELECT count(*), coalesce(sum(undo IS 'failed'), 0) FROM runs WHERE dead = 1 AND flow = ?1;
