"""Secrets, tokens, signed links, and who owns the service's files."""
