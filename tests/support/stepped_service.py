"""A service that moves one step at a time: its time is a value, and its journal answers when told.

Everything is real but three things. The loop's time is the service's clock and moves in `advance`
only. Each call of the journal is carried out, and each answer delivered, when the loop has nothing
else to do: one call at a time, in an order that `order` chooses. Attempts end when they are told.
So the same actions have the same effect each time, and "nothing is left to do" is a fact.

Writes are carried out and answered in the order they were asked, reads in any order.
"""

from __future__ import annotations

import asyncio
import inspect
import selectors
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import pytest

from tests.support import inside
from turnout import Fail, Retry, Skip, current, sleep
from turnout.service.app.process import ManualTrigger, Process
from turnout.service.domain.errors import NotFound, Overloaded, Refused
from turnout.service.domain.event import Event
from turnout.service.journal.contract import Journal
from turnout.service.journal.open import open_journal
from turnout.service.journal.sqlite.journal import SqliteJournal
from turnout.service.operate.verbs import Verb
from turnout.service.project import AnyFlow, Project
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
PATIENCE_SECONDS = 60.0
MOST_STEPS = 3000
"""After so many steps of its journal a service that nobody asks for anything should be at rest."""

READS = {
    "breakers", "child", "due", "due_actions", "event", "event_ended", "event_of", "events",
    "member_events", "next_due_at", "orphans", "overrides", "pauses", "positions", "queued",
    "queued_for_key", "queued_past", "run", "runs", "shapes", "steps", "waiting", "waits",
}  # fmt: skip
SUBMITTED = {
    "append",
    "record_breaker",
    "record_step",
    "record_waits",
    "record_with",
}  # the call itself asks, and returns a future

_Value = TypeVar("_Value")


# ---------------------------------------------------------------- the loop


class _Selector(selectors.DefaultSelector):
    """Asks `when_idle` what to do when no callback is ready; it returns how long to wait."""

    when_idle: Callable[[], float]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            return super().select(0)
        seconds = self.when_idle()
        ready = super().select(seconds)
        if seconds and not ready:
            raise TimeoutError("the journal does not return")
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose time is that of a service."""

    def __init__(self, selector: _Selector, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        super().__init__(selector)

    def time(self) -> float:
        return self._seconds()

    def run_in_executor(  # type: ignore[override]
        self, _executor: object, function: Callable[..., _Value], *arguments: Any
    ) -> asyncio.Future[_Value]:
        """Call the function at once: reads of the journal need no thread here."""
        answer: asyncio.Future[_Value] = self.create_future()
        try:
            answer.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001  the caller's to handle
            answer.set_exception(error)
        return answer


# ---------------------------------------------------------------- the journal


@dataclass(eq=False)
class _Call:
    """A call of the journal: asked, then carried out, then answered."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    answer: asyncio.Future[Any]
    outcome: asyncio.Future[Any] | None = None

    @property
    def is_read(self) -> bool:
        return self.name in READS


