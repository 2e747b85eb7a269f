-- Reads. Many rows come as one JSON array, through one step of the database: the driver releases
-- the interpreter lock at every row, and a busy event loop then keeps it for milliseconds.

-- name: child
-- How a run (?1, its id) ended.
SELECT state, result, error, returned, refused FROM runs WHERE id = ?1;

-- name: runs_that_begin
-- The ids of runs from one text (?1) up to another (?2), at most so many (?3).
SELECT id FROM runs WHERE id >= ?1 AND id < ?2 LIMIT ?3;

-- name: runs_that_look
-- The ids, among those of the newest runs (so many: ?4), that begin (?1) and end (?2) so, at most
-- so many (?3).
SELECT id FROM (SELECT id FROM runs ORDER BY id DESC LIMIT ?4)
WHERE substr(id, 1, length(?1)) = ?1 AND (?2 = '' OR substr(id, -length(?2)) = ?2) LIMIT ?3;

-- name: events_that_look
-- The ids, among those of the newest events (so many: ?4), that begin (?1) and end (?2) so, at most
-- so many (?3).
SELECT DISTINCT id FROM (SELECT id FROM events ORDER BY seq DESC LIMIT ?4)
WHERE substr(id, 1, length(?1)) = ?1 AND (?2 = '' OR substr(id, -length(?2)) = ?2) LIMIT ?3;

-- name: minted_events_that_end
-- Of the newest events (so many: ?3) the ids that turnout has made and that begin or end so (?1), at
-- most so many (?2).
SELECT id FROM (SELECT id FROM events ORDER BY seq DESC LIMIT ?3)
WHERE length(id) = 36 AND substr(id, 15, 1) = '7'
    AND (substr(id, -length(?1)) = ?1 OR substr(id, 1, length(?1)) = ?1) LIMIT ?2;

-- name: waits
-- The open waits of a run (?1), or only that of a step (?2).
SELECT key, topic, woken, latest, answer FROM waits
WHERE run_seq = ?1 AND (?2 IS NULL OR key = ?2) ORDER BY key;

-- name: position_in_flow
-- How many queued runs of a flow (?1) are there up to an arrival (?2), at most so many (?3). Those that
-- have come again, and later than that, are taken off: the index of the others has them by their seq.
WITH later (number) AS (
    SELECT count(*) FROM runs INDEXED BY runs_by_arrival
    WHERE state = 'queued' AND flow = ?1 AND arrival > ?2 AND seq <= ?2)
SELECT min(?3, count(*) - (SELECT number FROM later)) FROM (
    SELECT 1 FROM runs INDEXED BY runs_by_state
    WHERE state = 'queued' AND flow = ?1 AND seq <= ?2 LIMIT ?3 + (SELECT number FROM later));

-- name: position_in_order
-- How many queued runs of a flow (?1) and an ordering key (?4) are there up to an arrival (?2).
SELECT count(*) FROM (
    SELECT 1 FROM runs INDEXED BY runs_by_order
    WHERE state = 'queued' AND flow = ?1 AND order_key = ?4 AND coalesce(arrival, seq) <= ?2
    LIMIT ?3);

-- name: position_at_key
-- How many queued runs of a flow (?1) with a key (?4) by a rule (?5) are there up to an arrival (?2).
SELECT count(*) FROM (
    SELECT 1 FROM run_keys AS k CROSS JOIN runs AS r ON r.seq = k.run_seq
    WHERE k.flow = ?1 AND k.place = ?5 AND k.key = ?4 AND k.run_seq <= ?2
        AND coalesce(k.arrival, k.run_seq) <= ?2 AND r.state = 'queued'
    LIMIT ?3);

-- name: queued_by_flow
-- How many runs of each flow are queued, and since when the first.
SELECT q.flow, q.number, (SELECT queued_at FROM runs WHERE seq = q.first) FROM (
    SELECT flow, count(*) AS number, min(seq) AS first FROM runs INDEXED BY runs_by_state
    WHERE state = 'queued' GROUP BY flow) AS q;

-- name: due_by_flow
-- How many runs of each flow that waited for their time (?1) are due, and since when the first;
-- of them that were scheduled or retrying.
SELECT flow, count(*), min(due_at), sum(state != 'waiting') FROM runs INDEXED BY runs_due
WHERE (state = 'scheduled' OR state = 'retrying' OR state = 'waiting') AND due_at <= ?1
GROUP BY flow;

