"""From a queued run to its outcome: whose turn it is, the claim, the attempt and its record.

* One loop decides. A queue's rows and counts are changed by its own methods only.
* A run executes only under a claim that is on disk, and is inside the gates from before the claim
  until its outcome is on disk, or being written where nothing waits for that outcome.
* Runs of a flow start in arrival order, due runs in turn with them; a run of an ordering key that
  an operator queues again arrives again, at the end. A blocked run blocks only the runs of its key.
  A command that queues or renames runs stops their flow until it is reread.
* Memory holds a window of each queue; what is evicted is read again, never held twice.
* A refused run is asked again when a run leaves the gate or at the instant the gate named.
"""
