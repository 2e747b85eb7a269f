"""The attempt that looks: a run that polls calls its check, and waits again.

Looks are made only where the run was suspended: then no other branch of it works. After a crash or
an error the flow runs first, and suspends anew; a look that was cut off is repeated with its key.
Not here: what is recorded of a poll, and the flow that waits for it (`polling`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from turnout.service.domain.error_groups import is_final
from turnout.service.domain.errors import FOREIGN, CodeChanged, as_exception
from turnout.service.domain.pending import Pending, PollTimeout
from turnout.service.domain.task import NO_FALLBACK, Task
from turnout.service.domain.units import format_duration
from turnout.service.journal.records import POLL, StepRecord

from .backoff import LONGEST_HELD_SECONDS, ends_attempt, next_try
from .context import RunContext
from .durable_wait import until
from .polling import Looks, called
from .recording import store
from .scope import Scope, current_scope
from .step import StepCall, fallback_of
from .suspension import suspend

LOOKS_AT_ONCE = 8
"""How many polls of one run look at the same time."""


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
    free = asyncio.Semaphore(LOOKS_AT_ONCE)
    failed_dependencies: dict[str, None] = {}

    async def look_at(known: StepRecord) -> StepRecord:
        async with free:
            one = _Look(context, scope, known)
            try:
                return await one.made()
            finally:
                failed_dependencies.update(dict.fromkeys(one.failed_dependencies))

    try:
        async with asyncio.TaskGroup() as tasks:
            looking = [tasks.create_task(look_at(known)) for known in due]
    except BaseExceptionGroup as failed:  # one that ends the attempt, as that of a step does
        raise failed.exceptions[0] from None
    looked = [each.result() for each in looking]
    run = context.claimed
    recorded = {**run.recorded, **{record.key: record for record in looked}}
    context.claimed = replace(run, recorded=recorded)
    if all(record.state == "waiting" and not Looks.of(record).lost for record in looked):
        await _suspend_again(context, tuple(failed_dependencies))


def _open_steps(context: RunContext) -> Iterator[StepRecord]:
    """Yield the steps at which the run waits."""
    for step in context.claimed.recorded.values():
        if step.state in ("waiting", "retrying"):
            yield step


def _is_due_poll(known: StepRecord, now: datetime) -> bool:
    return known.task == POLL and known.state == "waiting" and Looks.of(known).next <= now


async def _suspend_again(context: RunContext, failed_dependencies: Sequence[str]) -> None:
    """Suspend the run until the next look or the end of another wait, unless one is over now."""
    services, run = context.services, context.claimed
    assert services is not None
    waits = dict.fromkeys(run.polls, 0)
    open_steps = [*_open_steps(context)]
    left = {key for step in open_steps if step.task == POLL for key in Looks.of(step).left}
    if run.has_waits:
        found = await services.journal.waits(run.claim.run_seq)
        rows = [row for row in found if row.key not in left]
        if any(row.woken is not None for row in rows):
            return
        waits |= {row.key: 0 for row in rows}  # what comes from now on makes the run due
    now, due_at = services.now(), None
    for step in open_steps:
        if step.key in left:
            continue
        at = Looks.of(step).next if step.task == POLL else until(step)
        if at is not None and at <= now and step.task != POLL:
            return
        due_at = at if due_at is None or (at is not None and at < due_at) else due_at
    context.forget_log()
    suspend(waits, due_at, failed_dependencies=failed_dependencies)


class _Look:
    """One look: the tries of the check by its task's policy, and the record that it leaves."""

    def __init__(self, context: RunContext, scope: Scope, known: StepRecord) -> None:
        self._context = context
        self._scope = scope
        self._known = known
        self._looks = Looks.of(known)
        self.failed_dependencies: Sequence[str] = ()

    async def made(self) -> StepRecord:
        """Look; returns what is recorded: the poll waits on, has its value, or has failed."""
        key = f"{self._known.key}[{self._looks.count + 1}]"
        try:
            call = self._call(key)
        except CodeChanged as error:
            return await self._noted(replace(self._looks, lost=str(error)))
        refused, check = call.refusal(), call.task
        while True:
            if refused is None and check.limit is not None:
                refused = await call.take_slot()
            call.begin()
            if refused is not None:
                return await self._failed(call, refused)
            try:
                value = await called(call, key)
                end = _end(call, value)
            except FOREIGN as error:  # the check is the author's code
                failure = as_exception(error)
            else:
                return await self._saw(call, value, end)
            finally:
                call.leave_slot()
            if ends_attempt(call, failure):
                raise failure
            delay = next_try(call, failure)
            if delay is None:
                return await self._gave_up(call, failure)
            again = await self._again_in(call, failure, delay)
            if delay > LONGEST_HELD_SECONDS:
                return again
            await call.services.sleep(delay)

    def _call(self, key: str) -> StepCall:
        """Return the recorded call as the step `key`; raises `CodeChanged` if it is gone."""
        recorded = self._looks.call
        check, args, kwargs = recorded.load()
        if not isinstance(check, Task):
            raise CodeChanged(f"{recorded.name} is no task any more")
        call = StepCall(check, self._scope, key, args, kwargs)
        call.key = self._known.key  # its errors are those of the poll
        call.tries = self._looks.tries - 1
        return call

    async def _again_in(self, call: StepCall, failure: Exception, delay: float) -> StepRecord:
        """Record that a try of the look has failed, and when the next one is due."""
        call.failed(failure, again_in=delay)
        _leave_out(call)
        self.failed_dependencies = call.failed_dependencies
        assert call.not_before is not None
        return await self._noted(replace(self._looks, tries=call.tries + 1, next=call.not_before))

    async def _saw(self, call: StepCall, value: Any, end: StepRecord | None) -> StepRecord:
        """Record what a look has come to: its end, or that there is nothing yet."""
        if end is not None:
            return await self._ended(call, end)
        call.observe_pending()
        _leave_out(call)
        now, looks = call.services.now(), self._looks
        if looks.until is not None and now >= looks.until:
            return await self._failed(call, PollTimeout(_words(call, looks)))
        return await self._noted(looks.after(value if isinstance(value, Pending) else value(), now))

    async def _gave_up(self, call: StepCall, failure: Exception) -> StepRecord:
        """Record the end of a look without tries left: its task's fallback, or the error."""
        if call.task.fallback is not NO_FALLBACK and not is_final(failure):
            try:
                value = await fallback_of(call, failure)
                end = _end(call, value)
            except FOREIGN as error:  # a fallback is the author's code
                error.__context__ = error.__context__ or failure
                failure = as_exception(error)
            else:
                return await self._saw(call, value, end)
        return await self._failed(call, failure)

    async def _failed(self, call: StepCall, failure: Exception) -> StepRecord:
        record = call.failed(failure)
        call.delivered()  # the flow gets it from the record
        return await self._ended(call, record)

    async def _ended(self, call: StepCall, end: StepRecord) -> StepRecord:
        known = self._known
        record = replace(
            end,
            task=POLL,
            tries=self._looks.count + 1,
            started_at=known.started_at,
            in_error_handler=known.in_error_handler,
            arguments=known.arguments,
        )
        try:
            return await store(self._context, record, call.attached)
        finally:
            _leave_out(call)

    async def _noted(self, looks: Looks) -> StepRecord:
        self._looks = looks
        record = replace(self._known, result=looks.pack(), tries=max(1, looks.count))
        return await store(self._context, record)


def _end(call: StepCall, value: Any) -> StepRecord | None:
    """Return the record of a value, None for "not yet"; raises `NotKept`."""
    return None if isinstance(value, Pending) or value is Pending else call.succeeded(value)


def _leave_out(call: StepCall) -> None:
    """Discard what a look has attached, unless it is recorded with the end of the poll."""
    if call.attached is not None:
        call.attached.discard()
        call.attached = None


def _words(call: StepCall, looks: Looks) -> str:
    assert looks.until is not None
    said = f": {looks.said}" if looks.said else ""
    lasted = format_duration(looks.until - looks.since)
    return (
        f"{call} polled {looks.check!r} for {lasted}, and the last of {looks.count + 1} looks "
        f"found nothing yet{said}"
    )
