-- A pause may end by itself, and says who paused and why.
ALTER TABLE paused ADD COLUMN until INTEGER;
ALTER TABLE paused ADD COLUMN note TEXT NOT NULL DEFAULT '';
ALTER TABLE paused ADD COLUMN by TEXT NOT NULL DEFAULT '';

-- Limits that operators have set for a while: instead of what a flow file says.
CREATE TABLE limit_overrides (
    name TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL,
    note TEXT NOT NULL,
    by TEXT NOT NULL
) STRICT, WITHOUT ROWID;