-- name: due_between
-- How many runs of each flow that wait for their time become due after ?1 and until ?2.
SELECT flow, count(*) FROM runs INDEXED BY runs_due
WHERE (state = 'scheduled' OR state = 'retrying' OR state = 'waiting')
    AND due_at > ?1 AND due_at <= ?2
GROUP BY flow;

-- name: scheduled_by_flow
-- How many runs of each flow are scheduled or retrying, due or not.
SELECT flow, count(*) FROM runs INDEXED BY runs_by_state
WHERE state = 'scheduled' OR state = 'retrying' GROUP BY flow;

-- name: is_polling
-- Whether a waiting run polls.
SELECT 1 FROM runs AS r INDEXED BY runs_due JOIN steps AS s ON s.run_seq = r.seq
WHERE r.state = 'waiting' AND s.state = 'waiting' AND s.finished_at IS NULL
    AND s.encoding = 'json' AND CAST(s.result AS TEXT) ->> '$.poll' IS NOT NULL
LIMIT 1;

-- name: open_steps
-- The steps at which runs (?1, a JSON array) wait, at most so many (?2).
SELECT json_group_array(json_array(run_seq, key, task, state, origin, CAST(result AS TEXT)))
FROM (
    SELECT s.* FROM json_each(?1) AS v JOIN steps AS s ON s.run_seq = v.value
    WHERE s.state = 'waiting' AND s.finished_at IS NULL OR s.state = 'retrying' ORDER BY s.run_seq, s.seq LIMIT ?2);

-- name: open_approvals
-- The approvals that wait for an answer, at most so many (?1).
SELECT json_group_array(json_array(id, flow, key, started_at, CAST(result AS TEXT))) FROM (
    SELECT r.id, r.flow, s.key, s.started_at, s.result
    FROM waits AS w INDEXED BY waits_by_topic
    JOIN steps AS s ON s.run_seq = w.run_seq AND s.key = w.key
    JOIN runs AS r ON r.seq = w.run_seq
    WHERE w.topic >= 'approval:' AND w.topic < 'approval;' AND w.answer IS NULL
        AND r.finished_at IS NULL AND s.state = 'waiting'
    ORDER BY s.started_at, s.seq LIMIT ?1);

-- name: last_accepted
-- When the last event of each trigger was accepted, of so many of the newest events (?1).
SELECT trigger, max(accepted_at) FROM (
    SELECT trigger, accepted_at FROM events ORDER BY seq DESC LIMIT ?1) GROUP BY trigger;

-- name: is_used
-- Whether a link (?1, its digest) was used.
SELECT 1 FROM used_links WHERE digest = ?1;

-- name: shapes
-- The distinct shapes of open waits for events.
SELECT DISTINCT shape FROM waits WHERE shape IS NOT NULL;

-- name: result_lengths
-- The lengths of the results of a run's (?1) steps, in order.
SELECT seq, coalesce(length(result), 0) FROM steps WHERE run_seq = ?1 ORDER BY seq;

-- name: positions
-- The positions of a trigger (?1), an object.
SELECT json_group_object(partition, value) FROM positions WHERE trigger = ?1;

-- name: last_arrival
-- The highest number that the arrival of a run may have: see `append.last_seqs`.
SELECT max(coalesce((SELECT max(seq) FROM runs), 0),
    coalesce((SELECT value FROM counters WHERE name = 'runs'), 0));

-- name: last_recorded_at
-- The latest instant among the newest event and the newest runs; 0 in an empty journal.
SELECT max(coalesce((SELECT accepted_at FROM events ORDER BY seq DESC LIMIT 1), 0),
    coalesce((SELECT max(max(queued_at, coalesce(started_at, 0), coalesce(finished_at, 0)))
        FROM (SELECT queued_at, started_at, finished_at FROM runs ORDER BY seq DESC LIMIT 1000)), 0));

-- name: next_due_at
-- When the next scheduled, retrying or waiting run is due, after an instant (?1).
SELECT min(due_at) FROM runs INDEXED BY runs_due
WHERE (state = 'scheduled' OR state = 'retrying' OR state = 'waiting') AND due_at > ?1;

