-- Windows: open ones, their members, and what is left when they close.

-- name: join_together
-- Events (?5 to ?6) join a window (?1), at positions that are their seqs less a number (?2), as a part
-- of it (?3), at an instant (?4).
INSERT INTO window_events (window_seq, position, event_seq, part, at, bytes)
SELECT ?1, seq - ?2, seq, ?3, ?4, length(body) FROM events WHERE seq BETWEEN ?5 AND ?6;

-- name: last_window
SELECT coalesce(max(seq), 0) FROM windows;

-- name: open_of
-- The open window of a flow (?1) with a key (?2), the oldest first.
SELECT seq, id, flow, key, settings, opened_at, due_at, members, bytes, positions
FROM windows INDEXED BY windows_open
WHERE state = 'open' AND flow = ?1 AND key = ?2 ORDER BY seq LIMIT 1;

-- name: open_by_id
-- An open window (?1, its id).
SELECT seq, id, flow, key, settings, opened_at, due_at, members, bytes, positions
FROM windows WHERE id = ?1 AND state = 'open';

-- name: due
-- Open windows of these flows (?2, a JSON array) that are due at an instant (?1), at most so many
-- (?3), the earliest first; of some flows (?4, a JSON object) only those due up to an instant.
SELECT seq, id, flow, key, settings, opened_at, due_at, members, bytes, positions
FROM windows INDEXED BY windows_due
WHERE state = 'open' AND due_at <= ?1 AND flow IN (SELECT value FROM json_each(?2))
ORDER BY due_at, seq LIMIT ?3;

-- name: due_of
-- Open windows of a flow (?2) that are due at an instant (?1), at most so many (?3), the earliest
-- first: of those that were due up to ?4, or were opened since ?5.
SELECT seq, id, flow, key, settings, opened_at, due_at, members, bytes, positions
FROM windows INDEXED BY windows_due
WHERE state = 'open' AND due_at <= ?1 AND flow = ?2 AND (due_at <= ?4 OR opened_at >= ?5)
ORDER BY due_at, seq LIMIT ?3;

-- name: next_due
-- When the next window of these flows (?1, a JSON array) is due, after an instant (?2).
SELECT due_at FROM windows INDEXED BY windows_due
WHERE state = 'open' AND due_at > ?2 AND flow IN (SELECT value FROM json_each(?1))
ORDER BY due_at LIMIT 1;

-- name: held
-- The flows, of these (?2, a JSON array), with a window that is open past its deadline (?1).
SELECT DISTINCT flow FROM windows INDEXED BY windows_due
WHERE state = 'open' AND due_at <= ?1 AND flow IN (SELECT value FROM json_each(?2));

-- name: parts
-- The parts of a window (?1) of which there is a member.
SELECT DISTINCT part FROM window_events WHERE window_seq = ?1;

-- name: count_after
-- How many members of a window (?1) were accepted after an instant (?2).
SELECT count(*) FROM window_events WHERE window_seq = ?1 AND at > ?2;

-- name: oldest
-- When the oldest member of a window (?1) was accepted.
SELECT min(at) FROM window_events WHERE window_seq = ?1;

-- name: first_member
-- The first member of a window (?1): its event, and what the rules of the flow said of it.
SELECT event_seq, order_key, keys, priority FROM window_events
WHERE window_seq = ?1 ORDER BY position LIMIT 1;

-- name: last_member
-- The last member of a window (?1): its event, and what the rules of the flow said of it.
SELECT event_seq, order_key, keys, priority FROM window_events
WHERE window_seq = ?1 ORDER BY position DESC LIMIT 1;

-- name: decide
-- A decision (?2, a JSON array) about the events of members of a window (?1): all, or those
-- accepted up to an instant (?3), or those of a part (?4).
INSERT INTO decisions (event_seq, ordinal, items)
SELECT event_seq,
    1 + coalesce((SELECT max(d.ordinal) FROM decisions AS d WHERE d.event_seq = w.event_seq), 0), ?2
FROM window_events AS w
WHERE window_seq = ?1 AND (?3 IS NULL OR at <= ?3) AND (?4 IS NULL OR part = ?4);

-- name: release
-- Members leave a window (?1): those accepted up to an instant (?2), or those of a part (?3).
DELETE FROM window_events
WHERE window_seq = ?1 AND (?2 IS NULL OR at <= ?2) AND (?3 IS NULL OR part = ?3)
RETURNING event_seq, bytes;

-- name: members
-- The events of the members of a window (?1).
SELECT event_seq FROM window_events WHERE window_seq = ?1;

-- name: unmatch
-- Of these events (?1, a JSON array), those that no run and no open window has any more get the age
-- limit of an unmatched event.
UPDATE events SET unmatched = iif(awaited IS NULL, 1, 2)
WHERE seq IN (SELECT value FROM json_each(?1)) AND unmatched IS NULL
    AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = events.seq)
    AND NOT EXISTS (
        SELECT 1 FROM window_events AS m CROSS JOIN windows AS w ON w.seq = m.window_seq
        WHERE m.event_seq = events.seq AND (w.state = 'open'
            OR EXISTS (SELECT 1 FROM runs AS r WHERE r.window_seq = w.seq)));

-- name: scheduled_run
-- The run that waits for a window (?1).
SELECT seq, id FROM runs INDEXED BY runs_by_window
WHERE window_seq = ?1 AND +state = 'scheduled';

-- name: delete_run
DELETE FROM runs WHERE seq = ?1;

-- name: cancel_run
-- A run (?1) that waited for a window ends as cancelled at an instant (?2), by somebody (?3).
UPDATE runs SET state = 'cancelled', finished_at = ?2, cancelled_by = ?3 WHERE seq = ?1;

