-- The tables and indexes of a new journal: what all migrations together lead to.
-- After a new migration: python -m tests.support.schema

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
    after_run_action INTEGER      -- 0 due once all runs have ended, 1 done, NULL never asked for
, awaited TEXT) STRICT;

CREATE INDEX events_by_id ON events (id) WHERE by_id = 1;

CREATE INDEX events_unmatched ON events (accepted_at) WHERE unmatched = 1;

CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    event_seq INTEGER NOT NULL,
    flow TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state = 'running' OR state = 'succeeded' OR state = 'queued' OR state = 'waiting'
        OR state = 'retrying' OR state = 'failed' OR state = 'cancelled' OR state = 'skipped'
        OR state = 'scheduled'),
    token INTEGER NOT NULL,               -- rises with every claim
    attempts INTEGER NOT NULL DEFAULT 0,  -- outcomes of the handler
    crashes INTEGER NOT NULL DEFAULT 0,   -- times the process died under it
    consecutive_crashes INTEGER NOT NULL DEFAULT 0,    -- times it died while this run was a suspect
    order_key TEXT,
    keys TEXT,
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
, undo TEXT, cancelled_by TEXT, returned BLOB, priority INTEGER, refused TEXT, forced INTEGER, window_seq INTEGER, claimed_after INTEGER, arrival INTEGER) STRICT;

CREATE UNIQUE INDEX runs_by_id ON runs (id);

CREATE UNIQUE INDEX runs_by_event ON runs (event_seq, flow, replay);

CREATE INDEX runs_by_state ON runs (state, flow);

CREATE INDEX runs_dead ON runs (flow) WHERE dead = 1;

CREATE INDEX runs_failed ON runs (finished_at) WHERE state = 'failed';

CREATE TABLE steps (
    seq INTEGER PRIMARY KEY,
    run_seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    task TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state = 'succeeded' OR state = 'failed' OR state = 'retrying' OR state = 'waiting'),
    tries INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER,
    encoding TEXT NOT NULL CHECK (encoding IN ('json', 'pickle')),
    result BLOB,
    error TEXT,
    superseded INTEGER NOT NULL DEFAULT 0
, origin TEXT, blob TEXT, in_error_handler INTEGER NOT NULL DEFAULT 0, arguments_digest TEXT, arguments TEXT) STRICT;

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

CREATE TABLE decisions (
    event_seq INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    items TEXT NOT NULL,
    PRIMARY KEY (event_seq, ordinal)
) STRICT, WITHOUT ROWID;

