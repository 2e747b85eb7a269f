-- The classes of queued runs (`priority=`). Runs of a flow that declares none have no priority.

-- name: unclassed
-- The flows among these (?1, a JSON array) whose queued runs may have no priority.
SELECT value FROM json_each(?1) WHERE value NOT IN (SELECT flow FROM classed_flows);

-- name: classify
-- The queued runs of a flow (?1) without a priority are of the normal class.
UPDATE runs SET priority = 2
WHERE seq IN (SELECT seq FROM runs INDEXED BY runs_by_state
    WHERE state = 'queued' AND flow = ?1 AND priority IS NULL);

-- name: add
INSERT INTO classed_flows (flow) VALUES (?1);

-- name: keep_only
-- Only these flows (?1, a JSON array) declare classes: new runs of others have no priority.
DELETE FROM classed_flows WHERE flow NOT IN (SELECT value FROM json_each(?1));
