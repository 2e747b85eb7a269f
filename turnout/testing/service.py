"""Flows in a process of their own inside a test: real journal, real dispatcher, virtual clock.

Time stands still while anything runs and jumps to the next due instant when nothing does, so a
backoff of a day takes no time. What a service does by itself as time passes is done here too:
retention ends the dedupe window and prunes what is old, and timers tick in `advance`. What a test
calls a crash is one for the journal: nothing is written after it, and a new process opens the same
folder.

Not here: HTTP, triggers that watch (`events` makes what they would emit) and a full disk.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from turnout.service.app.process import ManualTrigger, Process
from turnout.service.domain.alerts import Channel, Message
from turnout.service.domain.clock import WallClock
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.handover import handed_over
from turnout.service.domain.payload import read_json
from turnout.service.domain.run import FINISHED, RunError, RunState, Undo
from turnout.service.domain.trigger import Receipt
from turnout.service.domain.units import parse_duration
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.contract import Journal
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import HISTORY, STATE, Filter, StepRecord
from turnout.service.operate.maintenance import INTERVAL_SECONDS, Maintenance
from turnout.service.operate.verbs import Answer, DropWindow, FireWindow
from turnout.service.project import AnyFlow, Project
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics

from .clock import START, Clock
from .death import Death, Mortal
from .decisions import find_decided, words_of
from .events import hand_event
from .timers import Ticks
from .told import Told
from .windows import Pending, have_listened, pending_of

_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
_HAND = "testing"
_LOOK_SECONDS = 0.0005
_PATIENCE_SECONDS = 30.0
_MOST_DUE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run as a test sees it, when it had ended or had nothing left to do but wait.

    * `id`: the run's id
    * `flow`: the flow's name
    * `state`: `"succeeded"`, `"failed"`, `"waiting"`, …
    * `result`: what the flow returned, as JSON gives it
    * `error`: why it failed, None if it did not
    * `attempts`: how many attempts ended
    * `crashes`: how often the process died under it in a row
    * `undo`: how what it did was undone, None if it was not: `"done"` or `"failed"`
    * `steps`: the recorded steps by key, such as `charge#1`, in the order they were first recorded
    * `took`: how long it took, in virtual time

    Raises nothing: it is a value.

    ```python
    from turnout import flow, task
    from turnout.testing import run


    @task
    async def charge(amount: int) -> str:
        return f"receipt-{amount}"


    @flow
    async def bill(amount: int) -> str:
        return await charge(amount)


    def test_bill() -> None:
        result = run(bill, 7)
        assert (result.state, result.result) == ("succeeded", "receipt-7")
        assert list(result.steps) == ["charge#1"]
    ```
    """

    id: str
    flow: str
    state: RunState
    result: Any
    error: RunError | None
    attempts: int
    crashes: int
    undo: Undo | None
    steps: Mapping[str, StepRecord]
    took: timedelta


