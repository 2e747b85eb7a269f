-- The deliveries within the dedupe window.

-- name: first_deliveries
-- The first deliveries among keys, a JSON array of hexadecimal texts (?1).
SELECT json_group_array(json_array(hex(d.key), d.event_seq, hex(d.body)))
FROM json_each(?1) AS k JOIN dedupe AS d ON d.key = unhex(k.value);

-- name: old_deliveries
-- The first deliveries (?1 of them), those before an instant (?2). Rows are in order of arrival,
-- so the first are the oldest.
SELECT event_seq
FROM (SELECT event_seq, accepted_at FROM dedupe ORDER BY event_seq LIMIT ?1)
WHERE accepted_at < ?2;

-- name: find_by_id
-- Events (?1, a JSON array) are found by their id, no longer through their delivery.
UPDATE events SET by_id = 1 WHERE seq IN (SELECT value FROM json_each(?1));

-- name: delete_deliveries
DELETE FROM dedupe WHERE event_seq IN (SELECT value FROM json_each(?1));
