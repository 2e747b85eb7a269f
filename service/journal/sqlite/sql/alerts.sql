-- name: again
UPDATE alerts SET times = times + ?4, last_at = ?5, error = coalesce(?6, error), run_id = coalesce(?7, run_id)
WHERE flow = ?1 AND rule = ?2 AND cause = ?3 AND ended_at IS NULL;

-- name: at_least
UPDATE alerts SET times = max(times, ?4)
WHERE flow = ?1 AND rule = ?2 AND cause = ?3 AND ended_at IS NULL;

-- name: count_open
SELECT count(*) FROM alerts WHERE flow = ? AND ended_at IS NULL;

-- name: open
INSERT INTO alerts (flow, rule, cause, opened_at, last_at, times, error, run_id)
VALUES (?1, ?2, ?3, ?5, ?5, ?4, ?6, ?7);

-- name: tell
UPDATE alerts SET told_count = times, told_at = ?3, messages = messages + 1, ended_at = ?4, ended = ?5
WHERE seq = ?1 AND messages = ?2 AND ended_at IS NULL AND (?5 IS NULL OR times = ?6);

-- name: mute
UPDATE alerts SET muted_until = ?2, muted_by = ?3, note = ?4 WHERE seq = ?1 AND ended_at IS NULL;

-- name: add_message
INSERT INTO alert_messages (alert_seq, channel, key, document, made_at, due_at) VALUES (?1, ?2, ?3, ?4, ?5, ?5);

-- name: pending
SELECT channel, count(*) FROM alert_messages WHERE ended_at IS NULL GROUP BY channel;

-- name: sent_since
-- Those of the future were sent under a clock that was ahead: they count no more.
SELECT count(*), min(ended_at) FROM (
    SELECT ended_at FROM alert_messages
    WHERE channel = ?1 AND ended_at > ?2 AND ended_at <= ?3 AND ended = 'sent'
    ORDER BY ended_at DESC LIMIT ?4
);

-- name: hold
-- One that was cut off may have been taken: it goes again under its key, by which the receiver can tell.
UPDATE alert_messages SET held = 1 WHERE channel = ? AND ended_at IS NULL AND (tries = 0 OR error <> '');

-- name: held
SELECT seq, document FROM alert_messages WHERE channel = ? AND ended_at IS NULL AND held = 1 ORDER BY seq;

-- name: recoveries
-- Those that nobody may have got, and before which nothing else of their alert goes.
SELECT seq, document FROM alert_messages
WHERE seq IN (SELECT min(seq) FROM alert_messages WHERE channel = ? AND ended_at IS NULL GROUP BY alert_seq)
    AND tries = 0 AND document ->> 'news' = 'recovered'
ORDER BY seq;

-- name: next_message
-- Of an alert only the first message may go: that it has recovered must not overtake that it failed.
-- What is due, or claimed, later than any wait there is was so under a clock that was ahead.
SELECT seq, alert_seq, key, document, made_at, tries, error FROM alert_messages
WHERE seq IN (
        SELECT min(seq) FROM alert_messages WHERE channel = ?1 AND ended_at IS NULL
        GROUP BY CASE alert_seq WHEN 0 THEN -seq ELSE alert_seq END
    )
    AND (due_at <= ?2 OR due_at > ?3) AND (claimed_until IS NULL OR claimed_until <= ?2 OR claimed_until > ?3)
ORDER BY seq LIMIT 1;

-- name: next_due
SELECT min(max(due_at, coalesce(claimed_until, 0))) FROM alert_messages
WHERE seq IN (
    SELECT min(seq) FROM alert_messages WHERE channel = ?1 AND ended_at IS NULL
    GROUP BY CASE alert_seq WHEN 0 THEN -seq ELSE alert_seq END
);

-- name: claim
UPDATE alert_messages SET tries = tries + 1, claimed_until = ?2 WHERE seq = ?1;

-- name: end_message
UPDATE alert_messages SET ended_at = ?2, ended = ?3, claimed_until = NULL WHERE seq = ?1 AND ended_at IS NULL;

-- name: put_off
UPDATE alert_messages SET error = ?2, due_at = coalesce(?3, due_at), claimed_until = NULL WHERE seq = ?1 AND ended_at IS NULL;

-- name: drop_message
UPDATE alert_messages SET error = ?2, ended_at = due_at, ended = 'dropped', claimed_until = NULL WHERE seq = ?1 AND ended_at IS NULL;

-- name: release
UPDATE alert_messages SET claimed_until = NULL WHERE ended_at IS NULL AND claimed_until IS NOT NULL;

-- name: drop_unknown
UPDATE alert_messages SET ended_at = ?2, ended = 'dropped', error = 'no flow has this channel any more'
WHERE ended_at IS NULL AND channel NOT IN (SELECT value FROM json_each(?1));

-- name: withdraw
UPDATE alerts SET ended_at = ?2, ended = 'withdrawn'
WHERE ended_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM json_each(?1) AS kept WHERE kept.value ->> 0 = alerts.flow AND kept.value ->> 1 = alerts.rule
);

-- name: forget_expectations
DELETE FROM expectations WHERE NOT EXISTS (
    SELECT 1 FROM json_each(?1) AS kept WHERE kept.value ->> 0 = expectations.flow AND kept.value ->> 1 = expectations.rule
);

-- name: expectations
SELECT flow, rule, since, seen_at FROM expectations;

-- name: expect
INSERT INTO expectations (flow, rule, since, seen_at) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (flow, rule) DO UPDATE SET since = excluded.since, seen_at = excluded.seen_at;

-- name: seen
UPDATE expectations SET seen_at = ?3 WHERE flow = ?1 AND rule = ?2;

-- name: rename
UPDATE OR IGNORE alerts SET flow = ?2 WHERE flow = ?1 AND ended_at IS NULL;

-- name: rename_expectations
UPDATE OR IGNORE expectations SET flow = ?2 WHERE flow = ?1;

-- name: successes
SELECT queued_at, started_at, finished_at FROM runs WHERE state = 'succeeded' AND flow = ? ORDER BY seq DESC LIMIT ?;

-- name: prune
DELETE FROM alerts WHERE seq IN (SELECT seq FROM alerts WHERE ended_at <= ?1 LIMIT ?2);

-- name: prune_messages
-- Each step of the recursion jumps to the next channel of the index.
WITH RECURSIVE channels (name) AS (
    SELECT min(channel) FROM alert_messages WHERE ended_at IS NOT NULL
    UNION ALL
    SELECT (SELECT min(channel) FROM alert_messages WHERE ended_at IS NOT NULL AND channel > channels.name)
    FROM channels WHERE channels.name IS NOT NULL
)
DELETE FROM alert_messages WHERE seq IN (
    SELECT old.seq FROM channels CROSS JOIN alert_messages AS old ON old.channel = channels.name AND old.ended_at <= ?1
    LIMIT ?2
);

-- name: described
SELECT flow, owner, tags, description FROM described_flows;

-- name: describe
INSERT INTO described_flows (flow, owner, tags, description) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (flow) DO UPDATE SET owner = excluded.owner, tags = excluded.tags, description = excluded.description;

-- name: undescribe
DELETE FROM described_flows WHERE flow IN (SELECT value FROM json_each(?));
