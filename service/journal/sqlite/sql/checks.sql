-- The checks of `turnout doctor`: each statement finds what should not be there.

-- name: runs_without_event
SELECT id FROM runs WHERE event_seq NOT IN (SELECT seq FROM events);

-- name: events_without_run
SELECT id FROM events AS e
WHERE decisions IS NULL AND unmatched IS NULL
    AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)
    AND NOT EXISTS (SELECT 1 FROM window_events AS m WHERE m.event_seq = e.seq)
    AND NOT EXISTS (SELECT 1 FROM decisions AS d WHERE d.event_seq = e.seq);

-- name: runs_made_twice
SELECT group_concat(id, ' = ') FROM runs GROUP BY event_seq, flow, replay HAVING count(*) > 1;

-- name: deliveries_stored_twice
SELECT group_concat(event_seq, ' = ') FROM dedupe GROUP BY key HAVING count(*) > 1;

-- name: events_nobody_finds
SELECT id FROM events AS e
WHERE by_id IS NOT 1 AND NOT EXISTS (SELECT 1 FROM dedupe AS d WHERE d.event_seq = e.seq);

-- name: steps_recorded_twice
SELECT key FROM steps GROUP BY run_seq, key HAVING count(*) > 1;

-- name: steps_without_run
SELECT key FROM steps WHERE run_seq NOT IN (SELECT seq FROM runs);

-- name: waits_without_run
SELECT w.key FROM waits AS w LEFT JOIN runs AS r ON r.seq = w.run_seq
WHERE r.seq IS NULL OR r.state IN ('cancelled', 'failed', 'skipped', 'succeeded');

-- name: unknown_states
SELECT id FROM runs
WHERE state NOT IN ('scheduled', 'queued', 'running', 'retrying', 'waiting',
    'succeeded', 'failed', 'cancelled', 'skipped');

-- name: ends_that_do_not_fit
SELECT id FROM runs
WHERE (finished_at IS NOT NULL) <> (state IN ('cancelled', 'failed', 'skipped', 'succeeded'))
    OR (dead = 1 AND state <> 'failed' AND finished_at IS NOT NULL);

-- name: runs_not_found_by_keys
SELECT coalesce((SELECT id FROM runs WHERE seq = run_seq), run_seq) FROM (
    SELECT * FROM (
        SELECT r.flow, k.key, k.value, r.seq AS run_seq FROM runs AS r, json_each(r.keys) AS k
        WHERE k.value IS NOT NULL
            AND r.state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting')
        EXCEPT SELECT flow, place, key, run_seq FROM run_keys)
    UNION SELECT * FROM (
        SELECT flow, place, key, run_seq FROM run_keys
        EXCEPT SELECT r.flow, k.key, k.value, r.seq FROM runs AS r, json_each(r.keys) AS k
        WHERE r.state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting')));

-- name: windows_that_do_not_fit
SELECT id FROM windows AS w
WHERE (state = 'open' OR state = 'fired')
        AND members <> (SELECT count(*) FROM window_events AS m WHERE m.window_seq = w.seq)
    OR state = 'fired' AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.window_seq = w.seq)
    OR EXISTS (SELECT 1 FROM window_events AS m WHERE m.window_seq = w.seq
        AND NOT EXISTS (SELECT 1 FROM events AS e WHERE e.seq = m.event_seq));

-- name: runs_without_window
SELECT id FROM runs AS r INDEXED BY runs_by_window
WHERE r.window_seq IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM windows AS w WHERE w.seq = r.window_seq
        AND (w.state = 'open' OR r.state <> 'scheduled'));
