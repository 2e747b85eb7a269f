-- Suspended runs by their ordering key: whether one may have read a state that was not used for long is
-- asked for each such state, whatever the number of unfinished runs. Those that are queued have an
-- index of their own.
CREATE INDEX runs_suspended_by_order ON runs (flow, order_key)
    WHERE (state = 'scheduled' OR state = 'retrying' OR state = 'waiting') AND order_key IS NOT NULL;
