"""Values and pure rules: events, runs, flows, triggers, retries and errors. No input, no output."""
