-- Files that steps have attached to their run.

-- name: named
-- The artefact of a run (?1) that was last recorded under a name (?2).
SELECT key, name, type, bytes, blob, at FROM artefacts
WHERE run_seq = ?1 AND name = ?2 ORDER BY seq DESC LIMIT 1;

-- name: listed
-- The artefacts of a run (?1), the last of each name, at most so many (?2).
SELECT key, name, type, bytes, blob, at FROM artefacts
WHERE seq IN (SELECT max(seq) FROM artefacts WHERE run_seq = ?1 GROUP BY name)
ORDER BY seq LIMIT ?2;
