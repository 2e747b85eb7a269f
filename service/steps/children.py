"""Child runs: a run calls another flow and awaits its result.

The step and the child run are stored in one transaction, so the child starts exactly once, whatever
crashes. A run that waits for a child holds no slot, so flows may call each other under any limit.
The child's event has the type `turnout.flow.called` and one hop more than the caller's; its data is
the argument of the call. Not here: storing and starting the child (`intake.run_host`).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from turnout.service.domain.errors import NotKept, StepFailed, TooManyRuns
from turnout.service.domain.event import CALLED, MAX_HOPS, mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import FINISHED, Fail, Refused, RunState
from turnout.service.domain.task import Task
from turnout.service.governance import secrets
from turnout.service.journal.records import ChildEnd, StepRecord

from . import codec
from .branches import Branches
from .child_arguments import event_for
from .durable_wait import Came, Joining, Wait, begun, host_of, refuse_thread, to_its_end
from .mapping import MAX_BRANCHES
from .recording import durable, store
from .scope import Scope, here
from .services import LeavesOut
from .step import StepCall
from .suspension import Suspend, suspend_with
from .tracing import caused_by
from .unawaited import to_await


def call_flow(
    flow: Flow[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Coroutine[object, None, Any] | None:
    """Assign the key of a child run and return what awaits it; None for a plain call."""
    scope = here(flow.name)
    if scope is None:
        return None
    call = _step_call(flow, scope, scope.next_key(flow.name), args, kwargs)
    return to_await(to_its_end(ChildRun(call, flow)), flow.words)


def map_flow(
    flow: Flow[..., Any], items: Iterable[Any], limit: int
) -> Coroutine[object, None, list[Any]]:
    """Start a child run for every item, at most `limit` unfinished at once; results in order."""
    listed = list(items)
    if limit < 1 or len(listed) > MAX_BRANCHES:
        raise ValueError(f"{flow.name}.map: limit is 1 or more, items at most {MAX_BRANCHES:,}")
    scope = here(flow.name)
    if scope is None:
        return _map_plainly(flow, listed)
    refuse_thread(f"{flow.name}.map")
    branches = Branches(scope, f"{flow.name}.map")
    return to_await(_map(flow, branches, listed, limit), f"{flow.words}.map")


async def _map_plainly(flow: Flow[..., Any], items: list[Any]) -> list[Any]:
    results = []
    for item in items:
        value = flow.function(item)
        results.append(await value if inspect.isawaitable(value) else value)
    return results


async def _map(flow: Flow[..., Any], branches: Branches, items: list[Any], limit: int) -> list[Any]:
    """Collect ended children, start others up to the limit, and wait for those that run.

    The run resumes here each time a child ends, so children that still run must cost nothing.
    """
    branches.raise_again()
    context = branches.scope.context
    results: list[Any] = [_NOT_YET] * len(items)
    running, left = _what_is_left(flow, branches, items)
    scopes: list[Scope] = []

    async def work() -> None:
        for index in left:
            scope = branches.enter(index)
            scopes.append(scope)
            call = _step_call(flow, scope, scope.path[:-1], (items[index],), {})
            try:
                results[index] = await to_its_end(ChildRun(call, flow))
            except Suspend:
                running.append(index)
                return  # its child still runs and counts against the limit

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(max(limit - len(running), 1), len(items))):
                workers.create_task(work())
    except BaseExceptionGroup as failed:
        errors = failed.exceptions
    else:
        if running:
            noted = (_noted_for(branches, items), next(left, len(items)), tuple(running))
            context.attempt_state.progress[branches.key] = noted
            suspend_with(scopes, {f"{branches.key}[{index}]": 0 for index in running})
        for index, value in enumerate(results):
            if value is _NOT_YET:
                known = context.claimed.recorded[f"{branches.key}[{index}]"]
                results[index] = _step_call(flow, branches.scope, known.key, (), {}).recall(known)
        return results
    raise branches.failed(errors)


_NOT_YET: Any = object()


def _noted_for(branches: Branches, items: list[Any]) -> tuple[int, str]:
    """Return what the noted progress of an earlier attempt must be for to be valid in this one."""
    flow = branches.scope.context.flow
    return len(items), "" if flow is None else flow.code_version


def _what_is_left(
    flow: Flow[..., Any], branches: Branches, items: list[Any]
) -> tuple[list[int], Iterator[int]]:
    """Return the items whose children run, and those to look at: ended since, or not started.

    Raises `CodeChanged`, before it starts more, if a child was started for another item.
    """
    context, key, count = branches.scope.context, branches.key, len(items)
    run = context.claimed
    known = context.attempt_state.progress.pop(key, None)
    if known is not None and known[0] == _noted_for(branches, items):
        _, first_new, open_items = known
        running = [index for index in open_items if f"{key}[{index}]" in run.unwoken]
        woken = sorted(set(open_items).difference(running))
        return running, chain(woken, range(first_new, count))
    running, left = [], []
    for index in range(count):
        step = run.recorded.get(f"{key}[{index}]")
        if step is not None and context.sequence is not None and context.sequence.enforced:
            _step_call(flow, branches.scope, step.key, (items[index],), {}).recorded()
        if step is not None and step.state == "waiting" and step.key in run.unwoken:
            running.append(index)
        elif step is None or step.state != "succeeded":
            left.append(index)
    return running, iter(left)


_tasks: WeakKeyDictionary[Flow[..., Any], Task[Any]] = WeakKeyDictionary()


def _step_call(
    flow: Flow[..., Any], scope: Scope, key: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> StepCall:
    task = _tasks.get(flow)
    if task is None:
        task = Task(function=flow.function, name=flow.name, retry=RetryPolicy())
        _tasks[flow] = task
    return StepCall(task, scope, key, args, kwargs)


class ChildRun(Wait[Any]):
    """A wait for the end of a child run."""

    def __init__(self, call: StepCall, flow: Flow[..., Any]) -> None:
        super().__init__(call)
        self._flow = flow
        self._was_started = False

    async def instead(self, dry_run: LeavesOut) -> Any:
        """Start no child in a dry run."""
        return dry_run.instead(self.call, "start")

    async def read(self) -> None:
        """Do nothing: the claim has said whether it has ended."""

    def is_open(self, known: StepRecord | None) -> bool:
        """Whether the child was started: it is stored together with the step."""
        return known is not None

    async def open(self, known: StepRecord | None) -> StepRecord:
        """Start the child."""
        return await self._start(None)

    async def join(self, known: StepRecord | None, race: str) -> Joining:
        """Start the child, for the step `race`; one that is refused has failed."""
        try:
            return Joining(await self._start(race), is_stored=True)
        except (TooManyRuns, Refused):
            assert self.call.done is not None  # it is recorded
            return Joining(self.call.done, is_stored=True)

    async def _start(self, race: str | None) -> StepRecord:
        self._was_started = True
        try:
            return await _start(self.call, self._flow, race)
        except (TooManyRuns, Refused) as error:
            self.call.begin()
            self.call.done = await store(self.call.context, self.call.failed(error))
            raise self.call.delivered() from None

    async def look(self, known: StepRecord) -> Came[Any] | None:
        """Return the child's result, or how it failed, if it has ended."""
        call, run = self.call, self.call.context.claimed
        if self.row is None:
            is_over = not self._was_started and call.key not in run.unwoken
        else:
            is_over = self.row.woken is not None
        if not is_over:
            return None  # it has not ended, or its end makes the run due at once
        child = run.ended.get(call.key)
        if child is None:
            child = await call.services.journal.child(known.origin or "")
        if child is not None and child.state not in FINISHED:
            return None
        position = (0 if self.row is None else self.row.woken or 0, 1)
        return _result(call, child, position)


