"""Log lines and metrics: what a service says of itself while it works."""
