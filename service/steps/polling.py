"""Polling: a run waits for something outside by looking at it now and then.

A look is an attempt of the run without the code of its flow: the run is due, enters the gates of
its flow, calls the check with the arguments that are recorded, and waits again. Only the record of
the step changes: how many looks there were, when the next one is due, what the last one said. The
flow goes on in the attempt whose look has found a value or failed for good, or when another wait of
the run is over.

Not here: the attempt that looks (`looking`), and what authors call (`handlers.actions.poll`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import orjson

from turnout.service.domain.errors import CodeChanged
from turnout.service.domain.payload import write_json
from turnout.service.domain.pending import MOST_SAID, Pending
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.task import Task
from turnout.service.domain.unknown import Unknown
from turnout.service.governance import secrets
from turnout.service.journal.records import POLL, SLEEP, StepRecord

from .context import RunContext
from .durable_wait import Came, Joining, Wait, until
from .recorded_call import RecordedCall
from .recording import store
from .scope import current_scope, inside
from .services import LeavesOut
from .step import StepCall
from .suspension import Suspend

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What is recorded of a poll: what it calls, how often, and how far it is.

    `tries` is the number of the next try of the next look. `lost` says why the call could not be
    loaded any more. `left` are open waits that the flow no longer waits for.
    """

    check: str
    call: RecordedCall
    every: timedelta
    since: datetime
    until: datetime | None
    next: datetime
    last: datetime | None = None
    count: int = 0
    said: str = ""
    tries: int = 1
    lost: str = ""
    left: tuple[str, ...] = ()

    def pack(self) -> bytes:
        """Return the bytes the journal stores."""
        stored: dict[str, Any] = {
            POLL: self.check,
            "every": self.every.total_seconds(),
            "since": self.since.isoformat(),
            "next": self.next.isoformat(),
            "looks": self.count,
            "said": self.said,
            "tries": self.tries,
            "call": self.call.as_dict(),
        }
        if self.until is not None:
            stored["until"] = self.until.isoformat()
        if self.last is not None:
            stored["last"] = self.last.isoformat()
        if self.lost:
            stored["lost"] = self.lost
        if self.left:
            stored["left"] = self.left
        return write_json(stored)

    @classmethod
    def of(cls, known: StepRecord) -> Looks:
        """Return what is recorded of an open poll."""
        stored = orjson.loads(known.result or b"{}")
        last = stored.get("last")
        return cls(
            check=stored[POLL],
            call=RecordedCall.from_dict(stored["call"]),
            every=timedelta(seconds=stored["every"]),
            since=datetime.fromisoformat(stored["since"]),
            until=until(known),
            next=datetime.fromisoformat(stored["next"]),
            last=None if last is None else datetime.fromisoformat(last),
            count=stored["looks"],
            said=stored["said"],
            tries=stored["tries"],
            lost=stored.get("lost", ""),
            left=tuple(stored.get("left", ())),
        )

    def after(self, pending: Pending, now: datetime) -> Looks:
        """Return what is recorded after a look that found nothing."""
        at = now + self.every
        return replace(
            self,
            next=at if self.until is None else min(at, self.until),
            last=now,
            count=self.count + 1,
            said=secrets.mask(str(pending.said))[:MOST_SAID],
            tries=1,
        )


# ---------------------------------------------------------------- in the flow


