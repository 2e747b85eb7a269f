-- Operators' writes to single runs: cancel, retry, drop, replay, answer.

-- name: say_why
-- Why a run (?1) is cancelled (?2), and who cancels it (?3).
UPDATE runs SET reason = ?2, cancelled_by = ?3 WHERE seq = ?1;

-- name: cancel
-- A run (?1) ends as cancelled at an instant (?2).
UPDATE runs SET state = 'cancelled', finished_at = ?2 WHERE seq = ?1;

-- name: queue
-- A run (?1) is queued at an instant (?2).
UPDATE runs SET state = 'queued', due_at = ?2, priority = coalesce(priority, 2) WHERE seq = ?1;

-- name: count_attempt
-- The attempt of a run (?1) that a cancel ends.
UPDATE runs SET attempts = attempts + 1 WHERE seq = ?1;

-- name: record_failure
-- The step (?2) that says that a run (?1) has failed, at an instant (?3), with an error (?4).
INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at, encoding, error)
VALUES (?1, ?2, ?2, 'failed', 1, ?3, ?3, 'json', ?4) ON CONFLICT DO NOTHING;

-- name: delete_waiting_steps
-- The open waits of a run (?1) start again.
DELETE FROM steps WHERE run_seq = ?1 AND state = 'waiting' AND finished_at IS NULL;

-- name: queue_again
-- An ended run (?1) is queued as if it were new, at an instant (?2).
UPDATE runs SET state = 'queued', priority = coalesce(priority, 2), attempts = 0, dead = 0, consecutive_crashes = 0, due_at = ?2,
    started_at = NULL, finished_at = NULL, result = NULL, returned = NULL, error = NULL,
    reason = NULL, undo = NULL, cancelled_by = NULL, refused = NULL
WHERE seq = ?1;

-- name: arrive
-- A run (?1) of an ordering key is queued again: behind all others by a number (?2), or in its place
-- without one; in the class (?3) of the others of its key, if there are any.
UPDATE runs SET arrival = coalesce(?2, arrival), priority = coalesce(?3, priority) WHERE seq = ?1;

-- name: try_step_now
-- The step of a run (?1) in a state (?2) that waits for its next try has it now.
UPDATE steps SET result = NULL
WHERE run_seq = ?1 AND state = 'retrying' AND ?2 IN ('retrying', 'waiting');

-- name: make_due
-- A run (?1) is due at an instant (?2). A new token makes the steps in the resume cache stale.
UPDATE runs SET due_at = ?2, token = token + 1 WHERE seq = ?1;

-- name: undo_steps_again
-- The failed undo steps of a run (?1) run again.
UPDATE steps SET superseded = 1
WHERE run_seq = ?1 AND key >= '~undo' AND key < '~undp' AND state = 'failed';

-- name: count_deaths
-- The tries of the step (?2) that marks a run (?1) as failed: one more than the steps that failed
-- because the process died, by the type of their error (?3). chr(127) follows '~'.
UPDATE steps SET tries = 1 + (
    SELECT count(*) FROM steps AS s
    WHERE s.run_seq = ?1 AND s.key > '~' AND s.key < char(127) AND s.key <> ?2
        AND s.superseded = 0 AND s.error ->> '$.type' = ?3)
WHERE run_seq = ?1 AND key = ?2;

-- name: queue_undo
-- A run (?1) is queued to be undone further, at an instant (?2); it stays a dead letter.
UPDATE runs SET state = 'queued', priority = coalesce(priority, 2), dead = 1, consecutive_crashes = 0, due_at = ?2, started_at = NULL,
    finished_at = NULL
WHERE seq = ?1;

-- name: delete_old_links
-- Used links that have expired by an instant (?1).
DELETE FROM used_links WHERE until < ?1;

-- name: use_link
-- A link, by its digest (?1), is used; it would have expired at an instant (?2).
INSERT INTO used_links (digest, until) VALUES (?1, ?2) ON CONFLICT DO NOTHING;

-- name: drop
-- A run (?1) is no dead letter any more.
UPDATE runs SET dead = 0 WHERE seq = ?1;

-- name: next_replay
-- The number of the next replay of an event (?1); no row when there is no such event.
SELECT coalesce(max(r.replay), 0) + 1
FROM events AS e LEFT JOIN runs AS r ON r.event_seq = e.seq WHERE e.seq = ?1 GROUP BY e.seq;

-- name: match
-- An event (?1) has a run now.
UPDATE events SET unmatched = NULL WHERE seq = ?1;

-- name: is_undone
-- Whether steps of a run (?1) were undone.
SELECT 1 FROM steps WHERE run_seq = ?1 AND key >= '~undo' AND key < '~undp';

-- name: delete_compensation
-- The steps of a run (?1) that say it has failed and how it is undone. chr(127) follows '~'.
DELETE FROM steps WHERE run_seq = ?1 AND key >= '~' AND key < char(127);

