-- Suspension: open windows of absent(…) whose time stands still.

-- name: suspend
-- The windows of a flow (?1) that are not due at an instant (?2) keep the time they have left.
UPDATE windows INDEXED BY windows_open SET remaining = due_at - ?2, due_at = NULL
WHERE state = 'open' AND flow = ?1 AND due_at > ?2 AND opened_at <= ?2
    AND json_extract(settings, '$.kind') = 'absent';

-- name: put_off
-- The windows of a flow (?1) that were opened since an instant (?2) begin at another one (?3).
UPDATE windows INDEXED BY windows_open SET due_at = due_at + (?3 - opened_at)
WHERE state = 'open' AND flow = ?1 AND due_at IS NOT NULL AND opened_at > ?2 AND opened_at <= ?3
    AND json_extract(settings, '$.kind') = 'absent';

-- name: resume
-- The suspended windows of a flow (?1) go on at an instant (?2).
UPDATE windows INDEXED BY windows_open SET due_at = ?2 + remaining, remaining = NULL
WHERE state = 'open' AND flow = ?1 AND due_at IS NULL AND remaining IS NOT NULL;
