-- How the undo of an ended run went: `done`, or `failed` while some of it is left; NULL where there was
-- nothing to undo. And who cancelled a run; why is its `reason`.
ALTER TABLE runs ADD COLUMN undo TEXT;
ALTER TABLE runs ADD COLUMN cancelled_by TEXT;
UPDATE runs SET undo = iif(
    EXISTS (SELECT 1 FROM steps WHERE run_seq = runs.seq AND key >= '~undo' AND key < '~undp'
            AND state = 'failed'), 'failed', 'done')
WHERE state = 'failed'
    AND EXISTS (SELECT 1 FROM steps WHERE run_seq = runs.seq AND key >= '~undo' AND key < '~undp');
