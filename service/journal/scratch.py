"""A journal in memory that decides the conditions of runs; the one place that chooses it."""

from __future__ import annotations

from .sqlite.scratch import ScratchJournal as ScratchJournal

__all__ = ["ScratchJournal"]
