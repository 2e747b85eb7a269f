-- Budgets: what runs have taken from them, each for a period.

-- name: used
-- How many count of a budget (?1) at an instant (?2) in a period (?3). What is further away than the
-- period, before or after, is of a clock that was wrong.
SELECT coalesce(sum(amount), 0) FROM budget_takes
WHERE name = ?1 AND at > ?2 - ?3 AND at < ?2 + ?3;

-- name: nth_used
-- When that was taken with which so many (?4) are counted, of what `used` counts, the oldest first.
SELECT at FROM (
    SELECT at, sum(amount) OVER (ORDER BY at ROWS UNBOUNDED PRECEDING) AS counted FROM budget_takes
    WHERE name = ?1 AND at > ?2 - ?3 AND at < ?2 + ?3)
WHERE counted >= ?4 LIMIT 1;

-- name: take
-- Take from a budget (?1) at an instant (?2) until another (?3) so many (?4) of so many (?5), for a
-- step (?7) of a run (?6).
INSERT INTO budget_takes (name, at, until, amount, most, run_id, key)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7);

-- name: listed
-- The budgets of which something is used at an instant (?1): how many, as the last has declared it,
-- and when the first of them is free.
SELECT g.name, g.used, l.most, l.until - l.at, g.free_at
FROM (SELECT name, sum(amount) AS used, max(seq) AS last, min(until) AS free_at
      FROM budget_takes WHERE until > ?1 GROUP BY name) AS g
JOIN budget_takes AS l ON l.seq = g.last ORDER BY g.name;

-- name: delete
-- Up to so many (?2) that count no more at an instant (?1).
DELETE FROM budget_takes WHERE seq IN (
    SELECT seq FROM budget_takes INDEXED BY budget_takes_by_until WHERE until <= ?1 LIMIT ?2);
