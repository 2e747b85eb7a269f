-- The spans of runs that are still to be sent.

-- name: owe
-- The span of a run (?1) is to be sent once it has ended, again if it was sent before.
INSERT INTO traced_runs (run_seq) VALUES (?1)
ON CONFLICT (run_seq) DO UPDATE SET sent = 0 WHERE sent = 1;

-- name: owed_by
-- Those of these runs (?1) whose span is owed.
SELECT t.run_seq FROM json_each(?1) AS given CROSS JOIN traced_runs AS t ON t.run_seq = given.value
WHERE t.sent = 0;

-- name: owed
-- The runs that have ended and whose span is owed, `after` one (?1), at most so many (?2), by seq.
SELECT t.run_seq
FROM traced_runs AS t INDEXED BY traced_runs_owed CROSS JOIN runs AS r ON r.seq = t.run_seq
WHERE t.sent = 0 AND t.run_seq > ?1 AND r.finished_at IS NOT NULL
ORDER BY t.run_seq LIMIT ?2;

-- name: ends
-- How often the span of a run (?1) was sent.
SELECT ends FROM traced_runs WHERE run_seq = ?1;

-- name: members
-- The events of a window (?1), in the order in which they joined, at most so many (?2).
SELECT event_seq FROM window_events WHERE window_seq = ?1 ORDER BY position LIMIT ?2;

-- name: sent
-- The span of a run (?1) that ended at an instant (?2) was sent. Tried again since, it owes another.
UPDATE traced_runs SET ends = ends + 1, sent = (
    SELECT finished_at IS ?2 FROM runs WHERE seq = ?1)
WHERE run_seq = ?1 AND sent = 0;
