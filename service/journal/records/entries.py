"""What `append` writes, and what it answers: events with their new runs, and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from turnout.service.domain.conditions import MODE_RULE, Conditions
from turnout.service.domain.decisions import Fact, Reason
from turnout.service.domain.event import Event
from turnout.service.domain.event_columns import EventColumns
from turnout.service.domain.run import Keys, Run, RunError, RunState, Start
from turnout.service.domain.waiting import Cause

if TYPE_CHECKING:
    from .windows import FiredRun, NewMember


class _Nothing(dict[str, Any]):
    """A mapping that stays empty; hashable, so that it may be the default of a field."""

    def __hash__(self) -> int:  # type: ignore[override]
        return 0

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("this mapping stays empty")


NOTHING: Mapping[str, Any] = _Nothing()

ORDER_RULE = "order"
"""The id by which the rule of ordering keys is told; a run has that key in a field of its own."""


@dataclass(slots=True)
class NewRun:
    """A run to insert with its event: queued, scheduled, already running, or a dead letter.

    A run started on insert (`running`) has claim token 1. `append` sets `seq`, which grows in
    arrival order. `token` is the number of its admission while it is inside the gates, else 0.
    `keys` are those of its flow's keyed rules, None if it has none; `priority` is its class.
    `conditions` are decided where it is stored; None for a flow that declares none.
    `starts` are written with a run that starts on insert: the throttles that count it.
    `window_seq` is the window whose members it is called with.
    """

    isolated: ClassVar[bool] = False
    cause: ClassVar[Cause] = Cause.NONE
    queued_at: ClassVar[datetime | None] = None
    resumes: ClassVar[bool] = False

    id: str
    flow: str
    state: RunState
    _: KW_ONLY
    order_key: str | None = None
    keys: Keys | None = None
    priority: int | None = None
    conditions: Conditions | None = None
    due_at: datetime | None = None
    error: RunError | None = None
    code_version: str = ""
    replay: int = 0
    seq: int = 0
    token: int = 0
    starts: Sequence[Start] = ()
    window_seq: int | None = None

    @property
    def has_class(self) -> bool:
        """Whether its flow declares classes; of a flow that is not loaded, whether it did."""
        return self.priority is not None or (self.keys is not None and ORDER_RULE in self.keys)

    def start_past_mode(self) -> None:
        """Start beside what is under way, as an operator wants it: no mode is asked."""
        if self.conditions is not None and self.conditions.mode is not None:
            self.conditions = self.conditions.past_mode()
            self.keys = {**(self.keys or {}), MODE_RULE: None}


@dataclass(frozen=True, slots=True)
class Decision:
    """Why an event did not simply start a run of a flow; see `domain.decisions`.

    `flow` is empty when the decision is about the event itself. `detail` is a sentence for people,
    `facts` what was asked and its answer.
    """

    flow: str
    reason: Reason
    detail: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(slots=True)
class Entry:
    """One event with what the router decided; `append` writes all of it or nothing.

    With `after_run_action` the event is listed by `due_actions()` once all its runs have ended.
    `awaited` is the name under which runs wait for such events, `topics` wakes those runs.
    `cancels` are the (flow, key) of earlier runs that the event cancels. `members` offer it to the
    windows of flows.

    With `columns` it is all of these events, of which `event` is the first, that are offered one
    behind the other and have nothing else.
    """

    event: Event
    runs: list[NewRun] = field(default_factory=list)
    decisions: Sequence[Decision] = ()
    after_run_action: bool = False
    _: KW_ONLY
    awaited: str | None = None
    topics: Sequence[str] = ()
    cancels: Sequence[tuple[str, str]] = ()
    members: Sequence[NewMember] = ()
    columns: EventColumns | None = None

    @property
    def count(self) -> int:
        """How many events it is."""
        return 1 if self.columns is None else len(self.columns)

    @property
    def is_idle(self) -> bool:
        """Whether it starts nothing, nor would, and no run can await it or be cancelled by it."""
        return (
            not self.runs
            and not self.members
            and self.awaited is None
            and not self.cancels
            and all(made.reason is not Reason.SHADOW for made in self.decisions)
        )


@dataclass(slots=True, kw_only=True)
class Appended:
    """What `append` did with an entry; `event_seq` is the first one of several events.

    For a duplicate only a decision is stored; `event_seq`, `event` and `runs` are those of the
    first delivery (no runs once they are pruned). `conflict`: same identity, another body.

    `refused` are the runs that conditions have refused, by id: they are stored as skipped. In
    `runs` the first run that was asked for the same stands for one that `unique` has refused.
    `cancelled` and `skipped` are older runs that the entry has ended; a cancelled one with steps to
    undo is queued for that. `decided` are the decisions about all of them.

    `windows` are the windows that the event has joined, by flow, and `deadline` is when the first
    of them is due; `fired` are the runs of windows that have fired, which are queued now.
    """

    event_seq: int
    event: str
    runs: tuple[str, ...] = ()
    duplicate: bool = False
    conflict: bool = False
    refused: Mapping[str, Decision] = NOTHING
    cancelled: Sequence[Run] = ()
    skipped: Sequence[Run] = ()
    decided: Sequence[Decision] = ()
    windows: Mapping[str, str] = NOTHING
    deadline: datetime | None = None
    fired: Sequence[FiredRun] = ()


@dataclass(slots=True, kw_only=True)
class Retried:
    """What `retry` did: the run as it is now, and the runs that it ended, as in `Appended`."""

    run: Run
    cancelled: Sequence[Run] = ()
    skipped: Sequence[Run] = ()
    decided: Sequence[Decision] = ()


class Move(NamedTuple):
    """How a position of a trigger moves: from the `expected` value, None if it was not stored.

    To None: it is deleted.
    """

    expected: str | None
    to: str | None
