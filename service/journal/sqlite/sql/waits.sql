-- Waits: opened with a step, woken by what ends them, deleted with their run.

-- name: open
-- A wait of a run (?1) at a step (?2) for a topic (?3) of a shape (?4); the first event to look
-- at (?5), and the step that awaits the first of several (?6).
INSERT INTO waits (run_seq, key, topic, shape, woken, race) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (run_seq, key) DO UPDATE SET topic = excluded.topic, shape = excluded.shape,
    race = excluded.race, shared = NULL;

-- name: close
-- The wait of a run (?1) at a step (?2) that has a result.
DELETE FROM waits WHERE run_seq = ?1 AND key = ?2;

-- name: close_all
-- The waits of a run (?1) at steps (?2, a JSON array).
DELETE FROM waits WHERE run_seq = ?1 AND key IN (SELECT value FROM json_each(?2));

-- name: delete
-- All waits of runs (?1, a JSON array).
DELETE FROM waits WHERE run_seq IN (SELECT value FROM json_each(?1));

-- name: keep_only_children
-- The waits of a run (?1), except those for unfinished children of its own.
DELETE FROM waits WHERE run_seq = ?1 AND NOT (topic LIKE 'run:%' AND shared IS NULL AND EXISTS
    (SELECT 1 FROM runs AS r WHERE r.id = substr(topic, 5) AND r.finished_at IS NULL));

-- name: wake
-- The waits for topics (?1, a JSON array) get an event to look at (?2).
UPDATE waits SET woken = coalesce(woken, ?2), latest = ?2
WHERE topic IN (SELECT value FROM json_each(?1));

-- name: wake_ended
-- The waits for a topic (?1) are over: what they wait for came after the last event there is now. Of
-- those that are awaited together only the first to be over is woken.
UPDATE waits SET woken = coalesce(woken, (SELECT max(seq) FROM events), 1),
    latest = coalesce((SELECT max(seq) FROM events), 1)
WHERE topic = ?1 AND (race IS NULL OR NOT EXISTS (
    SELECT 1 FROM waits AS w WHERE w.run_seq = waits.run_seq AND w.race = waits.race
        AND w.shape IS NULL AND w.woken IS NOT NULL));

-- name: make_due
-- The waiting runs of these topics (?1) are due at an instant (?2), unless they are sooner.
UPDATE runs SET due_at = min(coalesce(due_at, ?2), ?2)
WHERE +state = 'waiting' AND seq IN (
    SELECT run_seq FROM waits WHERE topic IN (SELECT value FROM json_each(?1)));

-- name: looked
-- The last event that waits of a run (?1) looked at, by step (?2, a JSON object).
UPDATE waits SET
    woken = iif(latest > j.value, max(woken, j.value + 1), NULL),
    latest = iif(latest > j.value, latest, NULL)
FROM json_each(?2) AS j
WHERE run_seq = ?1 AND waits.key = j.key;

-- name: make_due_if_woken
-- A run (?1) is due at once (?3) if one of its waits (?2, by step) was woken meanwhile.
UPDATE runs SET due_at = ?3
WHERE seq = ?1 AND EXISTS (
    SELECT 1 FROM waits
    WHERE run_seq = ?1 AND woken IS NOT NULL AND key IN (SELECT key FROM json_each(?2)));

-- name: children
-- The unfinished children of its own that a run (?1) waits for.
SELECT r.seq, r.id FROM waits AS w JOIN runs AS r ON r.id = substr(w.topic, 5)
WHERE w.run_seq = ?1 AND w.topic LIKE 'run:%' AND w.shared IS NULL AND r.finished_at IS NULL;

-- name: children_at
-- The unfinished children of its own that a run (?1) waits for at steps (?2, a JSON array).
SELECT r.id FROM waits AS w JOIN runs AS r ON r.id = substr(w.topic, 5)
WHERE w.run_seq = ?1 AND w.key IN (SELECT value FROM json_each(?2)) AND w.topic LIKE 'run:%'
    AND w.shared IS NULL AND r.finished_at IS NULL;

-- name: share
-- The wait of a run (?1) at a step (?2) is now for a run that is the work of somebody else: its topic
-- (?3).
UPDATE waits SET topic = ?3, shared = 1, woken = NULL, latest = NULL WHERE run_seq = ?1 AND key = ?2;

-- name: approvals
-- The waits of a run (?1) for topics that begin so (?2), or only that of a step (?3).
SELECT key, answer FROM waits
WHERE run_seq = ?1 AND topic LIKE ?2 AND (?3 IS NULL OR key = ?3) ORDER BY key;

-- name: answer
-- An approver's answer (?3) to the wait of a run (?1) at a step (?2).
UPDATE waits SET answer = ?3 WHERE run_seq = ?1 AND key = ?2;

-- name: note_answer
-- Who has given the answer (?3) to the approval of a run (?1) at a step (?2), when (?4).
INSERT OR REPLACE INTO approval_answers (run_seq, key, at, approved, by, via) VALUES (?1, ?2, ?4,
    coalesce(json_extract(?3, '$.approved'), 0), coalesce(json_extract(?3, '$.by'), ''),
    coalesce(json_extract(?3, '$.via'), ''));

-- name: answers
-- Who has answered the approvals of a run (?1).
SELECT key, at, approved, by, via FROM approval_answers WHERE run_seq = ?1 ORDER BY at, key;

-- name: keys
-- The steps at which a run (?1) waits.
SELECT key FROM waits WHERE run_seq = ?1;
