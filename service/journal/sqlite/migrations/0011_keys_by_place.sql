-- A run keeps the key of each rule of its flow under the rule's place: {"limit": "alice"}; null
-- under a place means that the run has no key there. What was one key is that of the place `limit`.
DROP INDEX runs_by_limit;
ALTER TABLE runs RENAME COLUMN limit_key TO keys;
UPDATE runs SET keys = json_object('limit', short_key(keys)) WHERE keys IS NOT NULL;
UPDATE runs SET order_key = short_key(order_key) WHERE length(order_key) > 63;

ALTER TABLE runs ADD COLUMN priority INTEGER;  -- 1 high, 2 normal, 3 low; NULL: the flow has none

-- The keys of unfinished runs, so that the runs of one key are found without looking at others.
CREATE TABLE run_keys (
    flow TEXT NOT NULL,
    place TEXT NOT NULL,
    key TEXT NOT NULL,
    run_seq INTEGER NOT NULL,
    PRIMARY KEY (flow, place, key, run_seq)
) STRICT, WITHOUT ROWID;
INSERT INTO run_keys (flow, place, key, run_seq)
SELECT r.flow, k.key, k.value, r.seq FROM runs AS r INDEXED BY runs_by_state, json_each(r.keys) AS k
WHERE r.state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting') AND k.value IS NOT NULL;
