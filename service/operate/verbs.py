"""What an operator may do: one value for each verb, with the type of what it returns.

`Operator.do(verb)` carries a verb out, in the running service or on the journal of a stopped one;
a command's session does the same, over HTTP if a service is running. `plan(verb)` says what it
would do and does nothing: that is `--dry-run`, and the question before what cannot be taken back.
Reads are no verbs: they go straight to the journal.

A verb lives in four places. To add one:

1. Its value, here: what the operator says, and nothing that the service knows by itself.
2. Its handler and its plan, in this folder's module of its subject: functions under `@handles(…)`
   and `@plans(…)`.
3. Its row in `http/rest/routes.py`: method and path, which field of the value travels where, and
   the document it is answered with. The service reads requests by it, the command writes them.
4. Its command in `cli/`, which builds the value and prints the document (listed in
   `cli/__init__.py`); `cli/changes.py` gives it `--dry-run` and `--yes`.

`tests/operate/test_verbs.py` fails until there is all of it, and an example that travels.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, TypeVar

from turnout.service.domain.event import Event
from turnout.service.domain.run import Run
from turnout.service.domain.trigger import Receipt, Seek, SeekPlan
from turnout.service.journal.records import (
    Filter,
    StoredAlert,
    StoredOverride,
    StoredPause,
    StoredWindow,
    UsedLink,
)

R = TypeVar("R", covariant=True)


class Verb(Generic[R]):
    """Something an operator does; doing it returns an `R`."""

    __slots__ = ()

    needs_service: ClassVar[bool] = False
    """Whether it works in a running service only."""


# ---------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True)
class Cancel(Verb[Run]):
    """Cancel an unfinished run; a running one stops at its next await.

    It ends as `cancelled` at once, or after its undo (`undo` is `running` until then). Children
    it waits for are cancelled too and end first.
    Raises `NotFound`, `Refused` (it has ended, or is already being undone).
    """

    run_id: str
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class CancelAll(Verb[list[Run]]):
    """Cancel every matching unfinished run; skips those that end meanwhile."""

    which: Filter
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Retry(Verb[Run]):
    """Queue a finished run again; it resumes after its last recorded step or at `from_step`.

    If its undo failed, only the remaining steps of the undo run. A run that waits for its next
    try, or for that of a step, is tried now. The `mode=` of its flow counts as for a new run,
    unless `force` starts it beside what is under way. Raises `NotFound`, `Refused`.
    """

    run_id: str
    from_step: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class RetryAll(Verb[list[Run]]):
    """Queue every matching failed or cancelled run again."""

    which: Filter


@dataclass(frozen=True, slots=True)
class Answer(Verb[Run]):
    """Answer the approval a run waits for; `step` is its key if there are several.

    `by` is the name that was typed; `via` is what permits the answer, or `link`, if it was answered
    through one. Raises `NotFound`, `Refused`
    (none is open, or it was answered), `Expired` for a used link, `InvalidData` for fields other
    than those the flow asks for.
    """

    needs_service: ClassVar[bool] = True  # only the loaded flow knows the fields

    run_id: str
    _: KW_ONLY
    approved: bool
    fields: Any = None
    reason: str = ""
    by: str = ""
    step: str | None = None
    link: UsedLink | None = None
    via: str = "API token"


# ---------------------------------------------------------------- dead letters and events


@dataclass(frozen=True, slots=True)
class Drop(Verb[Run]):
    """Remove a dead letter from the list; it stays in the journal as a failed run."""

    run_id: str


@dataclass(frozen=True, slots=True)
class ReplayDead(Verb[list[str]]):
    """Run a dead letter's flow again, as a new run of its event, and drop the dead letter.

    Returns the new run. A run that is not undone stays a dead letter; it is replayed only with
    `not_undone`, else raises `Refused`.
    """

    run_id: str
    not_undone: bool = False


@dataclass(frozen=True, slots=True)
class Replay(Verb[list[str]]):
    """Run every flow of a stored event again; returns the new runs.

    The flows are those that the event started and, in a service, those it would start now. The id
    of a run stands for its flow alone, with the events of its window. `source` is needed where
    several sources have sent the id, `not_undone` while a run of the event is not undone. The
    `mode=` of a flow counts as for a new run, unless `force` starts the replay beside what is under
    way. Raises `NotFound`, `Refused`.
    """

    event_id: str
    source: str | None = None
    not_undone: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Emit(Verb[Receipt]):
    """Store an event from outside and start the flows with `on=event(TYPE)`."""

    needs_service: ClassVar[bool] = True

    event: Event


# ---------------------------------------------------------------- windows


@dataclass(frozen=True, slots=True)
class FireWindow(Verb[StoredWindow]):
    """Close an open window at once: its run starts with the events that it has.

    Raises `NotFound`, and `Refused` where it is closed, or its flow is not served.
    """

    needs_service: ClassVar[bool] = True  # the run is one of the loaded code

    window_id: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class DropWindow(Verb[StoredWindow]):
    """Close an open window without a run; its events get the decision `dropped`.

    Raises `NotFound`, and `Refused` where it is closed.
    """

    window_id: str
    by: str = ""


# ---------------------------------------------------------------- flows and triggers


@dataclass(frozen=True, slots=True)
class Pause(Verb[StoredPause]):
    """Pause a flow, a trigger or `EVERYTHING`, until `Resume` or for as long as it `lasts`.

    A paused flow's events are accepted and its runs wait; a paused trigger accepts no events. Under
    the pause of everything no flow starts a run and all events are accepted. One that is paused
    already gets the new end, note and author. Raises `NotFound`.
    """

    name: str
    lasts: timedelta | None = None
    note: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What was resumed: `flow:NAME`, `trigger:NAME` or `EVERYTHING`, and what waited behind it.

    `waiting` runs could start now but for the pause, the `oldest` since then; `discarded` of them
    were ended. `still` are the pauses under which something waits on.
    """

    name: str
    was_paused: bool = True
    waiting: int = 0
    oldest: datetime | None = None
    discarded: int = 0
    still: tuple[StoredPause, ...] = ()


