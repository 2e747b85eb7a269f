"""Code that changes under a run is noticed by the sequence of the run's steps.

A run keeps the version of the code it was made under: the hash of its flow file, or the flow's
`version=`. While that is the same nothing is compared. Else a resumed run is followed past the
steps it has recorded: a new step in front of a recorded one, or an end without it, is refused by
name (decision 19). Not missed are steps that were called while an error was being handled
(`aside`), since nobody comes to them once the error is mended, and those in the branches of a
`gather` or `map`, which come to them in their own time or are ended early by one another. A step
that is recorded for other arguments is refused too: its result would be another one's.

Not here: `patched`, by which an author provides for a change, and changes no sequence shows.
"""

from __future__ import annotations

from collections.abc import Mapping

from turnout.service.domain.errors import CodeChanged
from turnout.service.journal.records import REGISTERED, Given, StepRecord
from turnout.service.telemetry.logs import get_logger

from .given_arguments import UNKNOWN

log = get_logger("turnout.steps")

PATCHED = "patched"
"""The task of the records that `patched` leaves."""

MARKS = (PATCHED, REGISTERED)
"""Tasks of records that are not steps: where they stand tells nothing."""


class Trail:
    """The recorded steps a resumed run has not come to again; `enforced` when the code changed."""

    __slots__ = ("_ahead", "_recorded", "_seen", "enforced")

    def __init__(self, recorded: Mapping[str, StepRecord], *, enforced: bool) -> None:
        self.enforced = enforced
        self._recorded = recorded
        self._seen: set[str] = set()
        self._ahead: dict[str, None] | None = None  # made when first asked for: few runs need it

    def visit(self, key: str) -> None:
        """Note that the run came to a step, or opened the branches, of this key."""
        self._seen.add(key)
        if self._ahead is not None:
            self._ahead.pop(key, None)

    def refuse(self, key: str) -> None:
        """Raise `CodeChanged` if the new step `key` comes where another one is recorded."""
        if not self.enforced or key in self._recorded:
            return
        missed = self.missed(key[: key.rfind("/") + 1])
        if missed is not None:
            raise CodeChanged(
                f"the code changed under this run: it now runs step {key!r} where step {missed!r} "
                f"is recorded; replay the event, put the old order back, or keep both ways with "
                f"`if patched(…)`"
            )

    def compare(self, known: StepRecord, given: Given, line: str | None) -> None:
        """Raise `CodeChanged` if a step is recorded for another call; with the same code, warn.

        There the arguments come from what code does not decide, such as a clock.
        """
        before = known.given
        if before is None or before.digest == given.digest or UNKNOWN in (
            before.digest, given.digest
        ):  # fmt: skip
            return
        if self.enforced:
            raise CodeChanged(
                f"the code changed under this run: step {known.key!r} is recorded for "
                f"{before.words} and is now called with other arguments, {given.words}; replay "
                f"the event, put the old order back, or keep both ways with `if patched(…)`"
            )
        log.warning(
            "step.arguments_differ",
            step=known.key,
            recorded=before.words,
            now=given.words,
            line=line,
            hint="the recorded result is used; read clocks and random numbers inside a task",
        )

    def refuse_end(self) -> None:
        """Raise `CodeChanged` if the flow returned without a step that is recorded."""
        missed = self.missed("") if self.enforced else None
        if missed is not None:
            raise CodeChanged(
                f"the code changed under this run: it ended without step {missed!r}, which is "
                f"recorded; replay the event, or keep the step for old runs with `if patched(…)`"
            )

    def missed(self, path: str) -> str | None:
        """Return a recorded step that comes before anything new in the scope `path`."""
        if self._ahead is None:
            self._ahead = {
                key: None
                for key, step in self._recorded.items()
                if key not in self._seen
                and not (step.aside or step.task in MARKS or key.startswith("~"))
            }
        return next((key for key in self._ahead if self._is_missed(key, path)), None)

    def _is_missed(self, key: str, path: str) -> bool:
        if not key.startswith(path):
            return False
        place, branch, _ = key[len(path) :].partition("[")
        return not branch or path + place not in self._seen
