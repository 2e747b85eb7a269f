"""From a queued run to its outcome: who may run now, under which claim, and what came of it."""
