-- What rates count: starts of throttles, accepted runs of rate limits. An index leads to what may
-- go; it is deleted a bounded number at a time.

-- name: starts
-- All starts that are kept, as they were recorded: not by their instants, since the clock may have
-- been set back between two of them.
SELECT json_group_array(json_array(flow, place, key, at, until) ORDER BY rowid) FROM starts;

-- name: nth_latest
-- When the run of a key (?1, ?2, ?3) was accepted that has so many (?4) after it, or is the latest
-- for 0; nothing if there are not so many.
SELECT at FROM accepted_runs
WHERE flow = ?1 AND place = ?2 AND key = ?3 AND n = (
    SELECT max(n) FROM accepted_runs WHERE flow = ?1 AND place = ?2 AND key = ?3) - ?4;

-- name: accept
-- Count one more accepted run of a key (?1, ?2, ?3) at an instant (?4) until another (?5).
INSERT INTO accepted_runs (flow, place, key, n, at, until)
SELECT ?1, ?2, ?3, coalesce(max(n), 0) + 1, ?4, ?5 FROM accepted_runs
WHERE flow = ?1 AND place = ?2 AND key = ?3;

-- name: logs
-- The ids of the rules (`place`) by which a flow (?1) has accepted runs.
SELECT DISTINCT place FROM accepted_runs WHERE flow = ?1;

-- name: newest_first
-- The accepted runs of a key (?1, ?2, ?3), the latest first.
SELECT n, at, until FROM accepted_runs WHERE flow = ?1 AND place = ?2 AND key = ?3 ORDER BY n DESC;

-- name: delete_from
-- The accepted runs of a key (?1, ?2, ?3) from one on (?4).
DELETE FROM accepted_runs WHERE flow = ?1 AND place = ?2 AND key = ?3 AND n >= ?4;

-- name: delete_starts
-- Up to so many (?2) starts that count no more at an instant (?1).
DELETE FROM starts WHERE rowid IN (
    SELECT rowid FROM starts INDEXED BY starts_by_until WHERE until <= ?1 LIMIT ?2);

-- name: delete_accepted
-- Up to so many (?2) accepted runs that count no more at an instant (?1).
DELETE FROM accepted_runs WHERE (flow, place, key, n) IN (
    SELECT flow, place, key, n FROM accepted_runs INDEXED BY accepted_runs_by_until
    WHERE until <= ?1 LIMIT ?2);

-- name: rename_starts
-- What a flow (?1) has started counts for its new name (?2).
UPDATE starts SET flow = ?2 WHERE flow = ?1;

-- name: rename_accepted
-- What was accepted for a flow (?1) counts for its new name (?2), unless that has counted already.
UPDATE OR IGNORE accepted_runs SET flow = ?2 WHERE flow = ?1;

-- name: accepted_by_key
-- How many runs of a flow (?1) a rate limit by a rule (?2) has accepted since an instant (?3), by key,
-- and when the one behind the latest by a number (?4) was accepted.
SELECT a.key, count(*) AS used, (
    SELECT at FROM accepted_runs AS n
    WHERE n.flow = ?1 AND n.place = ?2 AND n.key = a.key AND n.at > ?3
    ORDER BY n.n DESC LIMIT 1 OFFSET ?4)
FROM accepted_runs AS a WHERE a.flow = ?1 AND a.place = ?2 AND a.at > ?3
GROUP BY a.key ORDER BY used DESC, a.key;