-- name: held_keys
-- The runs that may hold their ordering key.
SELECT json_group_array(json_array(flow, order_key, id, dead)) FROM (
    SELECT flow, order_key, id, dead, seq FROM runs
    WHERE state IN ('retrying', 'waiting') AND order_key IS NOT NULL
    UNION ALL
    SELECT flow, order_key, id, dead, seq FROM runs
    WHERE dead = 1 AND state = 'failed' AND order_key IS NOT NULL
    ORDER BY seq);

-- name: orphans
-- How many unfinished runs there are of each flow that is not served (those are ?1). The flows are
-- found by steps through the index, so runs of flows that are served are not looked at.
WITH RECURSIVE found (state, flow) AS (
    SELECT s.value, (SELECT min(flow) FROM runs WHERE state = s.value)
    FROM json_each('["scheduled","queued","running","retrying","waiting"]') AS s
    UNION ALL
    SELECT f.state, (SELECT min(flow) FROM runs WHERE state = f.state AND flow > f.flow)
    FROM found AS f WHERE f.flow IS NOT NULL)
SELECT json_group_array(json_array(flow, count)) FROM (
    SELECT f.flow, sum((SELECT count(*) FROM runs WHERE state = f.state AND flow = f.flow)) AS count
    FROM found AS f WHERE f.flow IS NOT NULL AND f.flow NOT IN (SELECT value FROM json_each(?1))
    GROUP BY f.flow ORDER BY f.flow);

-- name: pauses
-- What is paused at an instant (?1).
SELECT name, since, until, note, by FROM paused WHERE until IS NULL OR until > ?1 ORDER BY name;

-- name: queued_by_class
-- How many runs of flows (?1, a JSON array) are queued, by priority, and since when the first.
SELECT coalesce(priority, 2), count(*), min(coalesce(due_at, queued_at))
FROM runs INDEXED BY runs_by_state
WHERE state = 'queued' AND flow IN (SELECT value FROM json_each(?1)) GROUP BY 1;

-- name: overrides
-- The limits that operators have set and that hold at an instant (?1).
SELECT name, count, since, until, note, by FROM limit_overrides WHERE until > ?1 ORDER BY name;

-- name: unfinished
-- How many unfinished runs there are in each state.
SELECT state, count(*) FROM runs
WHERE state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting') GROUP BY state;

-- name: dead
-- How many dead letters each flow has.
SELECT flow, count(*) FROM runs WHERE dead = 1 GROUP BY flow;

-- name: not_undone
-- How many of them have an undo that failed.
SELECT flow, count(*) FROM runs WHERE dead = 1 AND undo = 'failed' GROUP BY flow;

-- name: named_blobs
-- The files, among these (?1, a JSON array), that a row names.
SELECT json_group_array(value) FROM json_each(?1)
WHERE EXISTS (SELECT 1 FROM steps WHERE blob = value)
    OR EXISTS (SELECT 1 FROM cache WHERE blob = value)
    OR EXISTS (SELECT 1 FROM artefacts WHERE blob = value);

-- name: all_blobs
-- The files that rows name.
SELECT blob FROM steps WHERE blob IS NOT NULL
UNION SELECT blob FROM cache WHERE blob IS NOT NULL
UNION SELECT blob FROM artefacts;

-- name: history
-- The last so many (?2) ended runs of a flow (?1), results of at most so many bytes (?3). Of those
-- that were skipped a bounded number is looked at: rules may have refused a million.
SELECT id, state, iif(length(result) <= ?3, result, NULL), coalesce(length(result), 0) > ?3, error,
    reason, queued_at, finished_at
FROM runs WHERE seq IN (
    SELECT * FROM (SELECT seq FROM runs INDEXED BY runs_by_state
        WHERE state = 'succeeded' AND flow = ?1 ORDER BY seq DESC LIMIT ?2)
    UNION ALL SELECT * FROM (SELECT seq FROM runs INDEXED BY runs_by_state
        WHERE state = 'failed' AND flow = ?1 ORDER BY seq DESC LIMIT ?2)
    UNION ALL SELECT * FROM (SELECT seq FROM runs INDEXED BY runs_by_state
        WHERE state = 'cancelled' AND flow = ?1 ORDER BY seq DESC LIMIT ?2)
    UNION ALL SELECT seq FROM (SELECT seq, refused FROM runs INDEXED BY runs_by_state
        WHERE state = 'skipped' AND flow = ?1 ORDER BY seq DESC LIMIT 1000) WHERE refused IS NULL)
ORDER BY seq DESC LIMIT ?2;
