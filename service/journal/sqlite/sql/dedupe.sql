-- The deliveries within the dedupe window.

-- name: first_deliveries
-- The first deliveries among keys, a JSON array of hexadecimal texts (?1).
SELECT json_group_array(json_array(hex(d.key), d.event_seq, hex(d.body)))
FROM json_each(?1) AS k JOIN dedupe AS d ON d.key = unhex(k.value);

-- name: expired_deliveries
-- Deliveries whose own window has ended by an instant (?1), at most so many (?2).
SELECT event_seq FROM dedupe INDEXED BY dedupe_by_expiry
WHERE expires_at IS NOT NULL AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2;

-- name: first_without_window
-- The first deliveries (?1 of them) without a window of their own, behind those that `passed` says
-- have gone: seq, accepted at. Rows are in order of arrival, so the first are the oldest.
SELECT event_seq, accepted_at FROM dedupe
WHERE expires_at IS NULL
    AND event_seq > coalesce((SELECT value FROM counters WHERE name = 'dedupe'), 0)
ORDER BY event_seq LIMIT ?1;

-- name: passed
-- From now on no delivery up to a seq (?1; up to the last, if NULL) is without a window of its own.
INSERT INTO counters (name, value)
SELECT 'dedupe', coalesce(?1, (SELECT max(event_seq) FROM dedupe), 0) WHERE true
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE excluded.value > value;

-- name: find_by_id
-- Events (?1, a JSON array) are found by their id, no longer through their delivery.
UPDATE events SET by_id = 1 WHERE seq IN (SELECT value FROM json_each(?1));

-- name: delete_deliveries
DELETE FROM dedupe WHERE event_seq IN (SELECT value FROM json_each(?1));
