-- How long a run was queued before its first claim, in microseconds: 0 if it started on insert; empty if
-- it was never claimed, or by an earlier version. `started_at` is rewritten by each attempt.
ALTER TABLE runs ADD COLUMN claimed_after INTEGER;
