"""Flows of every policy whose events say what to do, and a checker of every start of a run."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from turnout import current, event, flow, limit, retry, sleep, wait_for, webhook
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow

RETRIES = 2

go = event("go")


@dataclass(frozen=True)
class Kind:
    """The policy of a fuzzed flow; the count of its limit changes over time."""

    ordered: bool = False
    limited: Literal["", "flow", "key"] = ""
    on_dead: Literal["continue", "block"] = "continue"
    threaded: bool = False


KINDS = {
    "plain": Kind(),
    "few": Kind(limited="flow"),
    "fair": Kind(limited="key"),
    "ordered": Kind(ordered=True),
    "blocked": Kind(ordered=True, on_dead="block"),
    "both": Kind(ordered=True, limited="key"),
    "strict": Kind(ordered=True, limited="flow", on_dead="block"),
    "thread": Kind(limited="key", threaded=True),
    "parent": Kind(limited="flow"),
    "child": Kind(ordered=True, limited="key"),
}


@dataclass
class StartChecker:
    """Checks each start of a run against order and limits; `violations` lists what was wrong."""

    slots: int
    process_number: int = 0
    attempts: int = 0
    violations: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    running: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    started: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    open: dict[tuple[str, str], str] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    touched: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def attempt(self, kind: str, data: dict[str, Any]) -> Iterator[None]:
        """Record an attempt from its first line to its last."""
        view = current().run
        run_id, process_number = view.id, self.process_number
        with self.lock:
            self._enter(run_id, kind, data)
        final = False
        try:
            yield
            final = True
            self.ends[run_id] += 1
        except Exception as error:
            blocks = KINDS[kind].on_dead == "block"
            final = not blocks and not (isinstance(error, OSError) and view.attempt <= RETRIES)
            raise
        finally:
            with self.lock:
                if process_number == self.process_number:
                    self.running.pop(run_id, None)
                    key = (kind, data["k"])
                    if final and self.open.get(key) == run_id:
                        del self.open[key]

    def _enter(self, run_id: str, kind: str, data: dict[str, Any]) -> None:
        self.attempts += 1
        if run_id in self.running:
            self.violations.append(f"two attempts at once of {kind} {data}")
        policy, running = KINDS[kind], list(self.running.values())
        self.running[run_id] = (kind, data)
        if len(running) >= self.slots:
            self.violations.append(f"{len(running) + 1} run in {self.slots} slots")
        same = [other for name, other in running if name == kind]
        if policy.limited == "key":
            same = [other for other in same if other["l"] == data["l"]]
        if policy.limited and len(same) >= self.counts[kind]:
            self.violations.append(f"{len(same) + 1} of {kind} {data}, limit {self.counts[kind]}")
        if not policy.ordered:
            return
        key = (kind, data["k"])
        if any(name == kind and other["k"] == data["k"] for name, other in running):
            self.violations.append(f"two at once of the key {key}")
        holder = self.open.get(key, run_id)
        excused = holder in self.touched | self.dropped or kind == "child"
        if holder != run_id and not excused:
            self.violations.append(
                f"{kind} {run_id} {data} overtook the holder of its key {holder}"
            )
        self.open[key] = run_id
        started = self.started.setdefault(key, [])
        if run_id not in started:
            started.append(run_id)


async def act(data: dict[str, Any]) -> None:
    """Do what an event asks, in an async flow."""
    match data["do"]:
        case "slow":
            await asyncio.sleep(data["n"] % 7 / 1000)
        case "linger":  # its cancel takes a while
            try:
                await asyncio.sleep(0.004)
            finally:
                await asyncio.sleep(0.003)
        case "fail":
            raise ValueError("never")
        case "again" if current().attempt <= data["times"]:
            await asyncio.sleep(0)
            raise OSError("later")
        case "sleep":
            await sleep(timedelta(milliseconds=data["n"] % 9))
            await sleep(timedelta(milliseconds=data["n"] % 4))
        case "wait":
            with suppress(TimeoutError):
                await wait_for(go, match={"n": data["n"]}, timeout="60ms")


def act_in_thread(data: dict[str, Any]) -> None:
    """Do what an event asks, in a `def` flow."""
    match data["do"]:
        case "slow" | "linger":
            time.sleep(data["n"] % 7 / 1000)
        case "fail":
            raise ValueError("never")
        case "again" if current().attempt <= data["times"]:
            raise OSError("later")


# ---------------------------------------------------------------- the project


@dataclass(frozen=True)
class Shape:
    """A flow as the project declares it now."""

    name: str
    was: str | None = None
    count: int = 2
    served: bool = True


def declare(shapes: Mapping[str, Shape], checker: StartChecker) -> list[Flow[..., Any]]:
    """Return the flows that are served, in their shapes; `checker` is told of every attempt."""
    made = {kind: _flow(kind, shapes[kind], checker) for kind in KINDS if kind != "parent"}
    made["parent"] = _parent(made["child"], shapes["parent"], checker)
    return [made[kind] for kind in KINDS if shapes[kind].served]


def _declared(kind: str, shape: Shape, checker: StartChecker) -> Any:
    policy = KINDS[kind]
    checker.counts[kind] = max(shape.count, checker.counts.get(kind, 0))
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


def _flow(kind: str, shape: Shape, checker: StartChecker) -> Flow[..., Any]:
    if KINDS[kind].threaded:

        def work(event: Event) -> None:
            with checker.attempt(kind, event.data):
                act_in_thread(event.data)

        return _declared(kind, shape, checker)(work)  # type: ignore[no-any-return]

    if kind == "child":

        async def child(data: dict[str, Any]) -> None:
            with checker.attempt(kind, data):
                await act(data)

        return _declared(kind, shape, checker)(child)  # type: ignore[no-any-return]

    async def works(event: Event) -> None:
        with checker.attempt(kind, event.data):
            await act(event.data)

    return _declared(kind, shape, checker)(works)  # type: ignore[no-any-return]


def _parent(child: Flow[..., Any], shape: Shape, checker: StartChecker) -> Flow[..., Any]:
    async def parent(event: Event) -> None:
        with checker.attempt("parent", event.data):
            await child(event.data)

    return _declared("parent", shape, checker)(parent)  # type: ignore[no-any-return]