-- name: has_retrying_step
-- Whether a step of a run (?1) waits for its next try.
SELECT 1 FROM steps WHERE run_seq = ?1 AND state = 'retrying';

-- name: has_key
-- Whether a run (?1) has a step with a key (?2).
SELECT 1 FROM steps WHERE run_seq = ?1 AND key = ?2;

-- name: has_task
-- Whether a run (?1) has a step of a task (?2).
SELECT 1 FROM steps WHERE run_seq = ?1 AND task = ?2;

-- name: first_step
-- The step of a run (?1) with a key, or the first of a task (both ?2); or what lies inside it, if that
-- was recorded before: a wait that began again has a new row.
SELECT min(seq) FROM steps
WHERE run_seq = ?1 AND (key = ?2 OR key >= ?2 || '[' AND key < ?2 || '\')
UNION ALL SELECT min(inside.seq) FROM steps AS s JOIN steps AS inside ON inside.run_seq = s.run_seq
    AND (inside.key = s.key OR inside.key >= s.key || '[' AND inside.key < s.key || '\')
WHERE s.run_seq = ?1 AND s.task = ?2;

-- name: race_of
-- The first step of those that a run (?1) awaited together with one (?2, its seq): itself if that is
-- alone. The step `first` names the others.
SELECT coalesce(min(s.seq), ?2) FROM steps AS f JOIN steps AS s ON s.run_seq = f.run_seq
    AND (s.seq = f.seq OR s.key IN (SELECT value FROM json_each(CAST(f.result AS TEXT), '$.waits')))
WHERE f.run_seq = ?1 AND f.task = 'first' AND f.encoding = 'json' AND f.result IS NOT NULL
    AND (f.seq = ?2 OR (SELECT key FROM steps WHERE seq = ?2)
        IN (SELECT value FROM json_each(CAST(f.result AS TEXT), '$.waits')));

-- name: delete_steps_from
-- The steps of a run (?1) recorded at and after one (?2).
DELETE FROM steps WHERE run_seq = ?1 AND seq >= ?2;

-- name: record_action
-- The after-run action of an event (?1) is done; its details change (?2) to these (?3).
UPDATE events SET after_run_action = 1, details = iif(?2, ?3, details) WHERE seq = ?1;

-- name: pause
-- A name (?1) is paused from an instant (?2) to another (?3), with a note (?4), by somebody (?5). One
-- that is paused already stays so; a pause that has ended counts no more.
INSERT INTO paused (name, since, until, note, by) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (name) DO UPDATE SET
    since = iif(until <= excluded.since, excluded.since, since),
    until = excluded.until, note = excluded.note, by = excluded.by;

-- name: end_pauses
-- The pauses that end by an instant (?1).
DELETE FROM paused WHERE until <= ?1 RETURNING name, since, until, note, by;

-- name: resume
-- A name (?1) is not paused any more.
DELETE FROM paused WHERE name = ?1;

-- name: override
-- A limit (?1) that an operator has set to a count (?2), from an instant (?3) to another (?4), with a
-- note (?5), by somebody (?6).
INSERT INTO limit_overrides (name, count, since, until, note, by) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (name) DO UPDATE SET count = excluded.count, since = excluded.since,
    until = excluded.until, note = excluded.note, by = excluded.by;

-- name: reset_limit
-- A limit (?1) is what the flow file says again.
DELETE FROM limit_overrides WHERE name = ?1;

-- name: end_overrides
-- The limits that end by an instant (?1).
DELETE FROM limit_overrides WHERE until <= ?1 RETURNING name, count, since, until, note, by;

-- name: rename_overrides
-- The limits of a flow (?1) that are set are those of its new name (?2), unless that has its own.
UPDATE OR IGNORE limit_overrides SET name = 'flow:' || ?2 || substr(name, length('flow:' || ?1) + 1)
WHERE substr(name, 1, length('flow:' || ?1 || '/')) = 'flow:' || ?1 || '/';

-- name: forget_overrides
-- No limit of a flow (?1) is set.
DELETE FROM limit_overrides
WHERE substr(name, 1, length('flow:' || ?1 || '/')) = 'flow:' || ?1 || '/';

-- name: rename_pause
-- The pause of a flow (?1) is that of its new name (?2), unless that has its own.
UPDATE OR IGNORE paused SET name = 'flow:' || ?2 WHERE name = 'flow:' || ?1;

-- name: last_run
-- The last run there is.
SELECT coalesce(max(seq), 0) FROM runs;

-- name: not_begun
-- Queued runs of a flow (?1) that were never claimed, after a seq (?2) and up to another (?3), at most
-- so many (?4).
SELECT seq, id FROM runs INDEXED BY runs_by_state
WHERE state = 'queued' AND flow = ?1 AND seq > ?2 AND seq <= ?3 AND token = 0
ORDER BY seq LIMIT ?4;

-- name: probe
-- A write that tells whether writing works.
INSERT INTO counters (name, value) VALUES ('probe', 1)
ON CONFLICT (name) DO UPDATE SET value = value + 1;