@dataclass(frozen=True, slots=True)
class Resume(Verb[Resumed]):
    """End the pause of a flow, a trigger or `EVERYTHING`; also of what is no longer loaded.

    What waited runs; with `discard`, runs that have not begun end as `skipped`, reason `dropped`.
    To resume everything ends the pause of everything, not those of single flows and triggers.
    Raises `NotFound`; with `discard` also `Refused`, for what is not paused and for a trigger: what
    waits there is kept by its source.
    """

    name: str
    discard: bool = False
    by: str = ""


@dataclass(frozen=True, slots=True)
class SetLimit(Verb[StoredOverride]):
    """Override a limit for as long as it `lasts`; then the flow file holds again.

    `name` is that of a named limit (`limit:db`, or `db` in a service), or of a flow (`flow:bill`,
    `bill`), for another limit than its first one with its id: `bill/limit.2`. A higher count
    starts runs at once, a lower one stops none. Raises `NotFound`, `Refused` for a name that is
    both, `InvalidData` for a count below 1.
    """

    name: str
    count: int
    lasts: timedelta
    note: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class MuteAlert(Verb[StoredAlert]):
    """Tell no more of an open alert, for as long as it `lasts` or until it is over; that is told.

    Raises `NotFound`, `Refused` for one that is over.
    """

    alert: str
    lasts: timedelta | None = None
    note: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class ResetLimit(Verb[str]):
    """End what `SetLimit` began; returns the full name. Raises `NotFound`, `Refused`."""

    name: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class Fire(Verb[Receipt]):
    """Start a trigger's flows now, with an event of its kind that carries `data` (JSON).

    It is an event as any other; with `force` the `mode=` of a flow does not count, and its run
    starts beside what is under way: not the run of a window, which has other events too. Raises
    `InvalidData`, with nothing stored, if no flow accepts it.
    """

    needs_service: ClassVar[bool] = True

    name: str
    data: bytes = b"{}"
    force: bool = False


@dataclass(frozen=True, slots=True)
class SeekTrigger(Verb[SeekPlan]):
    """Move a trigger's position; `dry_run` only returns what would happen.

    The trigger is stopped meanwhile. Raises `NotFound`, and `Refused` for what is impossible.
    """

    name: str
    seek: Seek
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class ClearCache(Verb[int]):
    """Clear the cached results of one task, or of all with `cache=`; returns how many."""

    task: str | None = None


@dataclass(frozen=True, slots=True)
class ClearState(Verb[int]):
    """Clear what a flow keeps between runs, under one ordering key or all; returns how many values.

    The key is empty for a flow without `ordered_by=`. A run that has read the value and wants to
    keep another starts over, from none. Raises `NotFound` where nothing is kept.
    """

    flow: str
    key: str | None = None
    by: str = ""