-- name: open_of_run
-- The open window that a run (?1) waits for: seq, id, flow, and the id of the run.
SELECT w.seq, w.id, w.flow, r.id FROM runs AS r CROSS JOIN windows AS w ON w.seq = r.window_seq
WHERE r.seq = ?1 AND w.state = 'open';

-- name: drop
-- A window (?1) is dropped at an instant (?2).
UPDATE windows SET state = 'dropped', closed_at = ?2 WHERE seq = ?1;

-- name: rename
-- The open windows of a flow (?1) get its new name (?2).
UPDATE windows SET flow = ?2 WHERE state = 'open' AND flow = ?1;

-- name: pull_back
-- Open windows that were opened in the future, under a clock that was ahead of an instant (?1), have
-- as much time left as they had when they were opened.
UPDATE windows INDEXED BY windows_opened
SET due_at = ?1 + (due_at - opened_at), opened_at = ?1
WHERE state = 'open' AND opened_at > ?1;

-- name: pull_back_members
-- The members of open windows that were accepted in the future.
UPDATE window_events SET at = ?1
WHERE at > ?1 AND window_seq IN (
    SELECT seq FROM windows INDEXED BY windows_opened
    WHERE state = 'open' AND opened_at >= ?1);

-- name: rename_opened
-- The mark (?1) that a window was opened by itself is that of another flow (?2).
UPDATE OR REPLACE counters SET name = ?2 WHERE name = ?1;

-- name: was_opened
-- Whether a window of a flow (?1, its mark) was ever opened by itself.
SELECT 1 FROM counters WHERE name = ?1;

-- name: mark_opened
INSERT INTO counters (name, value) VALUES (?1, 1) ON CONFLICT (name) DO NOTHING;

-- name: windows_without_runs
-- The windows among these (?1, a JSON array) that are closed and have no run.
SELECT seq FROM windows AS w
WHERE seq IN (SELECT value FROM json_each(?1)) AND state <> 'open'
    AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.window_seq = w.seq);

-- name: windows_of_runs
-- The windows of these runs (?1, a JSON array).
SELECT DISTINCT window_seq FROM runs
WHERE seq IN (SELECT value FROM json_each(?1)) AND window_seq IS NOT NULL;

-- name: windows_of_events
-- The windows of these events (?1, a JSON array).
SELECT DISTINCT window_seq FROM window_events
WHERE event_seq IN (SELECT value FROM json_each(?1));

-- name: events_of_windows
-- The events of these windows (?1, a JSON array).
SELECT event_seq FROM window_events WHERE window_seq IN (SELECT value FROM json_each(?1));

-- name: delete_members
DELETE FROM window_events WHERE window_seq IN (SELECT value FROM json_each(?1));

-- name: delete_windows
DELETE FROM windows WHERE seq IN (SELECT value FROM json_each(?1));

-- name: pending
-- Open windows, of one flow (?1) or all, the first due first, at most so many (?2).
SELECT w.seq, w.id, w.flow, w.key, w.settings, w.state, w.opened_at, w.due_at, w.remaining,
    w.closed_at, w.members, w.bytes,
    (SELECT id FROM runs AS r WHERE r.window_seq = w.seq ORDER BY r.seq LIMIT 1)
FROM windows AS w INDEXED BY windows_open
WHERE w.state = 'open' AND (?1 IS NULL OR w.flow = ?1)
ORDER BY w.due_at IS NULL, w.due_at, w.seq LIMIT ?2;

-- name: of_run
-- The window of a run (?1).
SELECT w.seq, w.id, w.flow, w.key, w.settings, w.state, w.opened_at, w.due_at, w.remaining,
    w.closed_at, w.members, w.bytes,
    (SELECT id FROM runs AS r WHERE r.window_seq = w.seq ORDER BY r.seq LIMIT 1)
FROM runs AS of CROSS JOIN windows AS w ON w.seq = of.window_seq WHERE of.seq = ?1;

-- name: window_by_id
-- A window (?1, its id).
SELECT w.seq, w.id, w.flow, w.key, w.settings, w.state, w.opened_at, w.due_at, w.remaining,
    w.closed_at, w.members, w.bytes,
    (SELECT id FROM runs AS r WHERE r.window_seq = w.seq ORDER BY r.seq LIMIT 1)
FROM windows AS w WHERE w.id = ?1;

-- name: listed_members
-- The members of a window (?1) from a position (?2) on, at most so many (?3).
SELECT m.position, e.id, e.source, e.trigger, m.part, m.at
FROM window_events AS m CROSS JOIN events AS e ON e.seq = m.event_seq
WHERE m.window_seq = ?1 AND m.position >= ?2 ORDER BY m.position LIMIT ?3;

-- name: windows_of_event
-- The windows that an event (?1) is in, or was in when they closed.
SELECT w.seq, w.id, w.flow, w.key, w.settings, w.state, w.opened_at, w.due_at, w.remaining,
    w.closed_at, w.members, w.bytes,
    (SELECT id FROM runs AS r WHERE r.window_seq = w.seq ORDER BY r.seq LIMIT 1)
FROM window_events AS m CROSS JOIN windows AS w ON w.seq = m.window_seq
WHERE m.event_seq = ?1 ORDER BY w.seq;

-- name: count_due
-- How many open windows each flow has that are due at an instant (?1).
SELECT flow, count(*) FROM windows INDEXED BY windows_due
WHERE state = 'open' AND due_at <= ?1 GROUP BY flow;

-- name: count_open
-- How many open windows each flow has.
SELECT flow, count(*) FROM windows INDEXED BY windows_open WHERE state = 'open' GROUP BY flow;
