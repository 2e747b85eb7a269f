"""Changed code: a resumed run whose steps differ from its recorded ones fails as `code_changed`.

A run keeps the version of the code it was created with: the hash of its flow file, or the flow's
`version=`. While the version is the same, nothing is compared. Otherwise the sequence of its steps
is compared with the recorded one: a new step before a recorded one, or a return without a recorded
one, is refused by name. Two kinds of step may be missing: those called while an error was being
handled (`in_error_handler`), since a fixed error no longer leads to them, and those in the branches
of a `gather` or `map`, which run at their own pace or are ended early by each other. A step
recorded for other arguments is refused too: its result belongs to another call.

Not here: `patched`, with which an author allows for a change, and changes that leave the sequence
of steps as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from turnout.service.domain.errors import CodeChanged
from turnout.service.journal.records import (
    AGENT,
    HISTORY,
    ITEMS,
    REGISTERED,
    STATE,
    RecordedArguments,
    StepRecord,
)
from turnout.service.telemetry.logs import get_logger

from .recorded_arguments import UNKNOWN

log = get_logger("turnout.steps")

PATCHED = "patched"
"""The task of the records that `patched` leaves."""

MARK_TASKS = (PATCHED, REGISTERED, STATE, ITEMS, HISTORY, AGENT)
"""Tasks of the durable marks, which are not steps and not part of the sequence."""


class RecordedSequence:
    """The recorded steps a resumed run has not reached again; `enforced` if the code changed.

    `path` is that of the flow's own scope.
    """

    __slots__ = ("_ahead", "_path", "_recorded", "_seen", "enforced")

    def __init__(
        self, recorded: Mapping[str, StepRecord], *, enforced: bool, path: str = ""
    ) -> None:
        self.enforced = enforced
        self._path = path
        self._recorded = recorded
        self._seen: set[str] = set()
        self._ahead: dict[str, None] | None = None  # made when needed: few runs need it

    def visit(self, key: str) -> None:
        """Note that the run has reached the step, or the branches, with this key."""
        self._seen.add(key)
        if self._ahead is not None:
            self._ahead.pop(key, None)

    def refuse(self, key: str) -> None:
        """Raise `CodeChanged` if the new step `key` stands where another one is recorded."""
        if not self.enforced or key in self._recorded:
            return
        missed = self.missed(key[: key.rfind("/") + 1])
        if missed is not None:
            raise CodeChanged(
                f"the code changed under this run: it now runs step {key!r} where step {missed!r} "
                f"is recorded; replay the event, put the old order back, or keep both ways with "
                f"`if patched(…)`"
            )

    def compare(self, known: StepRecord, given: RecordedArguments, line: str | None) -> None:
        """Raise `CodeChanged` if the recorded step had other arguments; with the same code, warn.

        With the same code the arguments differ because they depend on a clock, say.
        """
        before = known.arguments
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
        """Raise `CodeChanged` if the flow returned without a recorded step."""
        missed = self.missed(self._path) if self.enforced else None
        if missed is not None:
            raise CodeChanged(
                f"the code changed under this run: it ended without step {missed!r}, which is "
                f"recorded; replay the event, or keep the step for old runs with `if patched(…)`"
            )

    def missed(self, path: str) -> str | None:
        """Return a recorded step that has to come before any new one in the scope `path`."""
        if self._ahead is None:
            self._ahead = {
                key: None
                for key, step in self._recorded.items()
                if key not in self._seen
                and not (step.in_error_handler or step.task in MARK_TASKS or key.startswith("~"))
            }
        return next((key for key in self._ahead if self._is_missed(key, path)), None)

    def _is_missed(self, key: str, path: str) -> bool:
        if not key.startswith(path):
            return False
        step, branch, _ = key[len(path) :].partition("[")
        return not branch or path + step not in self._seen
