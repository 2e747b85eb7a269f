"""How many events fill the open batches of a trigger's flows: a poll is as large as a batch.

A batch that opens and fills in one emit is written as its run, and needs no write to be claimed. So
a trigger whose source keeps unread events is asked for what the next batch lacks. It is only a
guess: whatever comes, the journal decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Appended, Entry, FiredRun, NewMember, NewRun
from turnout.service.project import AnyFlow

from .router import Routed


def to_prepare(entries: Iterable[Entry]) -> list[NewRun]:
    """Return a run for each batch that these entries fill if it opens with them.

    Each is a `prepared` run of the member that would make its batch full. Only flows whose runs
    have no key, order, class or condition can have one: those depend on the first member.
    """
    counts: dict[tuple[str, str], int] = {}
    made: list[NewRun] = []
    for entry in entries:
        for member in entry.members:
            if not _may_be_prepared(member):
                continue
            at = (member.flow, member.key or "")
            filled, counts[at] = divmod(counts.get(at, 0) + entry.count, member.settings.count)
            if filled:
                member.prepared = [_run_of(member) for _ in range(filled)]
                made += member.prepared
    return made


def _run_of(member: NewMember) -> NewRun:
    return NewRun(
        id=mint_id(),
        flow=member.flow,
        state=RunState.QUEUED,
        code_version=member.firing.code_version,
    )


def _may_be_prepared(member: NewMember) -> bool:
    is_batch = member.settings.kind == "batch" and member.key is not None
    is_plain = member.order_key is None and member.keys is None and member.priority is None
    return is_batch and is_plain and member.firing.conditions is None


def called_with(
    fired: FiredRun, flow: str, routed: Sequence[Routed], results: Sequence[Appended]
) -> tuple[Sequence[Event], dict[str, list[Any]]]:
    """Return what a prepared run is called with: the events of its members, and its arguments."""
    columns = routed[0].entry.columns
    if columns is not None:  # they come alone, and those of one window lie side by side
        first = fired.events[0] - results[0].event_seq
        part = slice(first, first + len(fired.events))
        ((_, _, bound),) = routed[0].members
        return columns[part], {name: values[part] for name, values in bound.items()}
    entries: dict[int, Routed] = {}
    for one, stored in zip(routed, results, strict=True):
        entries.setdefault(stored.event_seq, one)  # a later one is a duplicate of it
    members = [
        (own, bound)
        for seq in fired.events
        for member, own, bound in entries[seq].members
        if member.flow == flow
    ]
    names = members[0][1]
    return (
        [own for own, _ in members],
        {name: [bound[name] for _, bound in members] for name in names},
    )


class BatchFill:
    """Guesses how many events the open batch of one trigger's flow has."""

    def __init__(self) -> None:
        self._size = 0
        self._filled = 0
        self._due_at: datetime | None = None
        self.flows: Sequence[str] = ()

    def submitted(self, entries: Iterable[Entry]) -> None:
        """Count the events that are about to join batches; only those without `per=` count."""
        for entry in entries:
            for member in entry.members:
                if member.settings.kind == "batch" and member.key == "":
                    self._size, self.flows = member.settings.count, (member.flow,)
                    self._filled = (self._filled + entry.count) % self._size

    def serve(self, flows: Iterable[AnyFlow]) -> None:
        """Forget the batch of a flow that is not among these, or collects none any more."""
        served = {
            flow.name for flow in flows if flow.window is not None and flow.window.kind == "batch"
        }
        if not served.issuperset(self.flows):
            self._size = self._filled = 0
            self._due_at, self.flows = None, ()

    def joined(self, deadline: datetime | None) -> None:
        """Note when the open batch is due."""
        self._due_at = deadline

    def lacks(self, now: datetime) -> int:
        """Return how many events make the next batch full; 0 for a trigger without batches."""
        if self._due_at is not None and now >= self._due_at:
            self._filled = 0  # it has fired by its deadline
        return self._size - self._filled
