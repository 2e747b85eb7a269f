"""Tells up to when everything is known of a folder: all that lay there at a scan is emitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from turnout.service.domain.trigger import Emitter

from .file_emitter import FileEmitter


class Progress:
    """Waits, after each scan, for the files that it has found."""

    def __init__(self, emit: Emitter, files: FileEmitter, now: Callable[[], float]) -> None:
        self._emit = emit
        self._files = files
        self._now = now
        self._began: float | None = None
        self._left: list[str] = []

    def scanned(self, began: float, waiting: Sequence[str]) -> None:
        """Note a scan that began at an instant of the loop, and the files that wait since then."""
        self._began, self._left = began, [*waiting]

    def report(self) -> None:
        """Report the last scan once none of its files waits any more."""
        if self._began is None:
            return
        while self._left and self._left[-1] not in self._files:
            self._left.pop()
        if not self._left:
            self._emit.up_to_date(self._now() - self._began)
            self._began = None
