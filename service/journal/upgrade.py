"""Upgrades of a journal: the one place that chooses the database they are made of."""

from __future__ import annotations

from .sqlite.migrations import Progress
from .sqlite.upgrading import read_upgrade_plan, upgrade

__all__ = ["Progress", "read_upgrade_plan", "upgrade"]
