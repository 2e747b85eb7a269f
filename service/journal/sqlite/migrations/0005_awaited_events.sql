-- `events.unmatched` is 2 on an event some run may wait for and that has no runs (left): it is kept
-- until no unfinished run is older.
UPDATE events SET unmatched = 2 WHERE unmatched = 1 AND awaited IS NOT NULL;
CREATE INDEX events_heard ON events (accepted_at) WHERE unmatched = 2;
