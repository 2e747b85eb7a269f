"""Durable waits: steps that end when time has passed or an event has arrived.

A wait suspends the run (`Suspend`): the run holds no memory and no slot. When it is due it starts
again, its recorded steps return at once, and it reaches the wait again. The wait is on disk before
the attempt ends, and so is everything that arrives meanwhile. In a `gather` the other branches
first run to their own end or wait.

Not here: waking the run (the journal does it, in the commit that stores what was awaited), child
runs (`children`), emitting (`emitting`), and people (`approval`).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import orjson

from turnout.service import pools
from turnout.service.domain import foreign
from turnout.service.domain.errors import MisplacedTask
from turnout.service.domain.event import Event
from turnout.service.domain.event_types import matches, pattern_of
from turnout.service.domain.match import as_text, field_of
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import Fail
from turnout.service.domain.task import Task
from turnout.service.domain.trigger import Trigger
from turnout.service.domain.units import parse_duration
from turnout.service.governance import secrets
from turnout.service.journal.records import Opening, StepRecord

from .author_code import where
from .recording import durable, store
from .scope import Scope, here
from .services import RunHost
from .step import StepCall
from .suspension import suspend
from .unawaited import to_await

Match = Mapping[str, object] | Callable[[Event], bool]
"""Which events end a wait: fields that must be equal (fast with many runs), or a function."""

_PAGE = 200


# ---------------------------------------------------------------- shared by all waits


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
        result=orjson.dumps(note),
        in_error_handler=call.in_error_handler,
        arguments=call.arguments,
    )


def until(known: StepRecord) -> datetime | None:
    """Return when a wait times out, None if never."""
    at = orjson.loads(known.result or b"{}").get("until")
    return None if at is None else datetime.fromisoformat(at)


async def end(
    call: StepCall,
    known: StepRecord,
    *,
    value: Any = None,
    error: Exception | None = None,
) -> Any:
    """Record how a wait ended, and return the value or raise the error."""
    call.begin()
    ended = call.succeeded(value) if error is None else call.failed(error)
    ended = replace(ended, started_at=known.started_at, origin=known.origin)
    await record(call, ended)
    call.done = ended  # an approval may be awaited again
    if error is not None:
        raise call.delivered()
    return value


async def record(call: StepCall, step: StepRecord, opening: Opening | None = None) -> None:
    """Record a wait and open it to what it waits for; without `opening` it is closed."""
    services = call.services
    claim = call.context.writing(call.key, opens_wait=opening is not None)
    await durable(
        call.context,
        lambda: services.journal.record_with(claim, step, opening=opening, now=services.now()),
    )


async def wait_on(call: StepCall, known: StepRecord, *, seen: int = 0) -> Any:
    """Continue to wait, unless the wait has timed out.

    `seen` is the last event that was looked at and did not match.
    """
    at = until(known)
    if at is not None and call.services.now() >= at:
        return await end(call, known, error=TimeoutError(f"{call} waited until {at}"))
    return suspend({call.key: seen}, at)


# ---------------------------------------------------------------- time


def sleep(duration: str | timedelta) -> Coroutine[object, None, None]:
    """Suspend the run for a time; it holds no slot and no memory meanwhile.

    `await sleep("3h")`. The wait survives restarts: it ends when the instant has come, or at the
    next start. Afterwards the body runs again from its first line. `await sleep(deadline - now)`
    returns at once if the deadline is past. Outside a run it is `asyncio.sleep`.

    * `duration`: how long, such as `"3h"`, `"500ms"`, or a `timedelta`

    Raises `SetupError` for what is no duration, and `MisplacedTask` in a task or a `def` flow.

    ```python
    from turnout import event, flow, sleep, task


    @task
    async def remind(customer: str) -> str:
        return f"reminded {customer}"


    @flow(on=event("cart.left"))
    async def cart(left: dict[str, str]) -> str:
        await sleep("1d")
        return await remind(left["customer"])
    ```
    """
    if isinstance(duration, timedelta):
        duration = max(duration, timedelta(0))  # the deadline is past when the run resumes
    length = parse_duration(duration)
    scope = here("sleep")
    if scope is None:
        return asyncio.sleep(length.total_seconds())
    refuse_thread("sleep")
    return to_await(
        _sleep(StepCall(_SLEEP, scope, scope.next_key("sleep"), (), {}), length), "sleep"
    )


async def _sleep(call: StepCall, length: timedelta) -> None:
    known = call.recorded()
    if known is None:
        known = begun(call, {}, length)
        await store(call.context, known)
    elif known.state != "waiting":
        call.recall(known)
        return
    at = until(known)
    if at is not None and call.services.now() < at:
        suspend({}, at)
    call.begin()
    await store(call.context, replace(call.succeeded(None), started_at=known.started_at))


# ---------------------------------------------------------------- events


def event_topic(name: str, fields: Mapping[str, str]) -> str:
    """Return the topic of events awaited under `name` whose fields have these values."""
    return "event:" + orjson.dumps([name, sorted(fields.items())]).decode()


def wait_for(
    trigger: Trigger, *, match: Match | None = None, timeout: str | timedelta | None = None
) -> Coroutine[object, None, Event]:
    """Wait for an event of a trigger and return it.

    `await wait_for(paid, timeout="2d")`. The run holds no slot meanwhile, and the wait survives
    restarts. Events count from when the run was queued, so one that arrives before the wait is
    seen. Each event ends one wait of a run.

    * `trigger`: a trigger that the flow names in `awaits=`
    * `match`: which events: `{"order": order.id}` wakes only runs whose path parameter or top-level
      field of the data is equal; a function of the event is asked in all runs that wait
    * `timeout`: how long, such as `"2d"`; for ever by default

    Raises `TimeoutError` after `timeout`, `Fail` for a trigger that the flow does not await, and
    `MisplacedTask` in a task or a `def` flow.

    ```python
    from turnout import event, flow, wait_for, webhook

    paid = webhook("/paid", verify="none")


    @flow(on=event("order.placed"), awaits=paid)
    async def place(order: dict[str, str]) -> str:
        try:
            payment = await wait_for(paid, match={"order": order["id"]}, timeout="2d")
        except TimeoutError:
            return "never paid"
        return f"paid by {payment.data['by']}"
    ```
    """
    scope = scope_for("wait_for")
    flow = scope.context.flow
    if flow is None or trigger not in flow.awaits:
        raise Fail(
            f"the flow waits for {trigger.name!r} and does not say so: name the trigger in "
            "@flow(awaits=[…]), so that it is watched"
        )
    if match is not None and not isinstance(match, Mapping) and not _is_question(match):
        raise TypeError(f'wait_for(match={match!r}): write {{"field": value}}, or a `def`')
    fields = dict(match) if isinstance(match, Mapping) else None
    call = StepCall(_WAIT_FOR, scope, scope.next_key("wait_for"), (trigger.name, fields), {})
    length = None if timeout is None else parse_duration(timeout)
    return to_await(_wait_for(call, trigger.name, match, length), "wait_for")


def _is_question(match: object) -> bool:
    return callable(match) and not inspect.iscoroutinefunction(match)


async def _wait_for(
    call: StepCall, name: str, match: Match | None, length: timedelta | None
) -> Event:
    known = call.recorded()
    if known is not None and known.state != "waiting":
        event: Event = call.recall(known)
        return event
    run, journal = call.context.claimed, call.services.journal
    fields = {field: as_text(match[field]) for field in match} if isinstance(match, Mapping) else {}
    for field, text in fields.items():
        secrets.refuse_live(text, f"wait_for(match={field!r})")
    shape = (name, *sorted(fields))
    rows = [] if known is None else await journal.waits(run.claim.run_seq, call.key)
    after: int | None = run.event_seq
    seen = 0
    if known is None or not rows:
        what = {"event": name, "match": fields} if fields else {"event": name}
        known = known or begun(call, what, length)
        host_of(call).watch(shape)
        topic = event_topic(name, fields)
        await record(call, known, Opening(topic=topic, shape=shape, since=run.event_seq + 1))
    else:
        after = None if rows[0].woken is None else rows[0].woken - 1
        seen = rows[0].latest or 0
    if after is not None:
        found, last = await _find(call, name, match if callable(match) else fields, after)
        seen = max(seen, last)
        if found is not None:
            await end(call, known, value=found)
            return found
    return await wait_on(call, known, seen=seen)  # type: ignore[no-any-return]  # it only raises, or ends with one


async def _find(
    call: StepCall, name: str, match: Callable[[Event], bool] | Mapping[str, str], after: int
) -> tuple[Event | None, int]:
    """Return the first matching event after `after` that no other wait of the run has taken.

    Also returns the last event that was looked at.
    """
    taken = _taken(call)
    journal, run_seq = call.services.journal, call.context.claimed.claim.run_seq
    pattern = pattern_of(name)
    while True:
        page = await journal.awaited(name, run_seq, after, _PAGE, is_pattern=pattern is not None)
        for after, event in page:
            if pattern is not None and event.trigger != name and not matches(pattern, event.type):
                continue
            identity = (event.trigger, event.source, event.id)
            if identity in taken:
                continue
            fits = (
                foreign.is_true("match=", foreign.ask(match, event.own()))
                if callable(match)
                else all(field_of(event, field) == value for field, value in match.items())
            )
            if fits:
                taken.add(identity)
                return event, after
        if len(page) < _PAGE:
            return None, after


def _taken(call: StepCall) -> set[tuple[str, str, str]]:
    """Return the identities of the events that ended other waits of this run."""
    context = call.context
    if context.consumed is None:
        context.consumed = set()
        for known in context.claimed.recorded.values():
            if known.task == _WAIT_FOR.name and known.state == "succeeded":
                event = StepCall(_WAIT_FOR, call.scope, known.key, (), {}).recall(known)
                context.consumed.add((event.trigger, event.source, event.id))
    return context.consumed


def _event() -> Event:
    raise NotImplementedError


_SLEEP: Task[None] = Task(function=lambda: None, name="sleep", retry=RetryPolicy())
_WAIT_FOR: Task[Event] = Task(function=_event, name="wait_for", retry=RetryPolicy())
