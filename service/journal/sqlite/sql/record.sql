-- Steps and outcomes: what is written beside the bulk statements.

-- name: holds
-- Whether a run (?1) is still held under a token (?2).
SELECT 1 FROM runs WHERE seq = ?1 AND token = ?2 AND state = 'running';

-- name: flow
-- The flow of a run (?1) now: it may have been renamed since the claim.
SELECT flow FROM runs WHERE seq = ?1;

-- name: show_progress
-- A run (?1) makes progress: its count of consecutive crashes starts again.
UPDATE runs SET consecutive_crashes = 0 WHERE seq = ?1;

-- name: returned
-- What a called run (?2) returned, a pickle (?1).
UPDATE runs SET returned = ?1 WHERE seq = ?2;

-- name: undo
-- How the undo of a run (?1) went (?2).
UPDATE runs SET undo = ?2 WHERE seq = ?1;

-- name: supersede
-- The failed steps of a run (?1) among keys (?2, a JSON array) run again. So does a `first` of which
-- one wait has failed, with the waits that were dropped for it.
UPDATE steps SET superseded = 1
WHERE run_seq = ?1 AND key IN (SELECT value FROM json_each(?2))
    AND (state = 'failed' OR state = 'waiting' AND finished_at IS NOT NULL
        OR task = 'first' AND encoding = 'json' AND CAST(result AS TEXT) LIKE '{"which":%');

-- name: delete_step
-- A step (?2) of a run (?1).
DELETE FROM steps WHERE run_seq = ?1 AND key = ?2;

-- name: leave_items
-- The step (?2) of a task (?3) that says with which members of its window a run (?1) goes on (?5), since
-- an instant (?4).
INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at, encoding, result)
VALUES (?1, ?2, ?3, 'succeeded', 1, ?4, ?4, 'json', ?5);
