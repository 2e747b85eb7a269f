"""Who may run now: the rules of flow control, one file each, and the gates that keep them.

* A gate decides by its own counts and the time it is given: no journal, no clock, no waiting.
* A run enters every gate or none; only its ordering key is held from its first ask (`Order`).
* What is counted are the runs that are inside; a gate made by a reload counts them anew.
* An ordering key is released by the run and token that hold it; letting go frees no running run.
* A run that is not yet written takes an ordering key only together with a slot.
* A rename unites the holders of a key. A flow pays nothing for a rule it does not declare.
"""
