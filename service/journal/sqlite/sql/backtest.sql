-- What happened to a flow in a period: its events and runs, for a backtest.

-- name: seq_at
-- The first event at or after a seq (?1), and when it was accepted.
SELECT seq, accepted_at FROM events WHERE seq >= ?1 ORDER BY seq LIMIT 1;

-- name: last_seq
-- The last event there is.
SELECT coalesce(max(seq), 0) FROM events;

-- name: runs_beside
-- The runs of a flow (?1) that were accepted before a period (?2 to ?4) and unfinished then, or accepted
-- since an instant (?3); and within it replays, and runs that a window of another flow has made. With the
-- event that a run has its keys from.
SELECT r.seq, iif(w.settings ->> 'keep' = 'last',
    (SELECT m.event_seq FROM window_events AS m WHERE m.window_seq = w.seq ORDER BY m.position DESC LIMIT 1),
    r.event_seq)
FROM runs AS r INDEXED BY runs_by_state LEFT JOIN windows AS w ON w.seq = r.window_seq
WHERE r.flow = ?1 AND r.state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting',
        'succeeded', 'failed', 'cancelled', 'skipped')
    AND r.queued_at < ?4 AND r.refused IS NULL AND NOT (r.dead = 1 AND r.started_at IS NULL)
    AND coalesce(w.state, '') <> 'open' AND coalesce(w.state, '') <> 'dropped'
    AND iif(r.queued_at < ?2, r.finished_at IS NULL OR r.finished_at >= ?2 OR r.queued_at >= ?3,
        r.replay > 0 OR (w.flow IS NOT NULL AND w.flow <> ?1))
ORDER BY r.seq;

-- name: past_members
-- The members of a window (?1) that came before an instant (?2), without an event of this type (?3).
SELECT e.seq, e.id, e.trigger, m.part, m.at, m.bytes, m.keys, m.order_key, m.priority
FROM window_events AS m CROSS JOIN events AS e ON e.seq = m.event_seq
WHERE m.window_seq = ?1 AND m.at < ?2 AND NOT (e.type = ?3 AND e.source = 'turnout')
ORDER BY m.position;

-- name: typical_microseconds
-- How long the last 1,000 runs of a flow (?1) took that have succeeded, since an instant (?2): the
-- median.
SELECT took FROM (
    SELECT took, row_number() OVER (ORDER BY took) AS place, count(*) OVER () AS number FROM (
        SELECT finished_at - queued_at AS took FROM runs INDEXED BY runs_by_state
        WHERE state = 'succeeded' AND flow = ?1 AND queued_at >= ?2 ORDER BY seq DESC LIMIT 1000))
WHERE place = (number + 1) / 2;
