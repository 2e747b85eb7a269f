-- Alerts: an episode for each flow, rule and cause, open until the flow has recovered. `told_count` is
-- what `times` was when people were last told, `messages` how often they were; a message is written in the
-- transaction that says so. `error` is that of the last run, without its traceback.
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

-- Messages to people, one for each channel. One that is not ended is sent, again if need be, under
-- its key; `held` says that it came while the channel had had the most of an hour.
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
