-- Results of tasks with `cache=`.

-- name: count
-- How many results of a task (?1), or of all, are cached.
SELECT count(*) FROM cache WHERE ?1 IS NULL OR task = ?1;

-- name: clear
-- Cached results of a task (?1) or of all, expired by an instant (?2) or any, at most ?3.
DELETE FROM cache WHERE seq IN (
    SELECT seq FROM cache
    WHERE (?1 IS NULL OR task = ?1) AND (?2 IS NULL OR expires_at <= ?2)
    ORDER BY expires_at LIMIT ?3);
