"""Finds processes by a mark in their environment, which whatever they start inherits."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped]  # no stubs

NAME = "TURNOUT_TEST_MARK"


@dataclass(frozen=True)
class Mark:
    """A mark of its own, to be given to a command: `env=mark.env`."""

    value: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def env(self) -> dict[str, str]:
        return {NAME: self.value}

    def found(self) -> list[psutil.Process]:
        """Return the processes that live and have the mark."""
        return [each for each in psutil.process_iter() if lives(each) and self._is_on(each)]

    def processes(self) -> list[str]:
        """Return the same in words."""
        return [str(each) for each in self.found()]

    def _is_on(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(NAME) == self.value)
        except psutil.Error:  # it has ended, or is another's
            return False


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that nobody has reaped yet has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
