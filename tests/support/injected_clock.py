"""The wall clock of a program under test: it is off by what a test says, also while it runs."""

from __future__ import annotations

from pathlib import Path

from turnout.service.domain.clock import TEST_CLOCK


class InjectedClock:
    """Sets the wall clock of programs that have `env`; the time that passes stays true."""

    def __init__(self, folder: Path, by: str = "+0s") -> None:
        self._file = folder / "clock"
        self.env = {TEST_CLOCK: str(self._file)}
        self.set(by)

    def set(self, by: str) -> None:
        """Set the clock: `+1d` is a day ahead of the true time, `-1h` an hour behind it."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(by)
        fresh.replace(self._file)
