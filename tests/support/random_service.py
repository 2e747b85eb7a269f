"""A random service fuzzer with a start-order checker.

It does what senders, operators, authors and power cuts do. Each start of a run is checked at once;
at the end no run waits, every run has the outcome its event asked for, and every counter is back
to zero. The bounds of the dispatcher are small, so that a few runs are blocked, evicted and reread.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support import inside
from tests.support.crashing_service import CrashingService
from tests.support.random_flows import KINDS, RETRIES, Shape, StartChecker, declare
from tests.support.running import PATIENCE_SECONDS, eventually, make_event
from turnout.service.app.process import Process
from turnout.service.app.reload import reload_project
from turnout.service.dispatch import backpressure, dispatcher, due, memory
from turnout.service.domain.errors import NotFound, Overloaded, Refused
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import FINISHED, Run, RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import (
    Cancel,
    Drop,
    Emit,
    Pause,
    Replay,
    ReplayDead,
    Resume,
    Retry,
)
from turnout.service.project import Project
from turnout.service.settings import Settings

MEMORY_BYTES = 6000
MAX_CRASHES = 4  # with one more, a run that always ran would be a dead letter


def shrink_bounds(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Make the bounds of the dispatcher small enough for a few runs to fill them."""
    window = rng.choice([4, 8, 16])
    monkeypatch.setattr(memory, "WINDOW", window)
    monkeypatch.setattr(memory, "Memory", partial(memory.Memory, MEMORY_BYTES))
    monkeypatch.setattr(backpressure, "MAX_CREDIT", 8)
    monkeypatch.setattr(backpressure, "PROBE_EVERY", 2)
    monkeypatch.setattr(backpressure, "MIN_SLOTS", 1)
    monkeypatch.setattr(due, "BATCH", 3)
    monkeypatch.setattr(due, "MIN_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(due, "KNOWN_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(dispatcher, "MAX_BODY_BYTES_IN_MEMORY", rng.choice([0, 60, 8192]))


class ServiceFuzzer:
    """A service, its flows as they are now, and the random actions on it."""

    def __init__(self, seed: int, folder: Path, tasks: asyncio.TaskGroup) -> None:
        self.rng = random.Random(seed)
        self.checker = StartChecker(slots=self.rng.randint(1, 6))
        self.shapes = {kind: Shape(kind, count=self.rng.randint(1, 3)) for kind in KINDS}
        chosen: dict[str, Any] = {
            "concurrency": self.checker.slots,
            "grace": timedelta(seconds=self.rng.choice([0.01, 2])),
        }
        settings = Settings(data=folder, min_free_bytes=0, **chosen)
        self.service = CrashingService(settings, tasks)
        self.number = self.crashes = 0
        self.asked: dict[str, dict[str, Any]] = {}
        self.group = tasks
        self.tasks: set[asyncio.Task[None]] = set()
        self.actions: list[str] = []

    def flows(self) -> list[Flow[..., Any]]:
        """Return the flows of the project as declared now."""
        return declare(self.shapes, self.checker)

    # ------------------------------------------------------------ process

    @property
    def process(self) -> Process:
        """Return the process that runs now, or ran last."""
        return self.service.process

    async def start(self) -> None:
        """Start a process on the journal."""
        with self.checker.lock:
            self.checker.process_number += 1
            self.checker.running.clear()
        await self.service.start(self.flows())
        self.check_alive()

    async def stop(self, *, cut: bool) -> None:
        """End the process, by a power cut or as on SIGTERM."""
        self.check_alive()
        for task in list(self.tasks):
            task.cancel()
            await asyncio.wait([task])
        await self.service.stop(cut=cut)

    def check_alive(self) -> None:
        """Fail on a violation, or if the service has ended by itself."""
        assert not self.checker.violations, "; ".join(self.checker.violations)
        assert not self.service.serving.done(), "the service has ended"

    # ------------------------------------------------------------ actions

    def data(self) -> dict[str, Any]:
        """Return random event data: what the run does."""
        self.number += 1
        does = ["end"] * 3 + ["slow"] * 4 + ["linger", "fail", "again", "again", "sleep", "wait"]
        return {
            "n": self.number,
            "k": self.rng.choice("abc"),
            "l": self.rng.choice("xyz"),
            "do": self.rng.choice(does),
            "times": self.rng.randint(1, RETRIES + 1),
        }

    async def send(self, kind: str = "") -> None:
        """Emit a batch, partly of duplicates."""
        kind = kind or self.rng.choice([*KINDS, "many"])
        emitter = self.process.emitters.get(f"webhook:/{kind}")
        if emitter is None:
            return
        count = self.rng.choice([1, 3, 10, 40])
        if self.rng.random() < 0.4:
            count = min(count, await emitter.credit())
        if kind == "many":
            count = min(count, 5)
        batch = [make_event(self.data(), f"{kind}-{self.number}") for _ in range(count)]
        self.asked |= {one.id: one.data for one in batch}
        if self.rng.random() < 0.3:
            batch += self.rng.sample(batch, k=min(len(batch), 3))
        with suppress(Overloaded):
            await emitter(batch)

    async def emit(self) -> None:
        """Emit an event that a run may wait for."""
        number = self.rng.randint(1, self.number + 1)
        body = orjson.dumps({"n": number})
        event = Event(
            id=mint_id(), source="/test", type="go", time=utc_now(), body=body, trigger="api",
            minted=True,
        )  # fmt: skip
        with suppress(Overloaded):
            await self.process.operator.do(Emit(event))

    async def operate(self) -> None:
        """Run an operator command on some runs."""
        verb = self.rng.choice(["cancel", "cancel", "retry", "retry", "again", "drop", "replay"])
        state = {
            "cancel": self.rng.choice(["queued", "running", "retrying", "waiting"]),
            "retry": self.rng.choice(["failed", "cancelled", "succeeded"]),
            "again": self.rng.choice(["running", "queued"]),
            "drop": "failed",
            "replay": self.rng.choice(["failed", "succeeded"]),
        }[verb]
        runs = await self.process.journal.runs(Filter(state=RunState(state), limit=50))
        for run in self.rng.sample(runs, k=min(len(runs), self.rng.randint(1, 4))):
            if verb != "cancel" and run.flow not in self.process.project.flows:
                continue
            await self._operate(verb, run)

    async def _operate(self, verb: str, run: Run) -> None:
        operator = self.process.operator
        with self.checker.lock:
            self.checker.touched.add(run.id)
        with suppress(Refused, NotFound):
            if verb == "cancel":
                await operator.do(Cancel(run.id))
            elif verb == "again":
                await operator.do(Cancel(run.id))
                await operator.do(Retry(run.id))
            elif verb == "retry":
                await operator.do(Retry(run.id))
            elif verb == "drop":
                await operator.do(Drop(run.id))
            elif run.dead:
                await operator.do(ReplayDead(run.id))
            elif await self.is_served(run.event_id):
                await operator.do(Replay(run.event_id))

    async def is_served(self, event_id: str) -> bool:
        """Whether all flows of an event are served, under their current names."""
        (stored,) = await self.process.journal.event(event_id)
        runs = [await self.process.journal.run(run_id) for run_id in stored.runs]
        names = self.process.project.flows
        known = {*names, *(flow.was for flow in names.values())}
        return all(run is not None and run.flow in known for run in runs)

    def kind_of(self, run: Run) -> str:
        """Return the kind of a run's flow, under any of its names."""
        return run.flow.partition("_")[0]

    async def pause(self) -> None:
        """Pause or resume a flow."""
        name = self.rng.choice(list(self.process.project.flows))
        verb = self.rng.choice([Pause, Resume])
        with suppress(NotFound):
            await self.process.operator.do(verb(name))

    def change(self) -> None:
        """Change the flow files: names, limits, served or not."""
        for kind in self.rng.sample(list(KINDS), k=self.rng.randint(0, 4)):
            shape = self.shapes[kind]
            change = self.rng.choice(["name", "name", "limit", "gone"])
            if change == "limit":
                self.shapes[kind] = Shape(
                    shape.name, shape.was, self.rng.randint(1, 3), shape.served
                )
            elif kind in ("child", "parent"):
                continue
            elif change == "gone":
                self.shapes[kind] = Shape(shape.name, shape.was, shape.count, not shape.served)
            elif shape.served:
                self.number += 1
                name = f"{kind}_{self.number}"
                self.shapes[kind] = Shape(name, shape.name, shape.count)

    async def reload(self) -> None:
        """Reload the flow files."""
        await reload_project(self.process, Project.of(self.flows()))

    async def step(self) -> None:
        """Do one random action; wait for it half of the time."""
        chosen = self.rng.choices(
            ["send", "emit", "operate", "pause", "reload", "restart", "cut", "rest"],
            [40, 4, 14, 5, 6, 1, 2, 20],
        )[0]
        self.actions.append(chosen)
        if chosen == "rest":
            await asyncio.sleep(self.rng.random() / 50)
        elif chosen in ("restart", "cut"):
            if chosen == "cut":
                if self.crashes == MAX_CRASHES:
                    return
                self.crashes += 1
            await self.stop(cut=chosen == "cut")
            if self.rng.random() < 0.3:
                self.change()
            await self.start()
        elif chosen == "reload":
            self.change()
            await self.reload()  # one at a time, as the program does
        else:
            task = self.group.create_task(getattr(self, chosen)())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            if self.rng.random() < 0.5:
                await asyncio.wait(
                    [task, self.service.serving], return_when=asyncio.FIRST_COMPLETED
                )
        self.check_alive()

    # ------------------------------------------------------------ the end

    async def finish(self) -> None:
        """Serve and resume everything, and wait until no run is unfinished."""
        if self.tasks:
            await asyncio.wait(list(self.tasks))
        self.shapes = {
            kind: Shape(shape.name, shape.was, shape.count) for kind, shape in self.shapes.items()
        }
        await self.reload()
        for name in await self.process.journal.pauses(now=self.process.now()):
            await self.process.operator.do(Resume(name))
        await self.drained()
        for kind in KINDS:
            for _ in range(3):
                await self.send(kind)
        await self.drained()

    async def drained(self) -> None:
        """Wait until no run is unfinished, dropping dead letters, which may block."""

        async def quiet() -> bool:
            self.check_alive()
            ended = not any(self.process.journal.counts()[0].values())
            dead = await self.process.journal.runs(Filter(dead=True, limit=1000))
            for run in dead:
                self.checker.dropped.add(run.id)
                with suppress(Refused, NotFound):
                    await self.process.operator.do(Drop(run.id))
            return ended and not dead  # in this order: the last run to end may be a dead letter

        loop, seen, since = asyncio.get_running_loop(), -1, 0.0
        while not await quiet():  # without a deadline as long as runs keep starting
            if self.checker.attempts != seen:
                seen, since = self.checker.attempts, loop.time()
            elif loop.time() - since > PATIENCE_SECONDS:
                raise TimeoutError
            await asyncio.sleep(0.005)

    async def check(self) -> None:
        """Fail unless every run has the right outcome and every counter is back to zero."""
        runs = await self.process.journal.runs(Filter(limit=100_000))
        by_id = {run.id: run for run in runs}
        for run in runs:
            assert run.state in FINISHED
            kind, ends = self.kind_of(run), self.checker.ends[run.id]
            if run.id in self.checker.touched or kind == "child":
                continue
            if run.state is RunState.SUCCEEDED and not KINDS[kind].threaded:
                assert 1 <= ends <= 1 + run.crashes, (run, ends)
            if kind != "parent":
                asked = self.asked[run.event_id]
                fails = asked["do"] == "fail" or asked == {**asked, "do": "again", "times": 3}
                assert (run.state is RunState.FAILED) is fails, (run, asked)
                assert run.state in (RunState.FAILED, RunState.SUCCEEDED), run
        for key, started in self.checker.started.items():
            seqs = [by_id[run_id].seq for run_id in started if run_id not in self.checker.touched]
            assert seqs == sorted(seqs), (key, seqs)
        await eventually(self._nothing_left)

    async def _nothing_left(self) -> bool:
        return not self.left()

    def left(self) -> dict[str, Any]:
        """Return what the dispatcher still counts or holds, empty when it is idle."""
        owner = self.process.dispatcher
        found: dict[str, Any] = {
            "slots": {name: held for name, held in owner.held_slots().items() if held},
            "free": owner.free_slots - self.checker.slots,
            "known due": inside.scheduler(self.process).known_due,
            "memory": inside.memory(self.process).left - MEMORY_BYTES,
            "attempts": owner.running,
        }
        for name, keys in inside.held_keys(self.process).items():
            found[f"{name} holds"] = keys
        for each in inside.queues(self.process):
            found[f"the queue of {each.flow}"] = [
                *(run.seq for run in each.rows()), *each.blocked.evicted, *each.blocked.wakeups,
                *filter(None, (each.waiting, each.starting, each.blocked.count)),
            ]  # fmt: skip
        return {what: value for what, value in found.items() if value}


@asynccontextmanager
async def service_fuzzer(seed: int, folder: Path) -> AsyncIterator[ServiceFuzzer]:
    """Start a service fuzzer, and stop it at the end."""
    async with asyncio.TaskGroup() as tasks:
        fuzzer = ServiceFuzzer(seed, folder, tasks)
        await fuzzer.start()
        try:
            yield fuzzer
        finally:
            if not fuzzer.service.serving.done():
                fuzzer.checker.violations.clear()
                await fuzzer.stop(cut=False)


async def play(seed: int, folder: Path) -> None:
    """Run the fuzzer with a seed, and check the service."""
    async with service_fuzzer(seed, folder) as fuzzer:
        try:
            for _ in range(fuzzer.rng.randint(20, 60)):
                await fuzzer.step()
            await fuzzer.finish()
            await fuzzer.check()
        except TimeoutError:
            raise AssertionError(f"no progress: {fuzzer.left()}\n{fuzzer.actions}") from None
