"""One wait of a run, of whatever kind: recorded, opened, looked at, ended.

A wait suspends the run (`Suspend`): the run holds no memory and no slot. When it is due it starts
again, its recorded steps return at once, and it reaches the wait again. The wait is on disk before
the attempt ends, and so is everything that arrives meanwhile. In a `gather` the other branches
first run to their own end or wait.

The kinds are time and events (`wait`), child runs (`children`), people (`approval`) and what has to
be looked at (`polling`); `first` awaits several at once. Not here: waking the run (the journal does
it, in the commit that stores what was awaited).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import CoroutineType
from typing import Any, Generic, NamedTuple, TypeVar

import orjson

from turnout.service import pools
from turnout.service.domain.errors import MisplacedTask
from turnout.service.domain.payload import write_json
from turnout.service.journal import records
from turnout.service.journal.records import Opening, StepRecord

from .author_code import where
from .recording import durable
from .scope import Scope, here
from .services import LeavesOut, RunHost
from .step import StepCall
from .suspension import suspend

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Came(Generic[T]):
    """How a wait is over: with a value, or with an error to raise.

    `position` says when, as the journal counts: after which event, and whether after it or with
    it. What only time has ended comes after all that is in the journal, the earliest first.
    """

    position: tuple[float, float]
    value: T | None = None
    error: Exception | None = None


class Joining(NamedTuple):
    """A wait that is about to be opened together with others, or that `is_stored` already."""

    record: StepRecord
    opening: Opening | None = None
    is_stored: bool = False


class Wait(Generic[T]):
    """What a run waits for at one step.

    `seen` is the last event that was looked at and did not match, None if nothing but time can
    end the wait.
    """

    def __init__(self, call: StepCall) -> None:
        self.call = call
        self.seen: int | None = 0
        self.row: records.Wait | None = None  # what the journal has of it

    def recorded(self) -> StepRecord | None:
        """Return what is recorded of it, None if nothing is; raises if it was dropped."""
        known = self.call.recorded()
        if known is not None and known.state == "dropped":
            raise MisplacedTask(
                f"{self.call} was dropped, since another wait of its `first` came before it; call "
                f"{self.call.task.name}() again to wait anew"
            )
        return known

    async def read(self) -> None:
        """Read what the journal has of it, as far as `look` needs it."""
        run = self.call.context.claimed
        rows = await self.call.services.journal.waits(run.claim.run_seq, self.call.key)
        self.row = rows[0] if rows else None

    def is_open(self, known: StepRecord | None) -> bool:
        """Whether the journal knows what the wait is for."""
        return known is not None and self.row is not None

    def begun(self) -> StepRecord:
        """Return the record of the wait as it begins now."""
        raise NotImplementedError

    def opening(self) -> Opening | None:
        """Return what ends the wait, None if only time does."""
        raise NotImplementedError

    async def open(self, known: StepRecord | None) -> StepRecord:
        """Record and open the wait by itself."""
        known = known or self.begun()
        await record(self.call, known, self.opening())
        return known

    async def join(self, known: StepRecord | None, race: str) -> Joining:
        """Prepare to open the wait together with others, for the step `race`."""
        opening = self.opening()
        return Joining(known or self.begun(), opening and replace(opening, race=race))

    async def look(self, known: StepRecord) -> Came[T] | None:
        """Return how the wait is over by what is in the journal, None if it is not."""
        raise NotImplementedError

    def release(self) -> None:
        """Leave what `look` has found to the other waits of the run."""

    async def instead(self, dry_run: LeavesOut) -> Any:
        """Return what stands for the value in a dry run."""
        return dry_run.instead(self.call, "wait")

    def due_at(self, known: StepRecord) -> datetime | None:
        """Return when time brings the wait on, None if never."""
        return until(known)

    def position(self, known: StepRecord) -> tuple[float, float]:
        """Return the position of a wait that has ended already: before all that is still open."""
        return (-1, 0)

    async def recall(self, known: StepRecord) -> T:
        """Return the recorded value, or raise the recorded error."""
        call = self.call
        value: T = call.recall(known) if known.blob is None else await call.recall_blob(known)
        return value

    def time_is_over(self, known: StepRecord) -> Came[T] | None:
        """Return how the wait is over if its time is, else None."""
        at = until(known)
        if at is None or self.call.services.now() < at:
            return None
        return self.at_its_time(at)

    def at_its_time(self, at: datetime) -> Came[T]:
        """Return how the wait is over at its time."""
        error = TimeoutError(f"{self.call} waited until {at}")
        return Came((math.inf, at.timestamp()), error=error)

    async def record_end(self, ended: StepRecord) -> None:
        """Record the end of the wait by itself."""
        await record(self.call, ended)

    def ended(self, known: StepRecord, came: Came[T]) -> StepRecord:
        """Return the record of the end of the wait."""
        self.call.begin()
        if came.error is None:
            end = self.call.succeeded(came.value)
        else:
            end = self.call.failed(came.error)
        return replace(end, started_at=known.started_at, origin=known.origin)


async def to_its_end(wait: Wait[T]) -> T:
    """Wait: return the value, raise the error, or suspend the run."""
    call = wait.call
    if call.services.dry_run is not None:
        value: T = await wait.instead(call.services.dry_run)
        return value
    known = wait.recorded()
    if known is not None and known.state != "waiting":
        return await wait.recall(known)
    if known is not None:
        await wait.read()
    if known is None or not wait.is_open(known):
        known = await wait.open(known)
    came = await wait.look(known) or wait.time_is_over(known)
    if came is None:
        suspend({} if wait.seen is None else {call.key: wait.seen}, wait.due_at(known))
    ended = wait.ended(known, came)
    await wait.record_end(ended)
    call.done = ended  # an approval may be awaited again
    if came.error is not None:
        raise call.delivered()
    return came.value  # type: ignore[return-value]  # without an error it is one


def wait_of(awaitable: object) -> Wait[Any] | None:
    """Return the wait that an awaitable is and that has not begun, None if it is no wait."""
    if isinstance(awaitable, Wait):
        return awaitable
    if type(awaitable) is not CoroutineType or awaitable.cr_code is not to_its_end.__code__:
        return None
    found: Wait[Any] | None = inspect.getcoroutinelocals(awaitable).get("wait")
    return found if inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED else None


# ---------------------------------------------------------------- what the kinds share


def scope_for(name: str) -> Scope:
    """Return the scope that counts a wait; raises `MisplacedTask` if there is none."""
    scope = here(name)
    if scope is None:
        raise MisplacedTask(
            f"{name}(), called at {where()}, is for the flow itself: call it in a run, outside its "
            f"tasks"
        )
    refuse_thread(name)
    return scope


def refuse_thread(name: str) -> None:
    """Raise `MisplacedTask` in a `def` flow, which cannot await."""
    if pools.in_thread():
        raise MisplacedTask(
            f"{name}(), called at {where()}, is awaited; write the flow with `async def`"
        )


def host_of(call: StepCall) -> RunHost:
    """Return the service around the run; raises `MisplacedTask` if there is none."""
    host = call.services.host
    if host is None:
        raise MisplacedTask(f"{call.task.name}() needs a running service around the run")
    return host


def begun(call: StepCall, what: Mapping[str, Any], length: timedelta | None) -> StepRecord:
    """Return the record of a wait that starts now; `what` is shown to people."""
    now = call.services.now()
    note = dict(what)
    if length is not None:
        note["until"] = (now + length).isoformat()
    return StepRecord(
        key=call.key,
        task=call.task.name,
        state="waiting",
        tries=1,
        started_at=now,
        result=write_json(note),
        in_error_handler=call.in_error_handler,
        arguments=call.arguments,
    )


def until(known: StepRecord) -> datetime | None:
    """Return when a wait times out, None if never."""
    at = orjson.loads(known.result or b"{}").get("until")
    return None if at is None else datetime.fromisoformat(at)


async def record(call: StepCall, step: StepRecord, opening: Opening | None = None) -> None:
    """Record a wait and open it to what it waits for; without `opening` it is closed."""
    services = call.services
    claim = call.context.writing(call.key, opens_wait=opening is not None)
    await durable(
        call.context,
        lambda: services.journal.record_with(claim, step, opening=opening, now=services.now()),
    )
