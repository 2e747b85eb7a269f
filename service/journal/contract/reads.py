"""What a journal promises to those who only read it.

Reads never wait for a writer, see whole transactions, and work while the service is down. Two reads
may see different moments.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from turnout.service.domain.breaker import StoredBreaker
from turnout.service.domain.event import Event
from turnout.service.domain.run import Run
from turnout.service.journal.records import (
    ApprovalAnswer,
    Arrival,
    AttemptRecord,
    Cached,
    ChildEnd,
    DueCount,
    Filter,
    InLine,
    OpenApproval,
    OpenStep,
    StepRecord,
    StoredArtefact,
    StoredBudget,
    StoredEvent,
    StoredOverride,
    StoredPause,
    StoredState,
    Wait,
)

from .alerts import AlertReads
from .windows import WindowReads


class RunReads(Protocol):
    """What steps and attempts read of runs."""

    async def run(self, run_id: str) -> Run | None:
        """Return one run by its id, or by a short form of it: 8 or more first or last characters.

        Raises `Ambiguous` for a short form that fits several runs.
        """

    async def child(self, run_id: str) -> ChildEnd | None:
        """Return the state and result of a child run; None when the journal does not have it."""

    async def steps(self, run_seq: int, *, at_most_bytes: int | None = None) -> list[StepRecord]:
        """Return a run's steps in the order they were first recorded, superseded ones too.

        Records of what would undo a step are left out. With `at_most_bytes`, results are left out
        once those before them come to so many bytes.
        """

    async def queue_positions(self, runs: Sequence[InLine]) -> list[int]:
        """Return the position of each run among the queued ones of its line, from 1 to a bound.

        Runs are counted in order of arrival.
        """

    async def due_counts(self, now: datetime) -> list[DueCount]:
        """Return for each flow with unfinished runs how many are due, or will be."""

    async def due_between(self, after: datetime, until: datetime) -> dict[str, int]:
        """Return, by flow, how many runs become due after one instant and until another."""

    async def is_polling(self) -> bool:
        """Whether any run polls, also while it waits for the next look."""

    async def open_steps(self, run_seqs: Sequence[int]) -> list[OpenStep]:
        """Return the steps at which these runs wait, up to a bound for all of them."""

    async def waits(self, run_seq: int, key: str | None = None) -> list[Wait]:
        """Return a run's open waits, or only that of the step `key`."""

    async def awaited(
        self, name: str, run_seq: int, after_seq: int, limit: int, *, is_pattern: bool = False
    ) -> list[tuple[int, Event]]:
        """Return the first events after `after_seq` that are awaited under `name`, with their seq.

        Events accepted before the run was queued are left out. With `is_pattern`, a `*` in the name
        stands for any characters.
        """

    async def cached(self, key: bytes, *, now: datetime) -> Cached | None:
        """Return the cached result of a key, unless it has expired."""

    async def breakers(self) -> list[StoredBreaker]:
        """Return the breakers of dependencies as they last changed, by name."""

    async def member_events(self, seqs: Sequence[int]) -> list[Event]:
        """Return the events of members of a window, by their seqs and in that order."""

    async def read_blob(self, name: str) -> bytes:
        """Return a large result; raises `JournalError` when it is gone or damaged."""

    async def artefacts(self, run_seq: int, limit: int) -> list[StoredArtefact]:
        """Return a run's artefacts in the order they were recorded, the last of each name."""

    def artefact(self, run_seq: int, name: str) -> StoredArtefact | None:
        """Return at once the artefact last recorded under a name; in any thread."""

    def blob_path(self, name: str) -> Path:
        """Return where stored content is, to be read only."""

    def blob_chunks(self, name: str) -> Generator[bytes, None, None]:
        """Yield stored content in parts; blocks.

        Raises `JournalError` when it is gone, and before the last part when it is damaged.
        """


