-- Columns and indexes get the words that the code and the pages use. An index with another name, or
-- another condition, is built anew.
ALTER TABLE runs RENAME COLUMN blames TO consecutive_crashes;
ALTER TABLE steps RENAME COLUMN spilled TO blob;
ALTER TABLE steps RENAME COLUMN aside TO in_error_handler;
ALTER TABLE steps RENAME COLUMN digest TO arguments_digest;
ALTER TABLE steps RENAME COLUMN called TO arguments;
ALTER TABLE cache RENAME COLUMN spilled TO blob;
ALTER TABLE events RENAME COLUMN effect TO after_run_action;

DROP INDEX steps_spilled;
CREATE INDEX steps_by_blob ON steps (blob) WHERE blob IS NOT NULL;
DROP INDEX cache_spilled;
CREATE INDEX cache_by_blob ON cache (blob) WHERE blob IS NOT NULL;
DROP INDEX events_effect;
CREATE INDEX events_with_action ON events (seq) WHERE after_run_action = 0;
DROP INDEX events_heard;
CREATE INDEX events_kept_for_waits ON events (accepted_at) WHERE unmatched = 2;

-- SQLite builds a table in memory for each `IN` with three or more values each time a statement
-- runs, also in the conditions of indexes and in CHECKs, which every write evaluates (measured: a
-- tenth of all instructions of the service). So conditions on states are written with OR.
DROP INDEX runs_due;
CREATE INDEX runs_due ON runs (due_at)
    WHERE state = 'scheduled' OR state = 'retrying' OR state = 'waiting';
DROP INDEX runs_ended;
CREATE INDEX runs_ended ON runs (finished_at)
    WHERE state = 'succeeded' OR state = 'cancelled' OR state = 'skipped';

-- A CHECK changes nothing that is stored, so its text may be replaced (https://sqlite.org/lang_altertable.html).
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql,
    'CHECK (state IN (''scheduled'', ''queued'', ''running'', ''retrying'', ''waiting'',
                                         ''succeeded'', ''failed'', ''cancelled'', ''skipped''))',
    'CHECK (state = ''running'' OR state = ''succeeded'' OR state = ''queued'' OR state = ''waiting''
        OR state = ''retrying'' OR state = ''failed'' OR state = ''cancelled'' OR state = ''skipped''
        OR state = ''scheduled'')')
WHERE type = 'table' AND name = 'runs';
UPDATE sqlite_schema SET sql = replace(sql,
    'CHECK (state IN (''succeeded'', ''failed'', ''retrying'', ''waiting''))',
    'CHECK (state = ''succeeded'' OR state = ''failed'' OR state = ''retrying'' OR state = ''waiting'')')
WHERE type = 'table' AND name = 'steps';
PRAGMA writable_schema = RESET;