CREATE TABLE dedupe (
    event_seq INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    body BLOB NOT NULL,
    accepted_at INTEGER NOT NULL
, expires_at INTEGER) STRICT;

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
, until INTEGER, note TEXT NOT NULL DEFAULT '', by TEXT NOT NULL DEFAULT '') STRICT, WITHOUT ROWID;

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE cache (
    seq INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    task TEXT NOT NULL,
    run_id TEXT NOT NULL,
    encoding TEXT NOT NULL CHECK (encoding IN ('json', 'pickle')),
    result BLOB,
    blob TEXT,
    stored_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX cache_by_key ON cache (key);

CREATE INDEX cache_by_task ON cache (task);

CREATE INDEX cache_expiring ON cache (expires_at);

CREATE TABLE waits (
    run_seq INTEGER NOT NULL,
    key TEXT NOT NULL,      -- of the step that waits
    topic TEXT NOT NULL,    -- `event:…`, `run:…` or `approval:…`
    shape TEXT,             -- for events: the trigger and the compared fields, a JSON array
    woken INTEGER,          -- the first event not looked at yet; 1 for other kinds
    latest INTEGER,         -- the last one
    answer TEXT, shared INTEGER, race TEXT,            -- what an approver said, a JSON object
    PRIMARY KEY (run_seq, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX waits_by_topic ON waits (topic);

CREATE INDEX waits_by_shape ON waits (shape) WHERE shape IS NOT NULL;

CREATE INDEX events_awaited ON events (awaited, seq) WHERE awaited IS NOT NULL;

CREATE TABLE used_links (
    digest BLOB PRIMARY KEY,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX steps_by_blob ON steps (blob) WHERE blob IS NOT NULL;

CREATE INDEX cache_by_blob ON cache (blob) WHERE blob IS NOT NULL;

CREATE INDEX events_with_action ON events (seq) WHERE after_run_action = 0;

CREATE INDEX events_kept_for_waits ON events (accepted_at) WHERE unmatched = 2;

CREATE INDEX runs_due ON runs (due_at)
    WHERE state = 'scheduled' OR state = 'retrying' OR state = 'waiting';

CREATE INDEX runs_ended ON runs (finished_at)
    WHERE state = 'succeeded' OR state = 'cancelled' OR state = 'skipped';

CREATE TABLE run_keys (
    flow TEXT NOT NULL,
    place TEXT NOT NULL,
    key TEXT NOT NULL,
    run_seq INTEGER NOT NULL, arrival INTEGER,
    PRIMARY KEY (flow, place, key, run_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE limit_overrides (
    name TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL,
    note TEXT NOT NULL,
    by TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE starts (
    flow TEXT NOT NULL,
    place TEXT NOT NULL,
    key TEXT NOT NULL,
    at INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT;

CREATE INDEX starts_by_until ON starts (until);

CREATE TABLE accepted_runs (
    flow TEXT NOT NULL,
    place TEXT NOT NULL,
    key TEXT NOT NULL,
    n INTEGER NOT NULL,
    at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (flow, place, key, n)
) STRICT, WITHOUT ROWID;

CREATE INDEX accepted_runs_by_until ON accepted_runs (until);

CREATE TABLE unique_keys (
    flow TEXT NOT NULL,
    key TEXT NOT NULL,
    run_seq INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (flow, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX unique_keys_by_until ON unique_keys (until);

CREATE TABLE breakers (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state = 'closed' OR state = 'open' OR state = 'probing'),
    generation INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    until INTEGER,
    down_since INTEGER,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX dedupe_by_expiry ON dedupe (expires_at) WHERE expires_at IS NOT NULL;

CREATE INDEX runs_by_priority ON runs (flow, priority)
    WHERE state = 'queued' AND priority IS NOT NULL;

CREATE TABLE classed_flows (
    flow TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

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

CREATE INDEX runs_by_window ON runs (window_seq) WHERE window_seq IS NOT NULL;

CREATE TABLE flow_state (
    flow TEXT NOT NULL,
    key TEXT NOT NULL,
    version INTEGER NOT NULL,
    value BLOB NOT NULL,
    run_id TEXT NOT NULL,
    changed_at INTEGER NOT NULL, used_at INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (flow, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE approval_answers (
    run_seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    at INTEGER NOT NULL,
    approved INTEGER NOT NULL,
    by TEXT NOT NULL,
    via TEXT NOT NULL,
    PRIMARY KEY (run_seq, key, at)
) STRICT, WITHOUT ROWID;

CREATE INDEX flow_state_by_use ON flow_state (used_at) WHERE key <> '';

CREATE INDEX windows_opened ON windows (opened_at) WHERE state = 'open';

CREATE TABLE budget_takes (
    seq INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    at INTEGER NOT NULL,
    until INTEGER NOT NULL,
    amount INTEGER NOT NULL,
    most INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    key TEXT NOT NULL
) STRICT;

CREATE INDEX budget_takes_by_name ON budget_takes (name, at, amount);

CREATE INDEX budget_takes_by_until ON budget_takes (until);

CREATE TABLE artefacts (
    seq INTEGER PRIMARY KEY,
    run_seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    blob TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX artefacts_by_run ON artefacts (run_seq, key, name);

CREATE INDEX artefacts_by_blob ON artefacts (blob);

CREATE TRIGGER artefacts_of_deleted_step AFTER DELETE ON steps
BEGIN
    DELETE FROM artefacts WHERE run_seq = old.run_seq AND key = old.key;
END;

CREATE TRIGGER artefacts_of_replaced_step AFTER UPDATE OF superseded ON steps
WHEN old.superseded = 1 AND new.superseded = 0
BEGIN
    DELETE FROM artefacts WHERE run_seq = old.run_seq AND key = old.key;
END;

CREATE INDEX runs_suspended_by_order ON runs (flow, order_key)
    WHERE (state = 'scheduled' OR state = 'retrying' OR state = 'waiting') AND order_key IS NOT NULL;

CREATE INDEX runs_by_arrival ON runs (flow, arrival) WHERE state = 'queued' AND arrival IS NOT NULL;

CREATE INDEX runs_by_order ON runs (flow, order_key, coalesce(arrival, seq))
    WHERE state = 'queued' AND order_key IS NOT NULL;

CREATE INDEX run_keys_by_arrival ON run_keys (flow, place, key, arrival) WHERE arrival IS NOT NULL;

CREATE TABLE alerts (
    seq INTEGER PRIMARY KEY,
    flow TEXT NOT NULL,
    rule TEXT NOT NULL,        -- failure, expect_every, deadline, finish_within
    cause TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    times INTEGER NOT NULL,
    error TEXT,
    run_id TEXT,
    told_count INTEGER NOT NULL DEFAULT 0,
    told_at INTEGER,
    messages INTEGER NOT NULL DEFAULT 0,
    muted_until INTEGER,
    muted_by TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT '',
    ended_at INTEGER,
    ended TEXT                 -- recovered, or withdrawn: its rule is no longer declared
) STRICT;

CREATE UNIQUE INDEX alerts_open ON alerts (flow, rule, cause) WHERE ended_at IS NULL;

CREATE INDEX alerts_ended ON alerts (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE alert_messages (
    seq INTEGER PRIMARY KEY,
    alert_seq INTEGER NOT NULL,
    channel TEXT NOT NULL,
    key TEXT NOT NULL,
    document TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    claimed_until INTEGER,
    held INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    ended_at INTEGER,
    ended TEXT                 -- sent, summarised, dropped
) STRICT;

CREATE INDEX alert_messages_pending ON alert_messages (channel, seq) WHERE ended_at IS NULL;

CREATE INDEX alert_messages_ended ON alert_messages (channel, ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE expectations (
    flow TEXT NOT NULL,
    rule TEXT NOT NULL,
    since INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (flow, rule)
) STRICT, WITHOUT ROWID;

CREATE TABLE described_flows (
    flow TEXT PRIMARY KEY,
    owner TEXT,
    tags TEXT NOT NULL,
    description TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE traced_runs (
    run_seq INTEGER PRIMARY KEY,
    ends INTEGER NOT NULL DEFAULT 0,
    sent INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX traced_runs_owed ON traced_runs (run_seq) WHERE sent = 0;
