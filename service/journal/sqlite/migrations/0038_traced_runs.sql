-- The runs of which spans were sent, so that the span of the run itself, which they are under, is sent
-- too, once it has ended and whatever happens until then. `ends` counts how often it was sent: an
-- operator may have a run tried again. `sent` is 1 once nothing is owed.
CREATE TABLE traced_runs (
    run_seq INTEGER PRIMARY KEY,
    ends INTEGER NOT NULL DEFAULT 0,
    sent INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX traced_runs_owed ON traced_runs (run_seq) WHERE sent = 0;
