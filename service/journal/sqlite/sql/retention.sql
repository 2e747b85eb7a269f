-- Retention: what may go is found by an index, so that pruning never scans a table. Each query
-- names its index, because the planner has no statistics and would walk all runs of a state.
--
-- What may go: ended at, event_seq, seq of the run (0 for an event), flow, dead; ended before an
-- instant (?1), at most so many (?2). An event whose after-run action is due keeps its runs: the
-- action depends on how they ended.

-- name: ended_runs
SELECT r.finished_at, r.event_seq, r.seq, r.flow, r.dead
FROM runs AS r INDEXED BY runs_ended CROSS JOIN events AS e ON e.seq = r.event_seq
WHERE (r.state = 'succeeded' OR r.state = 'cancelled' OR r.state = 'skipped')
    AND r.finished_at < ?1 AND e.after_run_action IS NOT 0
    AND (r.window_seq IS NULL OR NOT EXISTS (
        SELECT 1 FROM window_events AS m CROSS JOIN events AS o ON o.seq = m.event_seq
        WHERE m.window_seq = r.window_seq AND o.after_run_action = 0))
    ORDER BY r.finished_at LIMIT ?2;

-- name: failed_runs
-- A dead letter whose undo has failed stays until an operator has dealt with it.
SELECT r.finished_at, r.event_seq, r.seq, r.flow, r.dead
FROM runs AS r INDEXED BY runs_failed CROSS JOIN events AS e ON e.seq = r.event_seq
WHERE r.state = 'failed' AND NOT (r.dead = 1 AND r.undo IS 'failed')
    AND r.finished_at < ?1 AND e.after_run_action IS NOT 0
    AND (r.window_seq IS NULL OR NOT EXISTS (
        SELECT 1 FROM window_events AS m CROSS JOIN events AS o ON o.seq = m.event_seq
        WHERE m.window_seq = r.window_seq AND o.after_run_action = 0))
    ORDER BY r.finished_at LIMIT ?2;

-- name: unmatched_events
SELECT accepted_at, seq, 0, '', 0 FROM events INDEXED BY events_unmatched
WHERE unmatched = 1 AND accepted_at < ?1 AND after_run_action IS NOT 0 ORDER BY accepted_at LIMIT ?2;

-- name: awaited_events
-- Events without runs that others may still wait for: none since the oldest of these (?3).
SELECT accepted_at, seq, 0, '', 0 FROM events INDEXED BY events_kept_for_waits
WHERE unmatched = 2 AND accepted_at < min(?1, ?3) AND after_run_action IS NOT 0
ORDER BY accepted_at LIMIT ?2;

-- name: is_awaited
-- Whether any event is kept for runs that may wait for it.
SELECT 1 FROM events INDEXED BY events_kept_for_waits WHERE unmatched = 2 LIMIT 1;

-- name: oldest_unfinished
-- When the oldest unfinished run was queued; a bound (?1) if there is none.
SELECT coalesce(min(queued_at), ?1) FROM runs INDEXED BY runs_by_state
WHERE state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting');

-- name: without_runs
-- The events among these (?1) that have no run, and the names they are awaited under.
SELECT e.seq, e.awaited FROM events AS e
WHERE e.seq IN (SELECT value FROM json_each(?1))
    AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)
    AND NOT EXISTS (
        SELECT 1 FROM window_events AS m CROSS JOIN windows AS w ON w.seq = m.window_seq
        WHERE m.event_seq = e.seq AND (w.state = 'open'
            OR EXISTS (SELECT 1 FROM runs AS r WHERE r.window_seq = w.seq)));

-- name: keep_for_waits
-- Events (?1) that other runs may wait for: from now on with the age limit of an unmatched one.
UPDATE events SET unmatched = 2 WHERE seq IN (SELECT value FROM json_each(?1));

-- name: delete_steps
DELETE FROM steps WHERE run_seq IN (SELECT value FROM json_each(?1));

-- name: delete_answers
DELETE FROM approval_answers WHERE run_seq IN (SELECT value FROM json_each(?1));

-- name: delete_attempts
DELETE FROM attempts WHERE run_seq IN (SELECT value FROM json_each(?1));

-- name: delete_traces
DELETE FROM traced_runs WHERE run_seq IN (SELECT value FROM json_each(?1));

-- name: delete_runs
DELETE FROM runs WHERE seq IN (SELECT value FROM json_each(?1));

-- name: delete_decisions
DELETE FROM decisions WHERE event_seq IN (SELECT value FROM json_each(?1));

-- name: delete_events
DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?1));

-- name: keep_highest
-- The highest seqs, stored before rows are deleted: a seq must never be given twice.
INSERT INTO counters (name, value)
SELECT 'events', coalesce(max(seq), 0) FROM events WHERE true
UNION ALL SELECT 'runs', coalesce(max(seq), 0) FROM runs WHERE true
ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value);
