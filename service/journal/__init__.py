"""The durable log of events, runs, steps and positions: the contract, and SQLite under it.

What it keeps at all times, and where that is done (in `sqlite/`):

1. A write returns only after commit and fsync: `Writer._wake` follows COMMIT.
2. Writes take effect in the order they were submitted, many to a commit: `apply._Group`.
3. A write that cannot be stored fails its own caller only: `Writer._write_singly`.
4. A write about a run compares its claim's token itself, or is refused: `steps`, `outcomes`.
5. A recorded step is a fact; only waits, tries and superseded errors change: `steps.RECORD`.
6. An event, its runs, decisions and positions are stored together, once: `append`, `dedupe`.
7. A position moves only from the value that its mover knows: `positions.Moves`.
8. Seqs grow in order of arrival, and none is given twice: `append`, `retention.keep_highest`. A run
   of an ordering key that is queued again gets the next number as its `arrival`: `operations`.
9. What ends a wait makes its run due in the transaction that stores it: `waits.wake`.
10. After a failed fsync nothing is tried again: `Writer.broken`, and the process ends.
"""
