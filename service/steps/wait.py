"""`sleep` and `wait_for`: a run waits for a time, or for an event of a trigger.

Not here: what all waits share (`durable_wait`), child runs (`children`), emitting (`emitting`), and
people (`approval`).
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta

import orjson

from turnout.service.domain import foreign
from turnout.service.domain.errors import MisplacedTask
from turnout.service.domain.event import Event
from turnout.service.domain.event_types import matches, pattern_of
from turnout.service.domain.match import as_text, field_of
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import Fail
from turnout.service.domain.task import Task
from turnout.service.domain.trigger import Trigger
from turnout.service.domain.units import format_duration, parse_duration
from turnout.service.governance import secrets
from turnout.service.journal.records import SLEEP, Opening, StepRecord

from .author_code import where
from .context import RunContext, current
from .durable_wait import Came, Wait, begun, host_of, refuse_thread, scope_for, to_its_end
from .recording import durable, store
from .scope import here
from .services import LeavesOut
from .step import StepCall
from .unawaited import to_await

Match = Mapping[str, object] | Callable[[Event], bool]
"""Which events end a wait: fields that must be equal (fast with many runs), or a function."""

_PAGE = 200
_OF_EVENTS = "event:"
"""How the topics of awaited events begin."""


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
        if current().services is not None:
            raise MisplacedTask(
                f"sleep({duration!r}), called at {where()}, is for the flow itself: call it "
                "before or after its tasks; in a task it is `asyncio.sleep`"
            )
        return asyncio.sleep(length.total_seconds())
    refuse_thread("sleep")
    call = StepCall(_SLEEP, scope, scope.next_key("sleep"), (), {})
    return to_await(to_its_end(Sleep(call, length)), "sleep")


class Sleep(Wait[None]):
    """A wait for a time."""

    def __init__(self, call: StepCall, length: timedelta) -> None:
        super().__init__(call)
        self.seen = None
        self._length = length

    async def read(self) -> None:
        """Do nothing: the journal has nothing but its record."""

    def is_open(self, known: StepRecord | None) -> bool:
        """Whether it has begun: nothing but time ends it."""
        return known is not None

    def begun(self) -> StepRecord:
        """Return the record of a sleep that begins now."""
        return begun(self.call, {}, self._length)

    def opening(self) -> None:
        """Return None: nothing ends it but time."""

    async def instead(self, dry_run: LeavesOut) -> None:
        """Sleep no time in a dry run."""
        dry_run.instead(self.call, "wait", f"sleep({format_duration(self._length)!r})")

    async def open(self, known: StepRecord | None) -> StepRecord:
        """Record the sleep."""
        return await store(self.call.context, known or self.begun())

    async def look(self, known: StepRecord) -> Came[None] | None:
        """Return None: nothing ends it but time."""

    def at_its_time(self, at: datetime) -> Came[None]:
        """Return that it is over."""
        return Came((math.inf, at.timestamp()))

    async def record_end(self, ended: StepRecord) -> None:
        """Record the end of the sleep."""
        await store(self.call.context, ended)


# ---------------------------------------------------------------- events


def event_topic(name: str, fields: Mapping[str, str]) -> str:
    """Return the topic of events awaited under `name` whose fields have these values."""
    return _OF_EVENTS + orjson.dumps([name, sorted(fields.items())]).decode()


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
    return to_await(to_its_end(EventWait(call, trigger.name, match, length)), "wait_for")


def _is_question(match: object) -> bool:
    return callable(match) and not inspect.iscoroutinefunction(match)


class EventWait(Wait[Event]):
    """A wait for an event that matches."""

    def __init__(
        self, call: StepCall, name: str, match: Match | None, length: timedelta | None
    ) -> None:
        super().__init__(call)
        self._name = name
        self._match = match
        self._length = length
        self._looked_at: int | None = None  # the last event, in this attempt
        self._found: Event | None = None

    def _fields(self) -> dict[str, str]:
        match = self._match
        if not isinstance(match, Mapping):
            return {}
        fields = {field: as_text(match[field]) for field in match}
        for field, text in fields.items():
            secrets.refuse_live(text, f"wait_for(match={field!r})")
        return fields

    def begun(self) -> StepRecord:
        """Return the record of a wait that begins now."""
        fields = self._fields()
        what = {"event": self._name, "match": fields} if fields else {"event": self._name}
        return begun(self.call, what, self._length)

    def opening(self) -> Opening:
        """Return the topic of the events that may match, and watch for them."""
        fields = self._fields()
        shape = (self._name, *sorted(fields))
        host_of(self.call).watch(shape)
        since = self.call.context.claimed.event_seq + 1
        return Opening(topic=event_topic(self._name, fields), shape=shape, since=since)

    async def look(self, known: StepRecord) -> Came[Event] | None:
        """Return the first event that matches, if it has come."""
        row = self.row
        after: int | None = self.call.context.claimed.event_seq
        if row is not None:
            after = None if row.woken is None else row.woken - 1
            self.seen = max(self.seen or 0, row.latest or 0)
        if after is None:
            return None
        after = max(after, self._looked_at or 0)
        match = self._match if callable(self._match) else self._fields()
        self._found, at = await _find(self.call, self._name, match, after)
        self._looked_at = at
        self.seen = max(self.seen or 0, at)
        return None if self._found is None else Came((at, 0), self._found)

    def release(self) -> None:
        """Leave the event that was found to the other waits of the run."""
        if self._found is not None:
            _taken(self.call).discard(_identity(self._found))


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
            identity = _identity(event)
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


async def close_left(context: RunContext) -> None:
    """Close the waits for events that a suspended run does not wait for any more.

    Branches that another one has ended have left them open: an event would run the flow for
    nothing. Their records stay, so that a branch that runs again opens its wait again.
    """
    suspended, services = None if context.root is None else context.root.suspended, context.services
    if suspended is None or services is None or not context.attempt_state.has_waits:
        return
    claim = context.claimed.claim
    rows = await services.journal.waits(claim.run_seq)
    left = [
        row.key
        for row in rows
        if row.topic.startswith(_OF_EVENTS) and row.key not in suspended.waits
    ]
    if left:
        await durable(
            context,
            lambda: services.journal.record_waits(claim, (), closes=left, now=services.now()),
        )


def _taken(call: StepCall) -> set[tuple[str, str, str]]:
    """Return the identities of the events that ended other waits of this run."""
    context = call.context
    if context.consumed is None:
        context.consumed = set()
        for known in context.claimed.recorded.values():
            if known.task == _WAIT_FOR.name and known.state == "succeeded":
                event = StepCall(_WAIT_FOR, call.scope, known.key, (), {}).recall(known)
                context.consumed.add(_identity(event))
    return context.consumed


def _identity(event: Event) -> tuple[str, str, str]:
    return (event.trigger, event.source, event.id)


def _event() -> Event:
    raise NotImplementedError


_SLEEP: Task[None] = Task(function=lambda: None, name=SLEEP, retry=RetryPolicy())
_WAIT_FOR: Task[Event] = Task(function=_event, name="wait_for", retry=RetryPolicy())
