"""The way in: from an event to its runs on disk, and what follows their end."""
