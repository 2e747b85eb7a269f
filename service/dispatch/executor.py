"""The executor runs one attempt and returns an `Outcome`; it never raises for what a flow does.

Foreign code is called at a boundary: here any exception becomes an outcome. Only the errors of the
journal and a cancel from outside are raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from turnout.service.domain.error_groups import asked_pause, deciding, is_final, leaves
from turnout.service.domain.errors import (
    FOREIGN,
    ClaimLost,
    JournalBroken,
    JournalFull,
    message_of,
    words_of,
)
from turnout.service.domain.event import CALLED
from turnout.service.domain.resource import Resources
from turnout.service.domain.retry import delay_after
from turnout.service.domain.run import Outcome, RunError, RunState, Skip
from turnout.service.flowcontrol.gate import NamedGates
from turnout.service.governance import secrets
from turnout.service.journal.contract import Steps
from turnout.service.journal.records import ClaimedRun, RunMembers
from turnout.service.pools import Pools
from turnout.service.project import AnyFlow
from turnout.service.settings import Settings
from turnout.service.steps.attempt_state import AttemptState
from turnout.service.steps.branches import to_run_again
from turnout.service.steps.codec import encode_returned
from turnout.service.steps.compensation import conclude, ended_before
from turnout.service.steps.context import RunContext, open_attempt
from turnout.service.steps.dry_run import DryRun
from turnout.service.steps.failures import describe
from turnout.service.steps.items import asked_items, with_items
from turnout.service.steps.looking import look
from turnout.service.steps.polling import drop_left
from turnout.service.steps.recording import write_last_marks
from turnout.service.steps.services import RunHost, Services, Sleep
from turnout.service.steps.suspension import Suspend
from turnout.service.steps.wait import close_left
from turnout.service.telemetry.metrics import Metrics
from turnout.service.telemetry.traces import Tracer

from .dependency_outcome import dependency_outcome
from .file_check import FILE_TYPES, check_file_unchanged


class Executor:
    """Runs attempts: binds the arguments, calls the function in its pool, returns the outcome.

    Without a `tracer` nothing is traced.
    """

    def __init__(
        self,
        journal: Steps,
        pools: Pools,
        resources: Resources,
        settings: Settings,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        wall: Callable[[], datetime] | None = None,
        sleep: Sleep = asyncio.sleep,
        dry_run: DryRun | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._pools = pools
        self._resources = resources
        self._settings = settings
        self._now = now
        self.tracer = tracer
        self._services = Services(
            journal, pools, settings, metrics, now, wall or now, resources, sleep,
            dry_run=dry_run, tracer=tracer,
        )  # fmt: skip

    @property
    def grace(self) -> timedelta:
        """How long the code of a cancelled attempt has to end."""
        return self._settings.grace

    def set_host(self, host: RunHost) -> None:
        """Give runs access to the service: child runs, events, approval links."""
        self._services = replace(self._services, host=host)

    def use_limits(self, named: NamedGates) -> None:
        """Take the slots of tasks at these limits, which flows share."""
        self._services = replace(self._services, named=named)

    def renew(self) -> None:
        """Forget what flows have declared of budgets: they are loaded anew."""
        self._services = replace(self._services, budgets={})

    async def execute(
        self,
        run: ClaimedRun,
        flow: AnyFlow,
        state: AttemptState | None = None,
        is_stopped: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Run one attempt; raises only `ClaimLost` and `JournalBroken`.

        `is_stopped` tells whether a cancel comes from outside; by default every requested cancel of
        the task does. Any other cancel is the flow's own and ends only its run.
        """
        task = asyncio.current_task()
        assert task is not None
        is_stopped = is_stopped or (lambda: task.cancelling() > 0)
        with open_attempt(run, state or AttemptState(run), flow, self._services) as context:
            known = ended_before(run) if run.recorded else None
            if known is not None:
                return _with_log(await _concluded(context, flow, known), context)
            try:
                result, returned = await self._call(context, flow)
                if context.sequence is not None:
                    context.sequence.refuse_end()
            except (ClaimLost, JournalBroken):
                raise
            except asyncio.CancelledError as error:
                if is_stopped():
                    raise
                outcome = self._outcome_of(context, flow, error)  # cancelled by the flow itself
            except BaseException as error:  # noqa: BLE001  foreign code; sys.exit() too must not end the service
                _raise_journal_error(error)
                outcome = _suspended(context) or self._outcome_of(context, flow, error)
            else:
                outcome = _succeeded(context, result, returned)
            if task.cancelling() and not is_stopped():
                await _clear_cancels(task)
            outcome = _suspended(context) or outcome
            if context.durable_marks or outcome.state is RunState.FAILED:
                outcome = await _finished(context, flow, outcome)
            return _with_log(outcome, context)

    async def _call(self, context: RunContext, flow: AnyFlow) -> tuple[bytes | None, bytes | None]:
        if context.claimed.polls and context.claimed.was_waiting:
            await look(context)
        run = context.claimed
        if run.members is not None:
            run = await self._with_events(run, run.members)
        arguments = _bound(flow, run) if run.arguments is None else run.arguments
        if (run.event.type in FILE_TYPES or run.members is not None) and flow.binding.hands_path:
            await _check_files(run)
        if flow.binding.resources:
            arguments = {**arguments, **self._injected(flow)}
        try:
            value = await self._pools.call(
                flow.function,
                (),
                arguments,
                name=flow.words,
                pool=flow.pool,
                timeout_seconds=None if flow.timeout is None else flow.timeout.total_seconds(),
            )
            if context.pending_calls is not None:
                context.pending_calls.refuse_left()
        finally:
            if context.pending_calls is not None and context.pending_calls.is_left:
                await context.pending_calls.end(patiently=_suspended(context) is not None)
            if run.polls or context.polls:
                await drop_left(context)
            if context.ended_by:
                await close_left(context)
        return encode_returned(
            value,
            flow.binding.returns,
            called=run.may_be_awaited,
            max_bytes=self._settings.max_result_bytes,
            name=flow.words,
        )

    async def _with_events(self, run: ClaimedRun, members: RunMembers) -> ClaimedRun:
        """Return a windowed run with the events of its members, which its claim has left out."""
        if members.events is not None:
            return run
        events = await self._services.journal.member_events(members.seqs)
        return replace(run, members=replace(members, events=events))

    def _injected(self, flow: AnyFlow) -> Mapping[str, Any]:
        return {
            name: self._resources.get(resource) for name, resource in flow.binding.resources.items()
        }

    def _outcome_of(self, context: RunContext, flow: AnyFlow, error: BaseException) -> Outcome:
        """Return the outcome of an attempt that raised, by the flow's retry policy."""
        try:
            return self._decide(context, flow, error)
        except FOREIGN as broken:  # the error's class is the author's code
            words = f"(it cannot be read: {words_of(broken)})"
            unreadable = RunError(type(error).__name__, secrets.mask(words), None, "")
            return Outcome(state=RunState.FAILED, error=unreadable)

    def _decide(self, context: RunContext, flow: AnyFlow, error: BaseException) -> Outcome:
        decides = deciding(error)
        if any(isinstance(each, JournalFull) for each in leaves(error)):
            # The disk is full, the flow is not at fault: hand back the run, spend no attempt.
            return Outcome(state=RunState.QUEUED, counts=False)
        if isinstance(decides, Skip):
            return Outcome(state=RunState.SKIPPED, reason=secrets.mask(message_of(decides)))
        if flow.needs or asked_pause(error) is not None:
            not_spent = dependency_outcome(context, flow, error)
            if not_spent is not None:
                return not_spent
        outcome = Outcome(
            state=RunState.FAILED,
            error=describe(error),
            again=to_run_again(context, error),
            failed_dependencies=context.failed_dependencies(error),
        )
        items = asked_items(error)
        if is_final(error):
            return outcome if items is None else with_items(context.claimed, flow, error, outcome)
        delay = delay_after(flow.retry, context.attempt, error, now=self._services.wall())
        if delay is not None:
            outcome.state, outcome.due_at = RunState.RETRYING, self._now() + delay
        return outcome if items is None else with_items(context.claimed, flow, error, outcome)


