"""The action `poll`: a flow waits for something outside that has to be asked whether it is ready.

Not here: the looks themselves, which run without the flow (`service.steps.polling`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar, TypeVarTuple, overload

from turnout.service.domain.errors import MisplacedTask, NotKept, SetupError
from turnout.service.domain.pending import Pending, PollTimeout, problem_of_check
from turnout.service.domain.task import Task
from turnout.service.domain.units import format_duration, parse_duration
from turnout.service.steps.author_code import where
from turnout.service.steps.context import current
from turnout.service.steps.durable_wait import refuse_thread, to_its_end
from turnout.service.steps.polling import Poll, as_poll
from turnout.service.steps.recorded_call import RecordedCall, name_of
from turnout.service.steps.scope import here
from turnout.service.steps.step import StepCall
from turnout.service.steps.unawaited import to_await

A = TypeVarTuple("A")
R = TypeVar("R")

MOST_ARGUMENT_BYTES = 16 * 1024
"""The most bytes of arguments, which are recorded with each look."""


@overload
def poll(
    check: Callable[[*A], Awaitable[R | Pending]],
    /,
    *args: *A,
    every: str | timedelta = ...,
    timeout: str | timedelta | None = ...,
) -> Coroutine[object, None, R]: ...
@overload
def poll(
    check: Callable[[*A], R | Pending],
    /,
    *args: *A,
    every: str | timedelta = ...,
    timeout: str | timedelta | None = ...,
) -> Coroutine[object, None, R]: ...
def poll(
    check: Callable[..., object],
    /,
    *args: object,
    every: str | timedelta = "5s",
    timeout: str | timedelta | None = "1h",
) -> Coroutine[object, None, Any]:
    """Look at something outside now and then until it is ready, and return what it came to.

    `report = await poll(exported, job, every="30s", timeout="2h")`. Between looks the run holds no
    slot and no memory, and the wait survives restarts. A look calls the check alone, not the flow.
    Only the last look is kept, and how many there were: `turnout show` says when the next one is.

    * `check`: a task, `async def` or `def`, at the top of a file. It returns a value, which ends
      the poll, or `Pending()`. Its `retry=`, `timeout=`, `limit=`, `fallback=` and pool are those
      of each look. `current().key()` in it is that of the look, the same if a crash repeats it
    * `args`: what the check is called with; small, since they are kept with each look: 16 KiB
    * `every`: how long after one look the next one starts, such as `"5s"`. The first is at once
    * `timeout`: how long to look, None for ever. The last look is at its end

    Raises `PollTimeout` (a `TimeoutError`) if the last look still found nothing, the error of a
    look once the check has no retries left, `NotKept` for arguments that cannot be kept or come to
    more than 16 KiB, `TypeError` for what is no task, `SetupError` for a task with `undo=` or
    `cache=`, and `MisplacedTask` in a task or a `def` flow. Outside a run it looks in a loop.

    ```python
    from turnout import Pending, event, flow, poll, retry, task


    @task(retry=retry(3, delay="1s"), timeout="10s")
    async def exported(job: str) -> str | Pending:
        done = True  # ask whether it is ready
        return f"{job}.csv" if done else Pending("half of it")


    @flow(on=event("export.wanted"))
    async def export(wanted: dict[str, str]) -> str:
        return await poll(exported, wanted["job"], every="30s", timeout="2h")
    ```
    """
    task = _checked(check)
    interval, length = parse_duration(every), None if timeout is None else parse_duration(timeout)
    if interval <= timedelta(0):
        raise SetupError(f"poll({task.name}, every={every!r}): write how long, such as '5s'")
    scope = here("poll")
    if scope is None:
        if current().services is not None:
            raise MisplacedTask(
                f"poll({task.name}, …), called at {where()}, is for the flow itself: call it "
                "outside its tasks"
            )
        return _look_plainly(task, args, interval, length)
    refuse_thread("poll")
    recorded = RecordedCall.of(task, args, {}, f"poll({task.name}, …)")
    size = len(recorded.arguments)
    if size > MOST_ARGUMENT_BYTES:
        raise NotKept(
            f"poll({task.name}, …): the arguments come to {size:,} bytes and are "
            f"kept with each look, at most {MOST_ARGUMENT_BYTES:,}; pass an id instead"
        )
    call = StepCall(as_poll(task), scope, scope.next_key("poll"), (task.name, *args), {})
    return to_await(to_its_end(Poll(call, recorded, task.name, interval, length)), "poll")


def _checked(check: object) -> Task[Any]:
    """Return the task a poll looks with; raises for what it cannot look with."""
    problem = problem_of_check(check)
    if problem is None:
        assert isinstance(check, Task)
        return check
    kind = SetupError if isinstance(check, Task) else TypeError
    raise kind(f"poll({name_of(check)}, …), called at {where()}: {problem}")


async def _look_plainly(
    task: Task[Any], args: tuple[Any, ...], every: timedelta, length: timedelta | None
) -> Any:
    """Look in a loop, outside any run."""
    loop = asyncio.get_running_loop()
    end = None if length is None else loop.time() + length.total_seconds()
    while True:
        value = task.function(*args)
        if task.is_async:
            value = await value
        if not isinstance(value, Pending) and value is not Pending:
            return value
        left = None if end is None else end - loop.time()
        if left is not None and length is not None and left <= 0:
            raise PollTimeout(f"polled {task.name!r} for {format_duration(length)}: nothing yet")
        seconds = every.total_seconds()
        await asyncio.sleep(seconds if left is None else min(seconds, left))
