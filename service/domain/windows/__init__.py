"""Windows: several events that start one run together, or the absence of one that starts it."""
