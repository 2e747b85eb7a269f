-- The journal's first shape. Instants are integer microseconds since 1970 UTC; JSON is text.
--
-- Most events are written twice, so what is indexed is chosen with care: an index either grows
-- at its end (ids made by turnout sort by time) or holds only the few rows in play (partial).

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    source TEXT NOT NULL,
    type TEXT NOT NULL,
    tenant TEXT NOT NULL,
    trigger TEXT NOT NULL,
    time INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    body BLOB NOT NULL,
    details TEXT,       -- the other attributes that are not at their default, a JSON object
    decisions TEXT,     -- what the router decided at birth, a JSON array
    by_id INTEGER,      -- 1 when found by its id here; the others are found through `dedupe`
    unmatched INTEGER,  -- 1 while no run was ever started
    effect INTEGER      -- 0 due once all runs have ended, 1 done, NULL never asked for
) STRICT;
CREATE INDEX events_by_id ON events (id) WHERE by_id = 1;
CREATE INDEX events_unmatched ON events (accepted_at) WHERE unmatched = 1;
CREATE INDEX events_effect ON events (seq) WHERE effect = 0;

CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    event_seq INTEGER NOT NULL,
    flow TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting',
                                         'succeeded', 'failed', 'cancelled', 'skipped')),
    token INTEGER NOT NULL,               -- rises with every claim
    attempts INTEGER NOT NULL DEFAULT 0,  -- outcomes of the handler
    crashes INTEGER NOT NULL DEFAULT 0,   -- times the process died under it
    blames INTEGER NOT NULL DEFAULT 0,    -- times it died while this run was a suspect
    order_key TEXT,
    limit_key TEXT,
    due_at INTEGER,
    queued_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    result BLOB,
    error TEXT,
    reason TEXT,
    dead INTEGER NOT NULL DEFAULT 0,
    replay INTEGER NOT NULL DEFAULT 0,
    code_version TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX runs_by_id ON runs (id);
CREATE UNIQUE INDEX runs_by_event ON runs (event_seq, flow, replay);
CREATE INDEX runs_by_state ON runs (state, flow);
CREATE INDEX runs_by_order ON runs (flow, order_key)
    WHERE state = 'queued' AND order_key IS NOT NULL;
CREATE INDEX runs_by_limit ON runs (flow, limit_key)
    WHERE state = 'queued' AND limit_key IS NOT NULL;
CREATE INDEX runs_due ON runs (due_at) WHERE state IN ('scheduled', 'retrying', 'waiting');
CREATE INDEX runs_dead ON runs (flow) WHERE dead = 1;
CREATE INDEX runs_ended ON runs (finished_at) WHERE state IN ('succeeded', 'cancelled', 'skipped');
CREATE INDEX runs_failed ON runs (finished_at) WHERE state = 'failed';

CREATE TABLE steps (
    seq INTEGER PRIMARY KEY,
    run_seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    task TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('succeeded', 'failed', 'retrying', 'waiting')),
    tries INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER,
    encoding TEXT NOT NULL CHECK (encoding IN ('json', 'pickle')),
    result BLOB,
    error TEXT,
    superseded INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX steps_by_run ON steps (run_seq, key);

CREATE TABLE attempts (
    seq INTEGER PRIMARY KEY,
    run_seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER,
    state TEXT NOT NULL,
    error TEXT,
    log BLOB
) STRICT;
CREATE INDEX attempts_by_run ON attempts (run_seq);

-- Decisions made about an event after its birth (a duplicate came), a bounded number of each.
CREATE TABLE decisions (
    event_seq INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    items TEXT NOT NULL,
    PRIMARY KEY (event_seq, ordinal)
) STRICT, WITHOUT ROWID;

-- Which events were delivered, for the dedupe window, whatever is pruned elsewhere. The key is a
-- digest of the id and a digest of (tenant, trigger, source), ten bytes each, so that it also
-- finds events by their id: senders' ids are random, and each index of random keys measured as
-- dear as all other rows of an event together. Minted ids sort by time and have their own index.
CREATE TABLE dedupe (
    event_seq INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    body BLOB NOT NULL,
    accepted_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX dedupe_by_key ON dedupe (key);

CREATE TABLE positions (
    trigger TEXT NOT NULL,
    partition TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (trigger, partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE paused (
    name TEXT PRIMARY KEY,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- `events` and `runs`: the highest seq ever pruned, so that none is given twice. `probe`: a write
-- that tells whether writing works.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
