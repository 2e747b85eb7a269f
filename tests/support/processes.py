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

    def processes(self) -> list[str]:
        """Return the processes that live and have the mark, in words."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(NAME) == self.value and process.status() != "zombie":
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
            except psutil.Error:  # it has ended, or is another's
                continue
        return found
