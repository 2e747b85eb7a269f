"""Who may run now: slots, limits and ordering keys, counted in memory."""
