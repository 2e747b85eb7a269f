-- Files that steps have attached to their run: under a name, with their content in a file beside the
-- journal (`blob`). The try that ended its step counts, so rows come and go with the step: they are
-- written with its record, and deleted when the step is, or when a new record takes its place.
CREATE TABLE artefacts (
    seq INTEGER PRIMARY KEY,
    run_seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    blob TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX artefacts_by_run ON artefacts (run_seq, key, name);
CREATE INDEX artefacts_by_blob ON artefacts (blob);

CREATE TRIGGER artefacts_of_deleted_step AFTER DELETE ON steps
BEGIN
    DELETE FROM artefacts WHERE run_seq = old.run_seq AND key = old.key;
END;

CREATE TRIGGER artefacts_of_replaced_step AFTER UPDATE OF superseded ON steps
WHEN old.superseded = 1 AND new.superseded = 0
BEGIN
    DELETE FROM artefacts WHERE run_seq = old.run_seq AND key = old.key;
END;
