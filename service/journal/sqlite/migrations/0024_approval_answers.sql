-- Who has answered approvals: the name that was typed (`by`) and, apart from it, what permitted the
-- answer (`via`): a link, by the beginning of its digest, or a token. Kept as long as the run.
CREATE TABLE approval_answers (
    run_seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    at INTEGER NOT NULL,
    approved INTEGER NOT NULL,
    by TEXT NOT NULL,
    via TEXT NOT NULL,
    PRIMARY KEY (run_seq, key, at)
) STRICT, WITHOUT ROWID;