class Reads(RunReads, WindowReads, AlertReads, Protocol):
    """What people see of events and runs."""

    async def runs(self, which: Filter) -> list[Run]:
        """Return matching runs, newest first, without results of more than 4 KiB."""

    async def event(self, event_id: str, *, source: str | None = None) -> list[StoredEvent]:
        """Return the events with this id, newest first: several when sources share it.

        Older ones are left out past a bound on memory; `source` selects among them. A short form
        (`domain.short_ids`) finds one of the newest 100,000 events; raises `Ambiguous`.
        """

    async def event_of(self, run_seq: int) -> StoredEvent | None:
        """Return the event of a run."""

    async def events(self, which: Filter) -> list[StoredEvent]:
        """Return matching events, newest first; `flow` and `state` select by their runs.

        Bodies, headers, parameters and extensions are left out.
        """

    async def arrivals(
        self,
        flow: str,
        triggers: Sequence[str],
        *,
        since: datetime,
        until: datetime,
        after_seq: int = 0,
        limit: int = 500,
    ) -> list[Arrival]:
        """Return the events of these triggers, and others that the flow has a run of, as they came.

        Those accepted from `since` on and before `until`, after a seq; fewer than `limit` where
        their bodies are large, none when there are no more. Runs of a replay are left out.
        """

    async def runs_beside(
        self, flow: str, *, since: datetime, accepted_since: datetime, until: datetime
    ) -> list[Arrival]:
        """Return the runs of a flow that count in a period and did not come with its events.

        Those accepted before `since` that were unfinished then, or accepted from `accepted_since`
        on; and replays of the period. Each comes with its event, in the order they were made. Runs
        that were refused, or have failed before they began, are left out.
        """

    async def typical_duration(self, flow: str, *, since: datetime) -> timedelta | None:
        """Return the median time from arrival to end of the flow's runs that have succeeded."""

    async def attempts(self, run_seq: int) -> list[AttemptRecord]:
        """Return the recorded attempts of a run, in order."""

    async def open_approvals(self, limit: int) -> list[OpenApproval]:
        """Return the approvals that wait for an answer, those asked first before others."""

    async def answers(self, run_seq: int) -> list[ApprovalAnswer]:
        """Return who has answered the approvals of a run, those of earlier attempts too."""

    async def due_runs(self, limit: int) -> list[Run]:
        """Return the runs that wait for an instant, those that are due first before others."""

    async def last_accepted(self) -> dict[str, datetime]:
        """Return when the last event of each trigger was accepted, of the newest 50,000 events."""

    async def flow_states(
        self, flow: str | None, limit: int, *, key: str | None = None
    ) -> list[StoredState]:
        """Return what a flow, or every flow, keeps between runs, by flow and key.

        With `key` only what is kept under it. What was cleared, or set to None, is left out.
        """

    async def count_states(self, flow: str, key: str | None) -> int:
        """Return how many values a flow keeps between runs, under a key or any."""

    async def count_cached(self, task: str | None) -> int:
        """Return how many results of a task, or of all tasks, are cached."""

    async def is_used(self, link: bytes) -> bool:
        """Return whether the approval link with this digest was used."""

    async def pauses(self, *, now: datetime) -> dict[str, StoredPause]:
        """Return the pauses that have not ended by `now`, by name."""

    async def budgets(self, *, now: datetime) -> list[StoredBudget]:
        """Return the budgets of which something is used, by name."""

    async def accepted_by_key(
        self, flow: str, rule_id: str, *, since: datetime, nth: int
    ) -> list[tuple[str, int, datetime | None]]:
        """Return how many runs a rate limit has accepted since then, the busiest key first.

        For each key (empty without keys) also when the `nth` latest of them was accepted.
        """

    async def queued_by_class(self, flows: Sequence[str]) -> dict[int, tuple[int, datetime]]:
        """Return how many runs of these flows are queued, by priority, and since when the first."""

    async def overrides(self, *, now: datetime) -> dict[str, StoredOverride]:
        """Return the limits that operators have set and that have not ended by `now`, by name."""

    def examine(self) -> AsyncIterator[tuple[str, str | None]]:
        """Yield (check, problem or None) pairs for `turnout doctor`, as each check ends.

        Checks the file's integrity, that no event misses its runs, that no (event, flow, replay)
        has two runs, that no step is recorded twice, and that all states are legal.
        """

    async def close(self) -> None:
        """Release files."""
