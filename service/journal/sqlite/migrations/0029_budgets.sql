-- What runs have taken from budgets that flows share by name: each row counts until its period is
-- over (`until`). `most` and `period` are what the flow said that took it.
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
