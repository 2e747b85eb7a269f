"""The durable log of events, runs, steps and positions: the contract, and SQLite under it."""
