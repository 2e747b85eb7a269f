-- One cursor of the journal for each class of a flow that declares `priority=`: the queued runs of a
-- class are found without looking at those of another. Other flows have no priority, and pay nothing.
CREATE INDEX runs_by_priority ON runs (flow, priority)
    WHERE state = 'queued' AND priority IS NOT NULL;

-- The flows whose queued runs all have a priority.
CREATE TABLE classed_flows (
    flow TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