class SteppedJournal:
    """A journal whose calls wait to be carried out by `step`; `told` hears what took effect."""

    def __init__(self, journal: SqliteJournal, told: Callable[[str, _Call], None]) -> None:
        self._journal = journal
        self._told = told
        self._calls: list[_Call] = []
        self.dead = False
        self.busy = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._journal, name)
        if inspect.iscoroutinefunction(found):
            return partial(self._await, name)
        if name in SUBMITTED:
            return partial(self._ask, name)
        return found

    def flush(self) -> None:
        """Refuse: nothing is carried out inside a callback."""
        raise AssertionError("a flush is not modelled")

    async def _await(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await self._ask(name, *arguments, **options)

    def _ask(self, name: str, *arguments: Any, **options: Any) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        call = _Call(name, arguments, options, answer)
        if not self.dead:  # else it is never carried out
            self._calls.append(call)
            self._told("asked", call)
        return answer

    def die(self) -> None:
        """Carry out and answer nothing any more."""
        self.dead = True
        self._calls.clear()

    def choices(self) -> list[Callable[[], None]]:
        """Return what could be done next: answers first, the oldest first."""
        answers: list[Callable[[], None]] = []
        work: list[Callable[[], None]] = []
        may_answer = may_work = True  # of writes: only the first
        for call in self._calls:
            if call.outcome is not None and (call.is_read or may_answer):
                answers.append(partial(self._deliver, call))
            elif call.outcome is None and (call.is_read or may_work):
                work.append(partial(self._carry_out, call))
            may_answer = may_answer and call.is_read
            may_work = may_work and (call.is_read or call.outcome is not None)
        return answers + work

    def _carry_out(self, call: _Call) -> None:
        self.busy = True
        result = getattr(self._journal, call.name)(*call.arguments, **call.options)
        if not isinstance(result, asyncio.Future):
            result = asyncio.get_running_loop().create_task(result)
        result.add_done_callback(partial(self._carried_out, call))

    def _carried_out(self, call: _Call, outcome: asyncio.Future[Any]) -> None:
        self.busy = False
        call.outcome = outcome
        self._told("done" if outcome.exception() is None else "refused", call)

    def _deliver(self, call: _Call) -> None:
        self._calls.remove(call)
        assert call.outcome is not None
        if call.answer.done():
            return
        error = call.outcome.exception()
        if error is not None:
            call.answer.set_exception(error)
        else:
            call.answer.set_result(call.outcome.result())
            self._told("answered", call)


# ---------------------------------------------------------------- attempts


@dataclass(eq=False)
class Attempt:
    """An attempt whose code runs: it does what `command` says, and ends late if it `lingers`."""

    run_id: str
    lingers: bool
    command: asyncio.Future[tuple[str, int]]
    let_go: asyncio.Future[None] | None = None


class PowerCut(Exception):
    """Ends a process without its stop."""


# ---------------------------------------------------------------- the service


class Listener(Protocol):
    """Hears what happens, when it happens."""

    def told(self, what: str, call: Any) -> None:
        """Hear of a call of the journal: `asked`, `done` or `refused`, and `answered`."""

    def code_began(self, run_id: str) -> Any:
        """Hear that the code of an attempt begins; what this returns goes to `code_ended`."""

    def code_ended(self, run_id: str, mark: Any) -> None:
        """Hear that the code of an attempt has ended."""


class SteppedService:
    """A process on a journal in `folder`, and what a test does to it."""

    def __init__(self, folder: Path, slots: int, listener: Listener) -> None:
        self.folder = folder
        self.listener = listener
        self._patch = pytest.MonkeyPatch()
        inside.mint_the_same_ids(self._patch)
        self.now = START
        self.attempts: list[Attempt] = []
        self.problems: list[str] = []
        self.process: Process
        self.journal: SteppedJournal
        chosen: dict[str, Any] = {"concurrency": slots, "grace": timedelta(seconds=30)}
        self._settings = Settings(data=folder, min_free_bytes=0, **chosen)
        self._order = 0
        self._steps: int | None = None
        self._taken = 0
        self._real = 0
        self._slept: dict[str, list[int]] = {}
        self._verbs: set[asyncio.Task[None]] = set()
        selector = _Selector()
        selector.when_idle = self._when_idle
        self._loop = _Loop(selector, lambda: (self.now - START).total_seconds())
        self._loop.set_exception_handler(self._unexpected)
        self._serving: asyncio.Task[None]
        self._end: asyncio.Future[bool]

    # ------------------------------------------------------------ steps

    def go(self, steps: int | None = None, order: int = 0) -> None:
        """Let the service work until nothing is left to do, or for so many steps of its journal.

        `order` chooses what its journal does next where it could do several things.
        """
        self._steps, self._order, self._taken = steps, order, 0
        self._loop.run_forever()
        assert not self.problems, "; ".join(self.problems)
        if hasattr(self, "_serving"):
            assert not self._serving.done(), f"the service has ended: {self._serving}"

    @property
    def at_rest(self) -> bool:
        """Whether nothing is left to do until time passes or somebody acts."""
        return not self.journal.choices()

    def clock(self) -> datetime:
        """Return the time, which moves in `advance` only."""
        return self.now

    def advance(self, duration: timedelta) -> None:
        """Let time pass."""
        self.now += duration

    def _when_idle(self) -> float:
        if self._real or (hasattr(self, "journal") and self.journal.busy):
            return PATIENCE_SECONDS
        choices = self.journal.choices() if hasattr(self, "journal") else []
        if not choices or self._steps == 0 or self.problems:
            self._loop.stop()
            return 0
        if self._steps is not None:
            self._steps -= 1
        self._taken += 1
        if self._taken > MOST_STEPS:
            self.problems.append("the service does not come to rest")
        self._order, chosen = divmod(self._order, len(choices))
        choices[chosen]()
        return 0

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(f"{context['message']}: {context.get('exception')!r}")

    def operate(self, verb: Verb[Any], then: Callable[[], None] | None = None) -> None:
        """Begin what an operator does."""
        self.do(partial(self.process.operator.do, verb), then)

    def do(
        self, verb: Callable[[], Awaitable[object]], then: Callable[[], None] | None = None
    ) -> None:
        """Begin an operator's verb; `then` is called once it has answered."""

        async def done() -> None:
            with suppress(NotFound, Overloaded, Refused):
                await verb()
                if then is not None:
                    then()

        task = self._loop.create_task(done())
        self._verbs.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._verbs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.problems.append(f"a verb raised {task.exception()!r}")

    def elapsed(self) -> float:
        """Return the seconds since the first start, by the loop."""
        return self._loop.time()

    def really(self, work: Awaitable[_Value]) -> _Value:
        """Wait for what is not stepped: opening and closing files."""

        async def done() -> _Value:
            self._real += 1
            try:
                return await work
            finally:
                self._real -= 1

        return self._loop.run_until_complete(done())

    # ------------------------------------------------------------ process

    def start(self, flows: Iterable[AnyFlow]) -> None:
        """Start a process on the journal."""
        metrics = Metrics()
        journal = self.really(
            open_journal(
                self.folder, metrics=metrics, synchronous="normal", max_unfinished_runs=10_000,
                min_free_bytes=0,
            )
        )  # fmt: skip
        self.opened = journal
        inside.write_at_once(self.opened)
        self.journal = SteppedJournal(self.opened, self.listener.told)
        self._end = self._loop.create_future()
        self._serving = self._loop.create_task(self._serve(list(flows), metrics))
        self.go()

    async def _serve(self, flows: list[AnyFlow], metrics: Metrics) -> None:
        journal = cast(Journal, self.journal)
        with suppress(asyncio.CancelledError):
            try:
                async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
                    process = self.process = Process(
                        self._settings,
                        Project.of(flows),
                        journal,
                        metrics,
                        tasks,
                        now=lambda: self.now,
                    )
                    stack.push_async_callback(process.resources.stop)
                    stack.callback(process.pools.close)
                    await process.start()
                    if await self._end:
                        raise PowerCut
                    await process.stop()
            except* PowerCut:
                pass

    def send(self, name: str, events: list[Event]) -> None:
        """Begin to emit events to one flow, if it is served."""
        flow = self.process.project.flows.get(name)
        if flow is not None:
            emitter = self.process.emitter(ManualTrigger("send", "test"), lambda _event: (flow,))

            self.do(partial(emitter, events))

    def emit(self, events: list[Event]) -> None:
        """Begin to emit events to whoever listens to their type."""
        self.do(partial(self.process.api, events))

    def cut(self) -> None:
        """End the process as a kill does: nothing is written any more, nobody is told."""
        self.journal.die()
        self.process.overrides.close()  # its timers go with it
        self._end.set_result(True) if not self._end.done() else self._serving.cancel()
        self._ended()

    def stop(self, order: int) -> None:
        """End the process as SIGTERM does; at the end of the grace time what lingers is left."""
        self._end.set_result(False)
        for seconds in (0, 60, 60):
            self.advance(timedelta(seconds=seconds))
            self._steps, self._order, self._taken = None, order, 0
            self._loop.run_forever()
            if self._serving.done():
                return self._ended()
        return self.cut()

    def _ended(self) -> None:
        for attempt in self.attempts:
            attempt.lingers = False
            if attempt.let_go is not None and not attempt.let_go.done():
                attempt.let_go.set_result(None)
        for verb in self._verbs:
            verb.cancel()
        self._steps, self._taken = None, 0
        for _ in range(10):
            self._loop.run_forever()
        assert self._serving.done(), "the process does not end"
        assert self._serving.exception() is None, f"the process failed: {self._serving.exception()}"
        self.really(self.opened.close())

    def close(self) -> None:
        """End the process, if it is still there, and the loop."""
        if hasattr(self, "_serving") and not self._serving.done():
            self.cut()
        self.really(self._loop.shutdown_default_executor())
        self._loop.close()
        self._patch.undo()

    # ------------------------------------------------------------ the code of flows

    async def attempt(self, event: Event) -> None:
        """Run the body of every flow: do what the attempt is told to."""
        run_id = current().run.id
        loop = asyncio.get_running_loop()
        attempt = Attempt(run_id, bool(event.data["lingers"]), loop.create_future())
        self.attempts.append(attempt)
        mark = self.listener.code_began(run_id)
        try:
            for seconds in self._slept.get(run_id, ()):
                await sleep(timedelta(seconds=seconds))
            how, seconds = await attempt.command
            await self._obey(run_id, how, seconds)
        except asyncio.CancelledError:
            if attempt.lingers:
                attempt.let_go = loop.create_future()
                await attempt.let_go
            raise
        finally:
            self.attempts.remove(attempt)
            self.listener.code_ended(run_id, mark)

    async def _obey(self, run_id: str, how: str, seconds: int) -> None:
        match how:
            case "fail":
                raise Fail("never")
            case "break":
                raise ConnectionError("refused")
            case "skip":
                raise Skip("nothing to do")
            case "retry":
                raise Retry("later", after=timedelta(seconds=seconds))
            case "sleep":
                self._slept.setdefault(run_id, []).append(seconds)
                await sleep(timedelta(seconds=seconds))
