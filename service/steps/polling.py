"""Polling: a run waits for something outside by looking at it now and then.

A look is an attempt of the run without the code of its flow: the run is due, enters the gates of
its flow, calls the check with the arguments that are recorded, and waits again. Only the record of
the step changes: how many looks there were, when the next one is due, what the last one said. The
flow goes on in the attempt whose look has found a value or failed for good, or when another wait of
the run is over.

Looks are made only where the run was suspended: then no other branch of it works. After a crash or
an error the flow runs first, and suspends anew; a look that was cut off is repeated with its key.
Not here: what authors call (`handlers.actions.poll`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import orjson

from turnout.service.domain.error_groups import is_final
from turnout.service.domain.errors import FOREIGN, CodeChanged, as_exception
from turnout.service.domain.pending import MOST_SAID, Pending, PollTimeout
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.task import NO_FALLBACK, Task
from turnout.service.domain.units import format_duration
from turnout.service.domain.unknown import Unknown
from turnout.service.governance import secrets
from turnout.service.journal.records import POLL, StepRecord

from .backoff import LONGEST_HELD_SECONDS, ends_attempt, next_try
from .context import RunContext
from .durable_wait import Came, Joining, Wait, until
from .kept_call import KeptCall
from .recording import store
from .scope import Scope, current_scope, inside
from .services import LeavesOut
from .step import StepCall, fallback_of
from .suspension import suspend

T = TypeVar("T")

LOOKS_AT_ONCE = 8
"""How many polls of one run look at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What is recorded of a poll: what it calls, how often, and how far it is.

    `tries` is the number of the next try of the next look. `lost` says why the call could not be
    loaded any more.
    """

    check: str
    call: KeptCall
    every: timedelta
    since: datetime
    until: datetime | None
    next: datetime
    last: datetime | None = None
    count: int = 0
    said: str = ""
    tries: int = 1
    lost: str = ""

    def pack(self) -> bytes:
        """Return the bytes the journal stores."""
        kept: dict[str, Any] = {
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
            kept["until"] = self.until.isoformat()
        if self.last is not None:
            kept["last"] = self.last.isoformat()
        return orjson.dumps(kept | ({"lost": self.lost} if self.lost else {}))

    @classmethod
    def of(cls, known: StepRecord) -> Looks:
        """Return what is recorded of an open poll."""
        kept = orjson.loads(known.result or b"{}")
        last = kept.get("last")
        return cls(
            check=kept[POLL],
            call=KeptCall.from_dict(kept["call"]),
            every=timedelta(seconds=kept["every"]),
            since=datetime.fromisoformat(kept["since"]),
            until=until(known),
            next=datetime.fromisoformat(kept["next"]),
            last=None if last is None else datetime.fromisoformat(last),
            count=kept["looks"],
            said=kept["said"],
            tries=kept["tries"],
            lost=kept.get("lost", ""),
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
        self, call: StepCall, kept: KeptCall, check: str, every: timedelta, length: timedelta | None
    ) -> None:
        super().__init__(call)
        self._kept = kept
        self._check = check
        self._every = every
        self._length = length

    async def read(self) -> None:
        """Do nothing: the journal has nothing but its record."""

    def is_open(self, known: StepRecord | None) -> bool:
        """Whether its looks make this very call; raises `CodeChanged` if that is impossible."""
        looks = None if known is None else Looks.of(known)
        if looks is None or looks.call != self._kept:
            return False
        if looks.lost:
            raise CodeChanged(f"{self.call} cannot look any more: {looks.lost}")
        return True

    def begun(self) -> StepRecord:
        """Return the record of a poll that begins now; its first look is due at once."""
        now = self.call.services.now()
        looks = Looks(
            check=self._check,
            call=self._kept,
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
            looks = replace(Looks.of(known), call=self._kept, check=self._check, lost="")
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
        call, (check, args, kwargs) = self.call, self._kept.load()
        once = StepCall(check, call.scope, f"{call.key}[1]", args, kwargs)
        if not any(type(each) is Unknown for each in args):
            value = await _called(once, once.key)
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


async def drop_left(context: RunContext) -> None:
    """Drop the polls of a suspended run that it does not wait for any more.

    Another branch has failed, say, and the flow went on without them.
    """
    suspended = None if context.root is None else context.root.suspended
    if suspended is None or context.services is None:
        return
    run, now = context.claimed, context.services.now()
    for key in {**dict.fromkeys(run.polls), **context.polls}:
        known = context.polls.get(key) or run.recorded[key]
        if key not in suspended.waits and known.state == "waiting":
            await store(context, replace(known, state="dropped", finished_at=now))


# ---------------------------------------------------------------- the attempt that looks


async def look(context: RunContext) -> None:
    """Look where a run that was suspended polls and a look is due.

    Suspends the run again, unless its flow has to go on: then it returns, and the flow finds in its
    recorded steps what the looks have found.
    """
    scope = current_scope.get()
    assert scope is not None and context.services is not None
    now = context.services.now()
    due = [known for known in _open_steps(context) if _is_due_poll(known, now)]
    if not due:
        return
    places = asyncio.Semaphore(LOOKS_AT_ONCE)
    blames: dict[str, None] = {}

    async def look_at(known: StepRecord) -> StepRecord:
        async with places:
            one = _Look(context, scope, known)
            try:
                return await one.made()
            finally:
                blames.update(dict.fromkeys(one.blames))

    async with asyncio.TaskGroup() as tasks:
        looking = [tasks.create_task(look_at(known)) for known in due]
    looked = [each.result() for each in looking]
    run = context.claimed
    recorded = {**run.recorded, **{record.key: record for record in looked}}
    context.claimed = run._replace(recorded=recorded)
    if all(record.state == "waiting" and not Looks.of(record).lost for record in looked):
        await _suspend_again(context, tuple(blames))


def _open_steps(context: RunContext) -> Iterator[StepRecord]:
    """Yield the steps at which the run waits."""
    for step in context.claimed.recorded.values():
        if step.state in ("waiting", "retrying"):
            yield step


def _is_due_poll(known: StepRecord, now: datetime) -> bool:
    return known.task == POLL and known.state == "waiting" and Looks.of(known).next <= now


async def _suspend_again(context: RunContext, blames: Sequence[str]) -> None:
    """Suspend the run until the next look or the end of another wait, unless one is over now."""
    services, run = context.services, context.claimed
    assert services is not None
    waits = dict.fromkeys(run.polls, 0)
    if run.has_waits:
        rows = await services.journal.waits(run.claim.run_seq)
        if any(row.woken is not None for row in rows):
            return
        waits |= {row.key: 0 for row in rows}  # what comes from now on makes the run due
    now, due_at = services.now(), None
    for step in _open_steps(context):
        at = Looks.of(step).next if step.task == POLL else until(step)
        if at is not None and at <= now and step.task != POLL:
            return
        due_at = at if due_at is None or (at is not None and at < due_at) else due_at
    context.forget_log()
    suspend(waits, due_at, blames=blames)


class _Look:
    """One look: the tries of the check by its task's policy, and the record that it leaves."""

    def __init__(self, context: RunContext, scope: Scope, known: StepRecord) -> None:
        self._context = context
        self._scope = scope
        self._known = known
        self._looks = Looks.of(known)
        self.blames: Sequence[str] = ()

    async def made(self) -> StepRecord:
        """Look; returns what is recorded: the poll waits on, has its value, or has failed."""
        looks = self._looks
        try:
            check, args, kwargs = looks.call.load()
            if not isinstance(check, Task):
                raise CodeChanged(f"{looks.call.name} is no task any more")
        except CodeChanged as error:
            return await self._noted(replace(looks, lost=str(error)))
        key = f"{self._known.key}[{looks.count + 1}]"
        call = StepCall(check, self._scope, key, args, kwargs)
        call.key = self._known.key  # its errors are those of the poll
        call.tries = looks.tries - 1
        refused = call.refusal()
        while True:
            if refused is None and check.limit is not None:
                refused = await call.take_place()
            call.begin()
            if refused is not None:
                return await self._failed(call, refused)
            try:
                return await self._saw(call, await _called(call, key))
            except FOREIGN as error:  # the check is the author's code
                failure = as_exception(error)
            finally:
                call.leave_place()
            if ends_attempt(call, failure):
                raise failure
            delay = next_try(call, failure)
            if delay is None:
                return await self._gave_up(call, failure)
            again = await self._again_in(call, failure, delay)
            if delay > LONGEST_HELD_SECONDS:
                return again
            await call.services.sleep(delay)

    async def _again_in(self, call: StepCall, failure: Exception, delay: float) -> StepRecord:
        """Record that a try of the look has failed, and when the next one is due."""
        call.failed(failure, again_in=delay)
        self.blames = call.blames
        assert call.not_before is not None
        return await self._noted(replace(self._looks, tries=call.tries + 1, next=call.not_before))

    async def _saw(self, call: StepCall, value: Any) -> StepRecord:
        """Record what a look has come to; raises `NotKept` for a value that cannot be kept."""
        if not isinstance(value, Pending) and value is not Pending:
            return await self._ended(call.succeeded(value))
        call.observe_pending()
        now, looks = call.services.now(), self._looks
        if looks.until is not None and now >= looks.until:
            return await self._failed(call, PollTimeout(_words(call, looks)))
        return await self._noted(looks.after(value if isinstance(value, Pending) else value(), now))

    async def _gave_up(self, call: StepCall, failure: Exception) -> StepRecord:
        """Record the end of a look without tries left: its task's fallback, or the error."""
        if call.task.fallback is not NO_FALLBACK and not is_final(failure):
            try:
                return await self._saw(call, await fallback_of(call, failure))
            except FOREIGN as error:  # a fallback is the author's code
                error.__context__ = error.__context__ or failure
                failure = as_exception(error)
        return await self._failed(call, failure)

    async def _failed(self, call: StepCall, failure: Exception) -> StepRecord:
        record = call.failed(failure)
        call.delivered()  # the flow gets it from the record
        return await self._ended(record)

    async def _ended(self, end: StepRecord) -> StepRecord:
        known = self._known
        record = replace(
            end,
            task=POLL,
            tries=self._looks.count + 1,
            started_at=known.started_at,
            in_error_handler=known.in_error_handler,
            arguments=known.arguments,
        )
        return await store(self._context, record)

    async def _noted(self, looks: Looks) -> StepRecord:
        self._looks = looks
        record = replace(self._known, result=looks.pack(), tries=max(1, looks.count))
        return await store(self._context, record)


async def _called(call: StepCall, key: str) -> Any:
    """Call the check as the step `key`, in its pool."""
    task, pools = call.task, call.services.pools
    step_scope = inside(call.scope, key)
    outer = current_scope.set(step_scope)
    pools.steps += 1
    try:
        value = await pools.call(
            task.function,
            call.args,
            call.kwargs,
            pool=task.pool,
            timeout_seconds=task.timeout_seconds,
            name=task.words,
            group="step",
        )
        if step_scope.pending_calls is not None:
            step_scope.pending_calls.refuse_left()
        return value
    finally:
        pools.steps -= 1
        current_scope.reset(outer)
        if step_scope.pending_calls is not None and step_scope.pending_calls.is_left:
            await step_scope.pending_calls.end(patiently=False)


def _words(call: StepCall, looks: Looks) -> str:
    assert looks.until is not None
    said = f": {looks.said}" if looks.said else ""
    lasted = format_duration(looks.until - looks.since)
    return (
        f"{call} polled {looks.check!r} for {lasted}, and the last of {looks.count + 1} looks "
        f"found nothing yet{said}"
    )
