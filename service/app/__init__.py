"""One process: wiring, start, stop, reload and watchdogs."""
