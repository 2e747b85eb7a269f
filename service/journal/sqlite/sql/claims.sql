-- Claiming runs, and what their earlier attempts left. Many rows come as one JSON array, through
-- one step of the database: the driver releases the interpreter lock at every row.

-- name: claim_untouched
-- Runs (?1, a JSON array) that were never claimed, at an instant (?2).
UPDATE runs SET state = 'running', token = 1, started_at = ?2, claimed_after = ?2 - queued_at
WHERE seq IN (SELECT value FROM json_each(?1)) AND +state = 'queued' AND token = 0;

-- name: claimed_first
-- Which of these runs (?1) were claimed so.
SELECT json_group_array(seq) FROM runs
WHERE token = 1 AND +state = 'running' AND seq IN (SELECT value FROM json_each(?1));

-- name: claim
-- Runs (?1) that `claimable` has found, at an instant (?2).
UPDATE runs SET state = 'running', token = token + 1, started_at = ?2,
    claimed_after = iif(token = 0, ?2 - queued_at, claimed_after)
WHERE seq IN (SELECT value FROM json_each(?1));

-- name: body
-- A body too large for one array, of an event (?1).
SELECT body FROM events WHERE seq = ?1;

-- name: result
-- A result too large for one array, of a step (?1).
SELECT result FROM steps WHERE seq = ?1;

-- name: unwoken
-- The keys of the waits of runs (?1) that nothing has woken, by run.
SELECT json_group_array(json_array(run_seq, json(keys))) FROM (
    SELECT run_seq, json_group_array(key) AS keys FROM waits
    WHERE run_seq IN (SELECT value FROM json_each(?1)) AND woken IS NULL GROUP BY run_seq);

-- name: ended_children
-- The children of runs (?1) that have ended, results of at most so many bytes (?2).
SELECT json_group_array(json_array(w.run_seq, w.key, r.id, r.state,
    iif(r.result IS NULL, NULL, hex(r.result)),
    iif(r.returned IS NULL, NULL, hex(r.returned)), r.error, r.refused))
FROM waits AS w CROSS JOIN runs AS r ON r.id = substr(w.topic, 5)
WHERE w.run_seq IN (SELECT value FROM json_each(?1)) AND w.topic LIKE 'run:%'
    AND w.woken IS NOT NULL AND r.finished_at IS NOT NULL
    AND coalesce(length(r.result), 0) + coalesce(length(r.returned), 0) <= ?2;
