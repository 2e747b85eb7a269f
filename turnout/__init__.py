"""turnout: events in, flows run, nothing lost."""
