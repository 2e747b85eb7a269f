-- Windows: several events that start one run together. An open one collects members; one that has
-- fired keeps them, as the links between its runs and their events. `key` is empty for a flow
-- without `per=`; `settings` are those that the window was opened with, a JSON object. `positions`
-- is the last position given to a member. `remaining` is how long after it goes on a suspended one
-- is due.
CREATE TABLE windows (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    flow TEXT NOT NULL,
    key TEXT NOT NULL,
    settings TEXT NOT NULL,
    state TEXT NOT NULL,  -- open, fired, expired, dropped, closed
    opened_at INTEGER NOT NULL,
    due_at INTEGER,
    remaining INTEGER,
    closed_at INTEGER,
    members INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    positions INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX windows_by_id ON windows (id);
CREATE INDEX windows_open ON windows (flow, key) WHERE state = 'open';
CREATE INDEX windows_due ON windows (due_at) WHERE state = 'open' AND due_at IS NOT NULL;

-- `keys`, `order_key` and `priority` are what the rules of the flow say of this event; the run gets
-- those of its first member that it is called with. `outcome` is for what one run says of single
-- members.
CREATE TABLE window_events (
    window_seq INTEGER NOT NULL,
    position INTEGER NOT NULL,
    event_seq INTEGER NOT NULL,
    part INTEGER NOT NULL,
    at INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    keys TEXT,
    order_key TEXT,
    priority INTEGER,
    outcome TEXT,
    PRIMARY KEY (window_seq, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX window_events_by_event ON window_events (event_seq);

-- The window of a run; NULL for a run of one event. A replay has the window of the first run.
ALTER TABLE runs ADD COLUMN window_seq INTEGER;
CREATE INDEX runs_by_window ON runs (window_seq) WHERE window_seq IS NOT NULL;
