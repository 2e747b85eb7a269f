-- The links of approvals that were used, by a digest of each, until they end of themselves: a step that
-- is asked again (a retry from before it) is not answered by the link of the first time.
CREATE TABLE used_links (
    digest BLOB PRIMARY KEY,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
