-- What waiting runs wait for. A row lives while its run may still come to it; whatever ends the
-- wait (an event, a child run, an answer) finds the row by its topic and makes the run due, in the
-- transaction that stores it, so nothing that arrives can be missed.
CREATE TABLE waits (
    run_seq INTEGER NOT NULL,
    key TEXT NOT NULL,      -- of the step that waits
    topic TEXT NOT NULL,    -- `event:…`, `run:…` or `approval:…`
    shape TEXT,             -- for events: the trigger and the compared fields, a JSON array
    woken INTEGER,          -- the first event not looked at yet; 1 for other kinds
    latest INTEGER,         -- the last one
    answer TEXT,            -- what an approver said, a JSON object
    PRIMARY KEY (run_seq, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX waits_by_topic ON waits (topic);
CREATE INDEX waits_by_shape ON waits (shape) WHERE shape IS NOT NULL;

-- Events somebody may wait for, by the name they are awaited under.
ALTER TABLE events ADD COLUMN awaited TEXT;
CREATE INDEX events_awaited ON events (awaited, seq) WHERE awaited IS NOT NULL;
