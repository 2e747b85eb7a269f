"""From a queued run to its outcome: whose turn it is, the claim, the attempt and its record."""
