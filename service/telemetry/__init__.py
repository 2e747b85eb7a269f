"""Log lines and metrics, with secrets masked."""