def _bound(flow: AnyFlow, run: ClaimedRun) -> Mapping[str, Any]:
    """Return the arguments of a run: of its event, or of the members of its window."""
    if run.members is not None:
        return flow.bind_members(run.members.events or ())
    if flow.takes_list and run.event.type != CALLED:
        return flow.bind_members((run.event,))  # a member that did not fit, replayed
    return flow.bind(run.event)


async def _check_files(run: ClaimedRun) -> None:
    """Raise an error if a file of the run is another one than its event told of."""
    has_begun = run.attempt > 1 or run.crashes > 0 or bool(run.recorded)
    for event in (run.event,) if run.members is None else run.members.events or ():
        if event.type in FILE_TYPES:
            await asyncio.to_thread(check_file_unchanged, event, has_begun=has_begun)


async def _finished(context: RunContext, flow: AnyFlow, outcome: Outcome) -> Outcome:
    """Record durable marks and the end of a failed run; return the outcome."""
    if context.durable_marks:
        context.durable_marks.drop(outcome.again)
        await write_last_marks(context)
    if outcome.state is RunState.FAILED:
        failed_dependencies = outcome.failed_dependencies
        outcome = await _concluded(context, flow, outcome)
        outcome.failed_dependencies = failed_dependencies
    return outcome


async def _concluded(context: RunContext, flow: AnyFlow, outcome: Outcome) -> Outcome:
    """Undo a failed run and call its failure hook; either may suspend until a retry is due."""
    try:
        return await conclude(context, flow, outcome)
    except Suspend:
        return _suspended(context) or outcome


async def _clear_cancels(task: asyncio.Task[Any]) -> None:
    """Clear the cancels a flow requested of its own task, so that its outcome can be recorded."""
    while task.uncancel():
        pass
    with suppress(asyncio.CancelledError):  # a cancel that was not delivered yet
        await asyncio.sleep(0)


def _raise_journal_error(error: BaseException) -> None:
    """Raise a journal error that an author's task group has wrapped, if there is one."""
    for each in leaves(error):
        if isinstance(each, ClaimLost | JournalBroken):
            raise each from None


def _succeeded(context: RunContext, result: bytes | None, returned: bytes | None) -> Outcome:
    outcome = Outcome(RunState.SUCCEEDED, result, returned)
    if context.used_state is not None:
        outcome.state_write = context.used_state.write
    return outcome


def _suspended(context: RunContext) -> Outcome | None:
    """Return the outcome of an attempt that suspended, whatever its code raised afterwards."""
    suspend = None if context.root is None else context.root.suspended
    if suspend is None:
        return None
    return Outcome(
        state=RunState.WAITING if suspend.after is None else RunState.RETRYING,
        error=suspend.after,
        due_at=suspend.due_at,
        waits=suspend.waits,
        counts=False,
        failed_dependencies=suspend.failed_dependencies,
        repeats=bool(context.claimed.polls) and not context.attempt_state.changed,
    )


def _with_log(outcome: Outcome, context: RunContext) -> Outcome:
    lines = context.log_bytes()
    if lines is None:
        return outcome
    outcome.log = lines
    return outcome
