-- What flows are expected to do (`expect_every=`, `deadline=`): `since` is when it was first asked,
-- `seen_at` the last success that was seen, or the last deadline that was judged. So nothing is judged
-- twice, or for the time before it was asked, and what retention deletes is not forgotten.
CREATE TABLE expectations (
    flow TEXT NOT NULL,
    rule TEXT NOT NULL,
    since INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (flow, rule)
) STRICT, WITHOUT ROWID;

-- What flows say of themselves, as far as they say anything: for filters and lists, also when no
-- service runs. `tags` is a JSON array.
CREATE TABLE described_flows (
    flow TEXT PRIMARY KEY,
    owner TEXT,
    tags TEXT NOT NULL,
    description TEXT
) STRICT, WITHOUT ROWID;
