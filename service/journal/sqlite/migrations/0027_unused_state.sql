-- When a run last had the ordering key of a state, as far as the journal remembers: a state that no
-- run has used for long goes, so that keys that never come again do not pile up. The state of a flow
-- without `ordered_by=` (its key is empty) is never deleted by age. Who has read a state before this
-- is not known, so each counts as used now: one that runs only read would go at once.
ALTER TABLE flow_state ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
UPDATE flow_state SET used_at = max(changed_at, unixepoch() * 1000000);
CREATE INDEX flow_state_by_use ON flow_state (used_at) WHERE key <> '';
