-- The breakers of what flows need (`needs=dependency(…)`), written at a change of state only.
CREATE TABLE breakers (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state = 'closed' OR state = 'open' OR state = 'probing'),
    generation INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    until INTEGER,
    down_since INTEGER,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
