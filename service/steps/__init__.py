"""Inside a run: an attempt's context, its recorded steps, and how they wait, call and undo."""
