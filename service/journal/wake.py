"""What a service that has gone idle has left for the command line."""

from __future__ import annotations

from .sqlite.next_wake import read_next_wake

__all__ = ["read_next_wake"]
