-- When a run came to the end of its queue, in the numbers of runs: a run with an ordering key that an
-- operator has queued again comes after all that are there. NULL for a run that came once: its seq
-- says when. The indexes hold only what has come again, so that other runs pay nothing.
ALTER TABLE runs ADD COLUMN arrival INTEGER;
CREATE INDEX runs_by_arrival ON runs (flow, arrival) WHERE state = 'queued' AND arrival IS NOT NULL;
DROP INDEX runs_by_order;
CREATE INDEX runs_by_order ON runs (flow, order_key, coalesce(arrival, seq))
    WHERE state = 'queued' AND order_key IS NOT NULL;

ALTER TABLE run_keys ADD COLUMN arrival INTEGER;
CREATE INDEX run_keys_by_arrival ON run_keys (flow, place, key, arrival) WHERE arrival IS NOT NULL;
