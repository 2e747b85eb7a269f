-- Giving events back to their source before any of their runs has begun.

-- name: backlog
-- The events of a trigger (?1) from the first that waits on: seq, name, and whether it waits, with
-- runs of these flows only (?2, a JSON array).
SELECT e.seq, coalesce(e.details ->> '$.extensions.kafkarecord', e.id), e.awaited IS NULL AND (
    SELECT min(r.state = 'queued' AND r.token = 0 AND r.replay = 0) = 1
        AND max(r.flow IN (SELECT value FROM json_each(?2))) = 1
    FROM runs AS r WHERE r.event_seq = e.seq)
    AND NOT EXISTS (SELECT 1 FROM window_events AS m WHERE m.event_seq = e.seq)
FROM events AS e
WHERE e.trigger = ?1 AND e.seq >= (
    SELECT min(event_seq) FROM runs INDEXED BY runs_by_state
    WHERE state = 'queued' AND flow IN (SELECT value FROM json_each(?2)) AND token = 0)
ORDER BY e.seq;

-- name: withdrawn
-- The runs of events (?1, a JSON array), without events that have a begun run by now: seq, seq of the
-- event, flow, keys, when it was accepted, id, and whether another run awaits it.
SELECT r.seq, r.event_seq, r.flow, r.keys, r.queued_at, r.id,
    EXISTS (SELECT 1 FROM waits AS w WHERE w.topic = 'run:' || r.id)
FROM json_each(?1) AS v JOIN runs AS r ON r.event_seq = v.value
WHERE NOT EXISTS (
    SELECT 1 FROM runs AS begun
    WHERE begun.event_seq = r.event_seq AND (begun.state != 'queued' OR begun.token != 0))
    AND NOT EXISTS (SELECT 1 FROM window_events AS m WHERE m.event_seq = r.event_seq);

-- name: under_way
-- Whether a run of these flows (?2), trigger (?1) and partitions (?3) is running or, if asked (?5),
-- about to: queued, or retrying and due by an instant (?4).
SELECT 1 FROM runs AS r INDEXED BY runs_by_state JOIN events AS e ON e.seq = r.event_seq
WHERE r.flow IN (SELECT value FROM json_each(?2)) AND e.trigger = ?1
    AND (r.state = 'running' OR (r.state = 'queued' AND ?5)
        OR (r.state = 'retrying' AND r.due_at <= ?4 AND ?5))
    AND e.details ->> '$.extensions.partition' IN (SELECT value FROM json_each(?3))
LIMIT 1;