class Poll(Wait[T]):
    """A wait for a value that looks find."""

    def __init__(
        self,
        call: StepCall,
        recorded: RecordedCall,
        check: str,
        every: timedelta,
        length: timedelta | None,
    ) -> None:
        super().__init__(call)
        self._recorded = recorded
        self._check = check
        self._every = every
        self._length = length

    async def read(self) -> None:
        """Do nothing: the journal has nothing but its record."""

    def is_open(self, known: StepRecord | None) -> bool:
        """Whether its looks make this very call; raises `CodeChanged` if that is impossible."""
        looks = None if known is None else Looks.of(known)
        if looks is None or looks.call != self._recorded:
            return False
        if looks.lost:
            raise CodeChanged(f"{self.call} cannot look any more: {looks.lost}")
        return True

    def begun(self) -> StepRecord:
        """Return the record of a poll that begins now; its first look is due at once."""
        now = self.call.services.now()
        looks = Looks(
            check=self._check,
            call=self._recorded,
            every=self._every,
            since=now,
            until=None if self._length is None else now + self._length,
            next=now,
        )
        return StepRecord(
            key=self.call.key,
            task=POLL,
            state="waiting",
            tries=1,
            started_at=now,
            result=looks.pack(),
            in_error_handler=self.call.in_error_handler,
            arguments=self.call.arguments,
        )

    def _opened(self, known: StepRecord | None) -> StepRecord:
        if known is None:
            record = self.begun()
        else:
            looks = replace(Looks.of(known), call=self._recorded, check=self._check, lost="")
            record = replace(known, result=looks.pack())
        context = self.call.context
        context.polls = {**context.polls, record.key: record}
        return record

    def opening(self) -> None:
        """Return None: nothing ends it but its looks."""

    async def open(self, known: StepRecord | None) -> StepRecord:
        """Record the poll, or what it looks with now."""
        return await store(self.call.context, self._opened(known))

    async def join(self, known: StepRecord | None, race: str) -> Joining:
        """Prepare to open it together with others."""
        return Joining(self._opened(known))

    async def look(self, known: StepRecord) -> Came[T] | None:
        """Return None: its looks record their end themselves."""

    def time_is_over(self, known: StepRecord) -> Came[T] | None:
        """Return None: the last look is the end of its time."""

    async def instead(self, dry_run: LeavesOut) -> Any:
        """Look once in a dry run, if all that the check is given is known."""
        call, (check, args, kwargs) = self.call, self._recorded.load()
        once = StepCall(check, call.scope, f"{call.key}[1]", args, kwargs)
        if not any(type(each) is Unknown for each in args):
            value = await called(once, once.key)
            if not isinstance(value, Pending) and value is not Pending:
                return value
        return dry_run.instead(call, "wait")

    def due_at(self, known: StepRecord) -> datetime | None:
        """Return when the next look is due."""
        return Looks.of(known).next if known.state == "waiting" else None

    def position(self, known: StepRecord) -> tuple[float, float]:
        """Return that what a look has found comes after all that is in the journal."""
        assert known.finished_at is not None
        return (math.inf, known.finished_at.timestamp())


def as_poll(check: Task[Any]) -> Task[Any]:
    """Return the task of the step of a poll, whose result is read as that of `check`."""
    return Task(function=check.function, name=POLL, retry=RetryPolicy())


async def called(call: StepCall, key: str) -> Any:
    """Call the check as the step `key`, in its pool."""
    pools = call.services.pools
    step_scope = inside(call.scope, key)
    outer = current_scope.set(step_scope)
    pools.steps += 1
    try:
        value = await call.in_pool()
        if step_scope.pending_calls is not None:
            step_scope.pending_calls.refuse_left()
        return value
    finally:
        call.take_attached(step_scope)
        pools.steps -= 1
        current_scope.reset(outer)
        if step_scope.pending_calls is not None and step_scope.pending_calls.is_left:
            await step_scope.pending_calls.end(patiently=False)


async def drop_left(context: RunContext) -> None:
    """Drop the polls of a suspended run that it does not wait for any more.

    Another branch has failed, say, and the flow went on without them. Other waits of that kind are
    noted with the polls that go on: their end does not bring the flow on.
    """
    suspended = None if context.root is None else context.root.suspended
    if suspended is None or context.services is None:
        return
    run, now = context.claimed, context.services.now()
    left = tuple(_left(run.recorded.values(), suspended))
    for key in {**dict.fromkeys(run.polls), **context.polls}:
        known = context.polls.get(key) or run.recorded[key]
        if known.state != "waiting":
            continue
        if key not in suspended.waits:
            await store(context, replace(known, state="dropped", finished_at=now))
        elif (noted := Looks.of(known)).left != left:
            await store(context, replace(known, result=replace(noted, left=left).pack()))


def _left(recorded: Iterable[StepRecord], suspended: Suspend) -> Iterator[str]:
    """Yield the open waits that a suspended run does not wait for, the polls aside."""
    due_at = suspended.due_at
    for step in recorded:
        if step.state != "waiting" or step.task == POLL or step.key in suspended.waits:
            continue
        is_awaited = step.task == SLEEP and due_at is not None and (until(step) or due_at) >= due_at
        if not is_awaited:
            yield step.key
