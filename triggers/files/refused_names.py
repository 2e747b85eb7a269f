"""Counts and logs names that a trigger does not take, once each for as long as they are there."""

from __future__ import annotations

from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from .file_version import displayed
from .plan import Plan

_NAMES_LOGGED = 3

log = get_logger("turnout.files")


class RefusedNames:
    """The names below one root that are not regular files or lie too deep."""

    def __init__(self, plan: Plan, emit: Emitter) -> None:
        self._plan = plan
        self._emit = emit
        self._names: set[str] = set()

    def add(self, names: set[str]) -> None:
        """Count and log those that are new."""
        if fresh := names - self._names:
            log.warning(
                "files.refused",
                root=displayed(self._plan.pattern.root),
                count=len(fresh),
                names=[displayed(name) for name in sorted(fresh)[:_NAMES_LOGGED]],
                reason=f"not a regular file (a link, a pipe), or more than {self._plan.max_depth} "
                "folders deep",
            )
            self._emit.reject("refused", len(fresh))
            self._names |= fresh

    def replace(self, names: set[str]) -> None:
        """Take what a walk of the whole folder refused: the others are gone."""
        self._names &= names
        self.add(names)