async def _start(call: StepCall, flow: Flow[..., Any], race: str | None) -> StepRecord:
    run = call.context.claimed
    cause = run.event
    if cause.hops >= MAX_HOPS:
        raise Fail(f"{call} would be the {MAX_HOPS + 1}th run in a chain: is it a cycle?")
    made = event_for(flow, call)
    found = secrets.find_live(made.body) or secrets.find_live(made.exact or b"")
    if found is not None:
        raise NotKept(
            f"{call}: an argument holds the value of secret {found!r}; call reveal() where the "
            f"value is used"
        )
    event = replace(
        made,
        id=mint_id(),
        source=f"/runs/{run.claim.run_id}",
        type=CALLED,
        time=call.services.now(),
        trigger=f"flow:{run.flow}",
        tenant=cause.tenant,
        extensions=caused_by(call.context) | dict(made.extensions),
        hops=cause.hops + 1,
        minted=True,
    )
    flow.bind(event)  # data the child refuses is the caller's error
    child = mint_id()
    record = replace(begun(call, {"run": child}, None), origin=child)
    host = host_of(call)
    claim = call.context.writing(call.key, opens_wait=True)
    await durable(call.context, lambda: host.start(claim, record, flow.name, event, race))
    return record


_GONE = (
    "the run it awaited is not in the journal any more: either it was pruned, or it came from a "
    "Kafka record that went to another member of the group before the run began"
)


def _result(call: StepCall, run: ChildEnd | None, position: tuple[float, float]) -> Came[Any]:
    if run is None:
        return Came(position, error=StepFailed(_GONE, type="gone"))
    if run.refused is not None:
        return Came(position, error=Refused(*run.refused))
    if run.state in (RunState.SUCCEEDED, RunState.SKIPPED):
        return Came(position, codec.decode_returned(run, call.task.returns, name=call))
    kind = str(run.state) if run.error is None else run.error.type
    message = f"the child run was {run.state}" if run.error is None else run.error.message
    return Came(position, error=StepFailed(f"{message} (run {run.id})", type=kind))
