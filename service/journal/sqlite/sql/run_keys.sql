-- The keys of unfinished runs by flow and rule: `place` is the id of the rule, such as `limit.2`.
-- What a run keeps itself is in `runs.keys`; this table finds the runs of a key. No triggers keep
-- it, since SQLite starts the program of a trigger for every row, also where its WHEN is false.

-- name: add
-- The keys of runs (?1, a JSON array), as far as they are unfinished.
INSERT OR IGNORE INTO run_keys (flow, place, key, run_seq, arrival)
SELECT r.flow, k.key, k.value, r.seq, r.arrival
FROM json_each(?1) AS given CROSS JOIN runs AS r ON r.seq = given.value, json_each(r.keys) AS k
WHERE k.value IS NOT NULL
    AND (r.state = 'queued' OR r.state = 'running' OR r.state = 'retrying' OR r.state = 'waiting'
        OR r.state = 'scheduled');

-- name: remove
-- The keys of runs (?1) under the flow and the keys they have now.
DELETE FROM run_keys WHERE (flow, place, key, run_seq) IN (
    SELECT r.flow, k.key, k.value, r.seq
    FROM json_each(?1) AS given CROSS JOIN runs AS r ON r.seq = given.value, json_each(r.keys) AS k
    WHERE k.value IS NOT NULL);

-- name: rename
-- The keys of the runs of a flow (?1) that have a new name (?2) by now.
UPDATE run_keys SET flow = ?2
WHERE flow = ?1 AND (SELECT r.flow FROM runs AS r WHERE r.seq = run_keys.run_seq) = ?2;

-- name: set_keys
-- Runs that do not run get these keys: an array (?1) of [seq, keys by rule].
UPDATE runs SET keys = given.value ->> 1 FROM json_each(?1) AS given
WHERE runs.seq = given.value ->> 0
    AND (+runs.state = 'queued' OR +runs.state = 'retrying' OR +runs.state = 'waiting'
        OR +runs.state = 'scheduled');

-- name: class_of_key
-- The class of the oldest unfinished run of an ordering key (?2) of a flow (?1).
SELECT r.priority FROM run_keys AS k CROSS JOIN runs AS r ON r.seq = k.run_seq
WHERE k.flow = ?1 AND k.place = 'order' AND k.key = ?2 ORDER BY k.run_seq LIMIT 1;
