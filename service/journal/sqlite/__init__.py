"""The journal on SQLite: one writing thread, reading connections, and the statements between."""