class Service:
    """A service under test: real journal, real dispatcher, virtual time; made by `serve`.

    Its methods raise `AssertionError`, naming the fix, where a test asks for what cannot be. Raises
    what a start of the service raises: `SetupError` for flows that cannot be served.

    ```python
    from turnout import Skip, event, every, flow
    from turnout.testing import serve, typed_event


    @flow(on=event("order.placed"), when=lambda event: event.data["amount"] > 0)
    async def bill(order: dict[str, int]) -> int:
        return order["amount"]


    @flow(on=every("1h"))
    async def tidy() -> None:
        raise Skip("nothing to tidy")


    async def test_a_day() -> None:
        async with serve(bill, tidy) as service:
            (paid,) = await service.emit(typed_event(bill, {"amount": 3}))
            assert paid.result == 3
            await service.restart()  # as kill -9 would
            await service.advance("1d")
            free = typed_event(bill, {"amount": 0})
            assert await service.emit(free) == []
            await service.assert_decided(free, "filtered", flow=bill)
    ```
    """

    def __init__(self, flows: tuple[AnyFlow, ...], folder: Path, clock: Clock, chosen: Any) -> None:
        self.clock = clock
        self._flows = {flow.name: flow for flow in flows}
        self.folder = folder
        self._settings = Settings(data=folder, **({"min_free_bytes": 0} | chosen))
        self._started = asyncio.Event()
        self._stop = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._death = Death()
        self._died = False
        self._began_at = self._kept_up_at = clock.now()
        self._started_runs: set[str] = set()
        self._ended: dict[str, Result] = {}
        self.alerts: list[Told] = []

    # ------------------------------------------------------------ what a test does

    async def run(self, flow: AnyFlow, json: Any = None, *, crash_at: int | None = None) -> Result:
        """Run a flow for an event with `json` as its data, to its end.

        With `crash_at=n` the process dies when the n-th step has done its work and is not recorded
        yet, the worst moment there is; a new one goes on. It fails if there is no n-th step.
        """
        event = hand_event(json, at=self.clock.now())
        results = await self.emit(event, flow, crash_at=crash_at)
        if not results:
            raise AssertionError(
                f"flow {flow.name!r} waits for the end of its window: use service.emit(…), then "
                "service.advance(…)"
            )
        return results[0]

    async def emit(
        self, event: Event, flow: AnyFlow | None = None, *, crash_at: int | None = None
    ) -> list[Result]:
        """Emit an event to the flows its trigger feeds (or to `flow` alone); run what it starts.

        Runs that waited for it go on, too, as far as they come before time does.
        """
        self._death.after, self._died = crash_at or 0, False
        name = event.trigger if flow is None else _HAND
        receipt = (await self._emitter(name, flow)([event]))[0]
        if flow is not None and not (receipt.runs or receipt.windows):
            raise AssertionError(await self._why_not(receipt, flow))
        self._started_runs.update(receipt.runs)
        results = [await self.ended(run_id) for run_id in await self._begun(receipt)]
        await self._quiet()
        if crash_at is not None and not self._died:
            raise AssertionError(
                f"there was no step {crash_at} to crash at; recorded were "
                f"{', '.join(key for each in results for key in each.steps) or 'no steps'}: "
                "crash_at counts steps from 1, in the order they end"
            )
        return results

    async def _why_not(self, receipt: Receipt, flow: AnyFlow) -> str:
        """Return why an event did not start a flow, and what a test does about it."""
        refused = receipt.refusals.get(flow.name)
        if refused is not None:
            return f"flow {flow.name!r} refuses the data: {refused}; give it as the event's json"
        stored = await self.journal.event(receipt.event)
        told = "; ".join(words_of(made) for each in stored for made in each.decisions)
        return (
            f"flow {flow.name!r} did not start: {told or 'nothing was decided'}; where that is "
            "meant, emit the event and use service.assert_decided(event, reason, flow=…)"
        )

    async def _begun(self, receipt: Receipt) -> list[str]:
        """Return the runs of a receipt but those that wait for a window: `advance` fires it."""
        runs = [await self.journal.run(run_id) for run_id in receipt.runs]
        return [
            run.id
            for run in runs
            if run is not None and not (run.state is RunState.SCHEDULED and receipt.windows)
        ]

    async def answer(
        self,
        run_id: str,
        *,
        approved: bool = True,
        fields: Any = None,
        reason: str = "",
        by: str = "",
        step: str | None = None,
    ) -> Result:
        """Answer the approval a run waits for, as `turnout approve` does; go on as `ended` does."""
        await self.process.operator.do(
            Answer(run_id, approved=approved, fields=fields, reason=reason, by=by, step=step)
        )
        return await self.ended(run_id)

    async def ended(self, run_id: str) -> Result:
        """Go on until a run has ended, or waits for what no clock brings; return it."""
        while not await self._at_rest(run_id):
            due = await self._next_due_of_runs()
            if due is None:
                break
            await self._set(min(due, self._next_alert() or due))
        return await self.look(run_id)

    async def advance(self, duration: str | timedelta) -> None:
        """Let time pass, doing whatever is due on the way when it is due.

        Also the timers of the flows tick, as if started now: only here, since `run` and its like
        go on to what their own runs wait for, and no further.
        """
        end = self.clock.now() + parse_duration(duration)
        ticks = Ticks(self.process.project.triggers.values(), self.clock.now(), self._began_at)
        while True:
            await self._quiet()
            instants = (await self._next_due(), ticks.next_due())
            due = min((each for each in instants if each is not None), default=None)
            if due is None or due > end:
                break
            await self._set(due)
            await ticks.tick(due, self.process.emitters)
        await self._set(end)
        await self._quiet()

    async def restart(self) -> None:
        """Kill the process as `kill -9` would, and start another on the same journal."""
        await self._end()
        self._death, self._died = Death(), True
        await self._begin()

    async def look(self, run_id: str) -> Result:
        """Return a run as it is now; one that `emit` started also when it was pruned since."""
        run = await self.journal.run(run_id)
        if run is None and run_id in self._ended:
            return self._ended[run_id]
        if run is None:
            raise AssertionError(
                f"there is no run {run_id!r} in this service: take the id of a result, result.id"
            )
        document = run.as_dict()
        return Result(
            id=run.id,
            flow=run.flow,
            state=run.state,
            result=document["result"],
            error=run.error,
            attempts=run.attempts,
            crashes=run.crashes,
            undo=run.undo,
            steps={
                step.key: step
                for step in await self.journal.steps(run.seq)
                if step.task not in (STATE, HISTORY)
            },
            took=(run.finished_at or self.clock.now()) - run.queued_at,
        )

    async def runs(self, flow: AnyFlow | str) -> list[Result]:
        """Return the runs of a flow as they are now, in order of arrival; 1,000 at most.

        For what nobody emitted: ticks of timers, ends of windows, child runs, `emit`.
        """
        name = flow if isinstance(flow, str) else flow.name
        found = await self.journal.runs(Filter(flow=name, limit=1000))
        return [await self.look(run.id) for run in reversed(found)]

    async def pending(self, flow: AnyFlow | str | None = None) -> list[Pending]:
        """Return the open windows, of one flow or all, the first due first; 1,000 at most."""
        name = flow if flow is None or isinstance(flow, str) else flow.name
        return [pending_of(each) for each in await self.journal.windows(name, limit=1000)]

    async def fire(self, window: Pending) -> None:
        """Fire an open window now, as `turnout pending fire` does; its run has ended on return."""
        await self.process.operator.do(FireWindow(window.id, "a test"))
        await self._quiet()

    async def drop(self, window: Pending) -> None:
        """Drop an open window, as `turnout pending drop` does: its events start nothing."""
        await self.process.operator.do(DropWindow(window.id, "a test"))
        await self._quiet()

    async def state(self, flow: AnyFlow | str, *, key: str = "") -> Any:
        """Return what a flow keeps between runs (`current().state`), None if nothing.

        `key` is the text of its `ordered_by=` key.
        """
        name = flow if isinstance(flow, str) else flow.name
        state = self.journal.flow_state(name, key)
        return None if state is None else read_json(state.value)

    async def assert_decided(
        self, event: Event | str, reason: str, *, flow: AnyFlow | str | None = None, **facts: Any
    ) -> Mapping[str, Any]:
        """Assert that an event was decided for this reason; returns the decision.

        `await service.assert_decided(event, "filtered", flow=bill)`. Facts that are named must be
        those of the decision: `other=run.id`. Fails with all that was decided about the event.
        """
        stored = await self.journal.event(event if isinstance(event, str) else event.id)
        return find_decided(stored, reason, flow, facts)

    # ------------------------------------------------------------ when to go on

    async def _at_rest(self, run_id: str) -> bool:
        """Wait until nothing runs; return whether the run has ended or only somebody can go on."""
        await self._quiet()
        run = await self.journal.run(run_id)
        if run is None or run.state in FINISHED:
            return True
        return run.state is RunState.WAITING and await self._waits_for_somebody(run.seq)

    async def _waits_for_somebody(self, run_seq: int) -> bool:
        waits = await self.journal.waits(run_seq)
        return any(not wait.topic.startswith("run:") for wait in waits)

    async def _quiet(self) -> None:
        """Wait until every attempt is over or sleeps, bringing a dead process back to life."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                calm = 0
                while calm < (20 if self._queued() else 2):
                    if self._death.struck:
                        await self.restart()
                    elif self._life is not None and self._life.done():
                        await self._life  # raises why it ended
                    calm = calm + 1 if await self._is_calm() else 0
        except TimeoutError:
            raise AssertionError(await self._who_works()) from None

    async def _who_works(self) -> str:
        """Return which runs do not come to rest, and what a test does about it."""
        runs = [await self.journal.run(run_id) for run_id in self.process.dispatcher.running]
        names = ", ".join(sorted(f"{run.flow} ({run.id})" for run in runs if run is not None))
        return (
            f"after {_PATIENCE_SECONDS:g} s these runs still work: {names or 'none, but some wait'}"
            "; time stands still meanwhile, so wait with turnout's sleep(…), not with "
            "asyncio.sleep or time.sleep, and give tasks that call others something that answers"
        )

    def _queued(self) -> int:
        return self.journal.counts()[0].get("queued", 0)

    async def _is_calm(self) -> bool:
        """Whether nothing can happen before the clock goes on, as far as one look tells."""
        await asyncio.sleep(_LOOK_SECONDS)
        await self.journal.probe()  # behind every write that is on its way
        dispatcher, awake = self.process.dispatcher, self._awake()
        due = {run.seq for run in await self.journal.due(self.clock.now(), _MOST_DUE)}
        if not due <= dispatcher.known_due:
            dispatcher.recheck_due()
            return False
        begun = self.journal.counts()[0].get("running", 0) == len(dispatcher.running)
        waits_for_instant = dispatcher.next_alarm_at() is not None
        waits = bool(due or self._queued())
        may_start = not (dispatcher.running or waits_for_instant or dispatcher.at_rest)
        stuck = waits and may_start
        busy = (
            awake
            or self._awake()
            or self.process.after_run_actions.at_work
            or self.process.windows.at_work
            or self.process.alerts.at_work
        )
        return not (busy or self._death.struck or stuck) and begun

    def _awake(self) -> bool:
        asleep = set(self.clock.sleeping())
        return self.process.pools.steps > 0 or self.process.dispatcher.running != asleep

    async def _next_due(self) -> datetime | None:
        instants = [await self._next_due_of_runs(), self._next_alert()]
        return min((each for each in instants if each is not None), default=None)

    async def _next_due_of_runs(self) -> datetime | None:
        instants = [
            self.clock.next_due(),
            await self.journal.next_due_at(self.clock.now()),
            self.process.dispatcher.next_alarm_at(),
            self._next_window(),
        ]
        return min((each for each in instants if each is not None), default=None)

    def _next_window(self) -> datetime | None:
        """Return when the next window is due; one that is held open counts no more."""
        due = self.process.windows.next_due_at
        return None if due is None or due <= self.clock.now() else due

    def _next_alert(self) -> datetime | None:
        """Return when something is told by time alone; what is told now has been told."""
        due = self.process.alerts.next_due_at
        return None if due is None or due <= self.clock.now() else due

    async def _deliver(self, channel: Channel, message: Message) -> None:
        """Take a message in place of its channel."""
        self.alerts.append(Told(channel, message.title, message.text, message.document))

    async def _set(self, instant: datetime) -> None:
        self.clock.set(instant)
        if (self.clock.now() - self._kept_up_at).total_seconds() >= INTERVAL_SECONDS:
            await self._keep_up()
        self.process.dispatcher.clock_set()
        have_listened(self.process.emitters.values())
        self.process.windows.recheck()
        self.process.alerts.clock_set()

    async def _keep_up(self) -> None:
        """Run the maintenance that is due by now, which may prune what a test asks for."""
        self._kept_up_at = self.clock.now()
        for run_id in self._started_runs - self._ended.keys():
            run = await self.journal.run(run_id)
            if run is not None and run.state in FINISHED:
                self._ended[run_id] = await self.look(run_id)
        await self._maintenance.run_once()

    def _emitter(self, name: str, flow: AnyFlow | None) -> TriggerEmitter:
        if flow is not None:
            chosen = self._flows.get(flow.name)
            if chosen is not flow:
                raise AssertionError(f"flow {flow.name!r} is not served here; name it in serve(…)")
            started = replace(flow, shadow=False)  # the test asks it to run
            return self.process.emitter(ManualTrigger(_HAND, _HAND), lambda _event: (started,))
        if name.startswith("event:"):
            return self.process.api
        if name not in self.process.emitters:
            raise AssertionError(
                f"no flow served here has the trigger {name!r}; there are: "
                f"{', '.join(sorted(self.process.emitters)) or 'none'}. Name its flow in serve(…)"
            )
        return self.process.emitters[name]

    # ------------------------------------------------------------ life and death

    async def _begin(self) -> None:
        self._started.clear()
        self._stop.clear()
        self._life = asyncio.get_running_loop().create_task(self._live(), name="turnout-testing")
        started = asyncio.get_running_loop().create_task(self._started.wait())
        await asyncio.wait({self._life, started}, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            await self._life  # raises why it did not start

    async def _live(self) -> None:
        metrics = Metrics()
        journal = await open_journal(
            self.folder,
            metrics=metrics,
            synchronous="normal",
            max_unfinished_runs=self._settings.max_unfinished_runs,
            min_free_bytes=0,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                mortal = cast("Journal", Mortal(journal, self._death))
                project = await asyncio.to_thread(Project.of, self._flows.values())
                self.process = Process(
                    self._settings, project, mortal, metrics, tasks,
                    now=self.clock.now, sleep=self.clock.sleep, deliver=self._deliver,
                )  # fmt: skip
                self.journal = journal
                self._maintenance = Maintenance(
                    journal, self.process.after_run_actions, self._settings, metrics,
                    now=self.clock.now,
                    clock=WallClock(self.clock.now, elapsed=lambda: self.clock.now().timestamp()),
                )  # fmt: skip
                try:
                    await self.process.start()
                    have_listened(self.process.emitters.values())
                    self._started.set()
                    await self._stop.wait()
                    await self.process.stop()
                finally:
                    self.process.windows.close()
                    self.process.alerts.close()
                    await self.process.resources.stop()
                    self.process.pools.close()
        finally:
            await journal.close()

    async def _end(self) -> None:
        """End the process at once: what it still does on the way out is not written."""
        self._death.over = True
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
            if not self._life.cancelled() and (error := self._life.exception()) is not None:
                raise error


@asynccontextmanager
async def serve(
    *flows: AnyFlow, start: datetime = START, **settings: Any
) -> AsyncIterator[Service]:
    """Serve flows for a test, on a journal in memory and a clock that stands still.

    `async with serve(bill) as service`, in a test that pytest-asyncio runs. The fixture `flows`
    (`pytest_plugins = ["turnout.testing.fixture"]`) is the same without `await`.

    * `flows`: the flows to serve
    * `start`: what the clock shows at first
    * `settings`: those of `turnout serve`, such as `concurrency=1`

    Raises `SetupError` for flows or settings that cannot be served.

    ```python
    from turnout import approval, flow
    from turnout.testing import serve


    @flow
    async def release(version: str) -> str:
        said = await approval("release")
        return f"{version}, says {said.by}"


    async def test_somebody_says_yes() -> None:
        async with serve(release) as service:
            waiting = await service.run(release, "1.2")
            assert waiting.state == "waiting"
            released = await service.answer(waiting.id, by="ada")
            assert released.result == "1.2, says ada"
    ```
    """
    for each in flows:
        if not isinstance(each, Flow):
            raise TypeError(f"serve({each!r}): give it flows, functions below @flow")
    folder = await handed_over(
        asyncio.to_thread,
        lambda: tempfile.mkdtemp(prefix="turnout-", dir=_MEMORY),
        lambda unused: shutil.rmtree(unused, ignore_errors=True),
    )
    service = Service(flows, Path(folder), Clock(start), settings)
    try:
        await service._begin()
        yield service
    finally:
        await service._end()
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def run(flow: AnyFlow, json: Any = None, *, crash_at: int | None = None, **settings: Any) -> Result:
    """Run one flow to its end, in a test that is not async.

    `result = run(bill, {"id": "7"})`, in a service of its own, with a journal in memory and virtual
    time: a retry delay of a day takes no time.

    * `flow`: the flow
    * `json`: the event's data
    * `crash_at`: the process dies when the n-th step has done its work and is not recorded yet, the
      worst moment there is; another one goes on
    * `settings`: those of `turnout serve`, such as `concurrency=1`

    Raises `AssertionError` if there is no step to crash at, and `SetupError` for a flow that cannot
    be served.

    ```python
    from turnout import flow, task
    from turnout.testing import run


    @task
    async def charge(amount: int) -> str:
        return f"receipt-{amount}"


    @flow
    async def bill(amount: int) -> str:
        return await charge(amount)


    def test_a_crash_changes_nothing() -> None:
        assert run(bill, 7, crash_at=1).result == "receipt-7"
    ```
    """

    async def alone() -> Result:
        async with serve(flow, **settings) as service:
            return await service.run(flow, json, crash_at=crash_at)

    return asyncio.run(alone())
