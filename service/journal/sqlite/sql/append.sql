-- Accepting events: what is read and written beside the bulk inserts.

-- name: first_runs
-- The runs an event (?1) has started, those of replays excepted, and those of windows that it is in.
-- For one that was refused because another run was asked for the same first, it is that run.
SELECT iif(refused ->> '$.reason' = 'unique', refused ->> '$.run', id) FROM (
    SELECT seq, id, refused FROM runs WHERE event_seq = ?1 AND replay = 0
    UNION SELECT r.seq, r.id, r.refused
    FROM window_events AS m CROSS JOIN runs AS r ON r.window_seq = m.window_seq
    WHERE m.event_seq = ?1 AND r.replay = 0) ORDER BY seq;

-- name: add_decisions
-- Decisions (?2, a JSON array) about a stored event (?1), up to a number of occasions (?3).
INSERT INTO decisions (event_seq, ordinal, items)
SELECT ?1, coalesce(max(ordinal), 0) + 1, ?2 FROM decisions WHERE event_seq = ?1
HAVING coalesce(max(ordinal), 0) < ?3
    AND EXISTS (SELECT 1 FROM events WHERE seq = ?1);

-- name: last_seqs
-- The highest seqs ever given to an event and a run, the pruned ones included, and arrivals of runs.
SELECT
    max(coalesce((SELECT max(seq) FROM events), 0),
        coalesce((SELECT value FROM counters WHERE name = 'events'), 0)),
    max(coalesce((SELECT max(seq) FROM runs), 0),
        coalesce((SELECT value FROM counters WHERE name = 'runs'), 0));

-- name: note_arrival
-- A number (?1) is given to a run that has a seq already: no other run may get it.
INSERT INTO counters (name, value) VALUES ('runs', ?1)
ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value);

-- name: positions
-- The positions among (trigger, partition) pairs, a JSON array (?1).
SELECT json_group_array(json_array(p.trigger, p.partition, p.value))
FROM json_each(?1) AS k
CROSS JOIN positions AS p ON p.trigger = k.value ->> 0 AND p.partition = k.value ->> 1;

-- name: delete_position
-- A position of a trigger (?1) in a partition (?2).
DELETE FROM positions WHERE trigger = ?1 AND partition = ?2;
