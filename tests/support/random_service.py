"""A service under random hands: what senders, operators, authors and power cuts do to it.

Each start of a run is checked as it happens; at the end nothing waits, every run came to the end
its event asked for, and no count is left. The bounds of the dispatcher are small, so that a few
runs spill, park and are read again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.random_flows import KINDS, RETRIES, Ledger, act, act_in_thread, go
from tests.support.running import PATIENCE_SECONDS, eventually, make_event
from turnout import flow, limit, retry, webhook
from turnout.service.app.process import Process
from turnout.service.dispatch import backpressure, dispatcher, due, queue, scheduling
from turnout.service.domain.errors import NotFound, Overloaded, Refused
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import FINISHED, Run, RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Filter
from turnout.service.project import Project
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics

MEMORY_BYTES = 6000
MOST_CRASHES = 4  # one more, and a run that always ran would be a dead letter


class PowerCut(Exception):
    """Ends a process without its stop."""


def shrink_bounds(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Have a few runs fill every bound of the dispatcher."""
    window = rng.choice([4, 8, 16])
    monkeypatch.setattr(queue, "WINDOW", window)
    monkeypatch.setattr(scheduling, "WINDOW", window)
    monkeypatch.setattr(scheduling, "Memory", lambda: queue.Memory(MEMORY_BYTES))
    monkeypatch.setattr(backpressure, "MAX_CREDIT", 8)
    monkeypatch.setattr(backpressure, "_PROBE_EVERY", 2)
    monkeypatch.setattr(backpressure, "_MIN_SLOTS", 1)
    monkeypatch.setattr(due, "BATCH", 3)
    monkeypatch.setattr(due, "MIN_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(dispatcher, "MAX_BODY_BYTES_IN_MEMORY", rng.choice([0, 60, 8192]))


@dataclass(frozen=True)
class Shape:
    """A flow as the project has it now."""

    name: str
    was: str | None = None
    count: int = 2
    served: bool = True


class World:
    """A service, its flows as they are now, and who works on it."""

    def __init__(self, seed: int, folder: Path, tasks: asyncio.TaskGroup) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.ledger = Ledger(slots=self.rng.randint(1, 6))
        self.shapes = {kind: Shape(kind, count=self.rng.randint(1, 3)) for kind in KINDS}
        self.grace = timedelta(seconds=self.rng.choice([0.01, 2]))
        self.number = self.crashes = 0
        self.asked: dict[str, dict[str, Any]] = {}
        self.process: Process
        self.life: asyncio.Task[None]
        self.end: asyncio.Future[bool]
        self.group = tasks
        self.tasks: set[asyncio.Task[None]] = set()
        self.did: list[str] = []

    # ------------------------------------------------------------ flows

    def flows(self) -> list[Flow[..., Any]]:
        """Return the project's flows as their files say now."""
        made = {kind: self._flow(kind) for kind in KINDS if kind != "parent"}
        made["parent"] = self._parent(made["child"])
        return [made[kind] for kind in KINDS if self.shapes[kind].served]

    def _declared(self, kind: str) -> Any:
        shape, policy = self.shapes[kind], KINDS[kind]
        self.ledger.counts[kind] = max(shape.count, self.ledger.counts.get(kind, 0))
        concurrency: Any = None
        if policy.limited == "flow":
            concurrency = limit(shape.count)
        elif policy.limited == "key":
            concurrency = limit(shape.count, per=lambda event: event.data["l"])
        return flow(
            name=shape.name,
            was=shape.was,
            on=() if kind == "child" else [webhook(f"/{kind}"), webhook("/many")],
            awaits=() if policy.threaded else [go],
            concurrency=concurrency,
            ordered_by=(lambda event: event.data["k"]) if policy.ordered else None,
            on_dead=policy.on_dead,
            retry=retry(RETRIES, delay="3ms", on=OSError),
        )

    def _flow(self, kind: str) -> Flow[..., Any]:
        ledger = self.ledger

        if KINDS[kind].threaded:

            def work(event: Event) -> None:
                with ledger.attempt(kind, event.data):
                    act_in_thread(event.data)

            return self._declared(kind)(work)  # type: ignore[no-any-return]

        if kind == "child":

            async def child(data: dict[str, Any]) -> None:
                with ledger.attempt(kind, data):
                    await act(data)

            return self._declared(kind)(child)  # type: ignore[no-any-return]

        async def works(event: Event) -> None:
            with ledger.attempt(kind, event.data):
                await act(event.data)

        return self._declared(kind)(works)  # type: ignore[no-any-return]

    def _parent(self, child: Flow[..., Any]) -> Flow[..., Any]:
        ledger = self.ledger

        async def parent(event: Event) -> None:
            with ledger.attempt("parent", event.data):
                await child(event.data)

        return self._declared("parent")(parent)  # type: ignore[no-any-return]

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Start a process on the journal."""
        with self.ledger.lock:
            self.ledger.life += 1
            self.ledger.inside.clear()
        loop = asyncio.get_running_loop()
        self.end = loop.create_future()
        ready = loop.create_future()
        self.life = self.group.create_task(self._live(ready))
        await asyncio.wait([ready, self.life], return_when=asyncio.FIRST_COMPLETED)
        self.look()

    async def _live(self, ready: asyncio.Future[None]) -> None:
        chosen: dict[str, Any] = {"concurrency": self.ledger.slots, "grace": self.grace}
        settings = Settings(data=self.folder, min_free_bytes=0, **chosen)
        metrics = Metrics()
        try:
            async with AsyncExitStack() as stack:
                journal = await open_journal(
                    self.folder, metrics=metrics, synchronous="normal",
                    max_unfinished_runs=100_000, min_free_bytes=0,
                )  # fmt: skip
                stack.push_async_callback(journal.close)
                async with asyncio.TaskGroup() as tasks:
                    project = Project.of(self.flows())
                    process = self.process = Process(settings, project, journal, metrics, tasks)
                    stack.push_async_callback(process.resources.stop)
                    stack.callback(process.pools.close)
                    await process.start()
                    ready.set_result(None)
                    if await self.end:
                        raise PowerCut
                    await process.stop()
        except* PowerCut:
            pass

    def look(self) -> None:
        """Fail if something is wrong, or the service has ended by itself."""
        assert not self.ledger.wrong, "; ".join(self.ledger.wrong)
        assert not self.life.done(), "the service has ended"

    async def stop(self, *, cut: bool) -> None:
        """End the process, by a power cut or as SIGTERM does."""
        self.look()
        for task in list(self.tasks):
            task.cancel()
            await asyncio.wait([task])
        self.end.set_result(cut)
        await self.life

    # ------------------------------------------------------------ what happens

    def data(self) -> dict[str, Any]:
        """Return what an event asks for."""
        self.number += 1
        does = ["end"] * 3 + ["slow"] * 4 + ["linger", "fail", "again", "again", "nap", "hear"]
        return {
            "n": self.number,
            "k": self.rng.choice("abc"),
            "l": self.rng.choice("xyz"),
            "do": self.rng.choice(does),
            "times": self.rng.randint(1, RETRIES + 1),
        }

    async def send(self, kind: str = "") -> None:
        """Emit a batch, of which some may have come before."""
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

    async def say(self) -> None:
        """Emit what a run may wait for."""
        number = self.rng.randint(1, self.number + 1)
        body = orjson.dumps({"n": number})
        said = Event(
            id=mint_id(), source="/test", type="go", time=utc_now(), body=body, trigger="api",
            minted=True,
        )  # fmt: skip
        with suppress(Overloaded):
            await self.process.operator.emit(said)

    async def operate(self) -> None:
        """Do to some runs what an operator may do."""
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
        operator, kind = self.process.operator, self.kind_of(run)
        with self.ledger.lock:
            self.ledger.touched.add(run.id)
            if run.order_key is not None and verb in ("retry", "again"):
                self.ledger.disordered.add((kind, run.order_key))
        with suppress(Refused, NotFound):
            if verb == "cancel":
                await operator.cancel(run.id)
            elif verb == "again":
                await operator.cancel(run.id)
                await operator.retry(run.id)
            elif verb == "retry":
                await operator.retry(run.id)
            elif verb == "drop":
                await operator.drop(run.id)
            elif run.dead:
                await operator.replay_dead(run.id)
            elif await self.is_served(run.event_id):
                await operator.replay(run.event_id)

    async def is_served(self, event_id: str) -> bool:
        """Whether all flows of an event are served under their names of now."""
        (stored,) = await self.process.journal.event(event_id)
        runs = [await self.process.journal.run(run_id) for run_id in stored.runs]
        names = self.process.project.flows
        known = {*names, *(flow.was for flow in names.values())}
        return all(run is not None and run.flow in known for run in runs)

    def kind_of(self, run: Run) -> str:
        """Return which of the flows a run is of, under whatever name."""
        return run.flow.partition("_")[0]

    async def pause(self) -> None:
        """Pause or resume a flow."""
        name = self.rng.choice(list(self.process.project.flows))
        verb = self.rng.choice([self.process.operator.pause, self.process.operator.resume])
        with suppress(NotFound):
            await verb(name)

    def change(self) -> None:
        """Change the flow files: names, limits, what is served."""
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
        """Serve the flow files as they are."""
        await self.process.reload(Project.of(self.flows()))

    async def step(self) -> None:
        """Let something happen, and not always wait for it."""
        chosen = self.rng.choices(
            ["send", "say", "operate", "pause", "reload", "restart", "cut", "rest"],
            [40, 4, 14, 5, 6, 1, 2, 20],
        )[0]
        self.did.append(chosen)
        if chosen == "rest":
            await asyncio.sleep(self.rng.random() / 50)
        elif chosen in ("restart", "cut"):
            if chosen == "cut":
                if self.crashes == MOST_CRASHES:
                    return
                self.crashes += 1
            await self.stop(cut=chosen == "cut")
            if self.rng.random() < 0.3:
                self.change()
            await self.start()
        elif chosen == "reload":
            self.change()
            await self.reload()  # one after the other, as the program does
        else:
            task = self.group.create_task(getattr(self, chosen)())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            if self.rng.random() < 0.5:
                await asyncio.wait([task, self.life], return_when=asyncio.FIRST_COMPLETED)
        self.look()

    # ------------------------------------------------------------ the end

    async def finish(self) -> None:
        """Serve and resume everything, and wait until no run is unfinished."""
        if self.tasks:
            await asyncio.wait(list(self.tasks))
        self.shapes = {
            kind: Shape(shape.name, shape.was, shape.count) for kind, shape in self.shapes.items()
        }
        await self.reload()
        for name in await self.process.journal.paused():
            await self.process.operator.resume(name)
        await self.drained()
        for kind in KINDS:
            for _ in range(3):
                await self.send(kind)
        await self.drained()

    async def drained(self) -> None:
        """Wait until nothing is left to run, letting dead letters go that block."""

        async def quiet() -> bool:
            self.look()
            ended = not any(self.process.journal.counts()[0].values())
            dead = await self.process.journal.runs(Filter(dead=True, limit=1000))
            for run in dead:
                self.ledger.dropped.add(run.id)
                with suppress(Refused, NotFound):
                    await self.process.operator.drop(run.id)
            return ended and not dead  # in this order: the last run to end may be a dead letter

        loop, seen, since = asyncio.get_running_loop(), -1, 0.0
        while not await quiet():  # as long as it takes, if only something starts now and then
            if self.ledger.attempts != seen:
                seen, since = self.ledger.attempts, loop.time()
            elif loop.time() - since > PATIENCE_SECONDS:
                raise TimeoutError
            await asyncio.sleep(0.005)

    async def check(self) -> None:
        """Fail unless every run came to the end it had to, and every count is back."""
        runs = await self.process.journal.runs(Filter(limit=100_000))
        by_id = {run.id: run for run in runs}
        for run in runs:
            assert run.state in FINISHED
            kind, ends = self.kind_of(run), self.ledger.ends[run.id]
            if run.id in self.ledger.touched or kind == "child":
                continue
            if run.state is RunState.SUCCEEDED and not KINDS[kind].threaded:
                assert 1 <= ends <= 1 + run.crashes, (run, ends)
            if kind != "parent":
                asked = self.asked[run.event_id]
                fails = asked["do"] == "fail" or asked == {**asked, "do": "again", "times": 3}
                assert (run.state is RunState.FAILED) is fails, (run, asked)
                assert run.state in (RunState.FAILED, RunState.SUCCEEDED), run
        for key, started in self.ledger.started.items():
            seqs = [by_id[run_id].seq for run_id in started if run_id not in self.ledger.touched]
            assert seqs == sorted(seqs) or key in self.ledger.disordered, (key, seqs)
        await eventually(self._nothing_left)

    async def _nothing_left(self) -> bool:
        return not self.left()

    def left(self) -> dict[str, Any]:
        """Return what the dispatcher still counts or holds."""
        parts = self.process.dispatcher
        lines, admission = parts._scheduler, parts._admission
        found: dict[str, Any] = {
            "slots": {name: held for name, held in admission.held_slots().items() if held},
            "free": admission.free - self.ledger.slots,
            "lined up": lines.known_due,
            "memory": lines._memory.left - MEMORY_BYTES,
            "attempts": parts.running,
        }
        for name, counts in admission._flows.items():
            found[f"{name} holds"] = {**counts.holders, **counts.by_key}
        for line in {id(line): line for line in lines._queues.values()}.values():
            found[f"the queue of {line.flow}"] = [
                *(run.seq for run in line.rows()), *line.evicted, *line.pending_wakeups,
                *filter(None, (line.arriving, line.starting, line.blocked_count)),
            ]  # fmt: skip
        return {what: value for what, value in found.items() if value}


@asynccontextmanager
async def world(seed: int, folder: Path) -> AsyncIterator[World]:
    """Start a world, and end it whatever comes."""
    async with asyncio.TaskGroup() as tasks:
        made = World(seed, folder, tasks)
        await made.start()
        try:
            yield made
        finally:
            if not made.life.done():
                made.ledger.wrong.clear()
                await made.stop(cut=False)


async def play(seed: int, folder: Path) -> None:
    """Let a world of this seed happen, and check it."""
    async with world(seed, folder) as made:
        try:
            for _ in range(made.rng.randint(20, 60)):
                await made.step()
            await made.finish()
            await made.check()
        except TimeoutError:
            raise AssertionError(f"it stands still: {made.left()}\n{made.did}") from None
