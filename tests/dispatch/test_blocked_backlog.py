"""A backlog blocked by its key holds up nobody else: a free run starts as in an empty queue."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.conftest import Say
from tests.support import inside
from tests.support.program import Program, until
from tests.support.running import Running, make_event, running
from turnout import flow, limit, throttle
from turnout.service.dispatch import memory
from turnout.service.domain.event import Event

pytestmark = pytest.mark.slow

TRIES = 40
START_SECONDS = 2.0
"""What a start may take longer with a million queued runs; measured: 1.0 s, and 1.9 at load 11."""


class Started:
    """Notes how long each free run took from its send to its start."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.heard = asyncio.Event()
        self.go = asyncio.Event()

    def flow(self) -> Any:
        @flow(concurrency=limit(1, per=lambda event: event.data[0]))
        async def work(event: Event) -> None:
            key, sent = event.data
            if key == "busy":
                await self.go.wait()
                return
            self.seconds.append(time.monotonic() - sent)
            self.heard.set()

        return work

    async def measure(self, service: Running) -> float:
        """Send free runs one by one; return how long one takes to start, in seconds."""
        self.seconds.clear()
        for number in range(TRIES):
            self.heard.clear()
            await service.send((f"free {number}", time.monotonic()))
            await self.heard.wait()
        return median(self.seconds)


@pytest.mark.timeout(1800)
async def test_a_free_run_starts_past_a_backlog_blocked_by_its_key(
    tmp_path: Path, full: bool, say: Say
) -> None:
    count, started = 1_000_000 if full else 5_000, Started()
    bound: dict[str, Any] = {"max_unfinished_runs": 2 * count}
    async with running(tmp_path, [started.flow()], concurrency=20, **bound) as service:
        await started.measure(service)
        empty = await started.measure(service)
        for _ in range(0, count, 1000):
            await service.emitter([make_event(("busy", 0.0)) for _ in range(1000)])
        queue = inside.scheduler(service.process).queue("work")
        async with asyncio.timeout(600):
            while queue.head(2).has_runs:  # noqa: ASYNC110  until all are set aside behind the key
                await asyncio.sleep(0.05)
        full_queue = min([await started.measure(service) for _ in range(3)])
        say(f"{count} blocked: {full_queue * 1000:.2f} ms, empty: {empty * 1000:.2f} ms")
        service.process.dispatcher.pause("work")
        started.go.set()
    assert full_queue <= max(empty * 1.3, empty + 0.005)
    if full:
        after_start, after_empty_start = (
            min(first_start(data, tmp_path) for _ in range(3))
            for data in (tmp_path, tmp_path / "empty")
        )
        say(f"after a start: {after_start:.2f} s, with an empty queue {after_empty_start:.2f} s")
        # A start counts all queued runs, and passes over them once.
        assert after_start <= after_empty_start * 1.3 + START_SECONDS


async def test_a_backlog_beyond_memory_that_two_rules_block_is_not_read_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "WINDOW", 4)
    may_end, started = asyncio.Event(), asyncio.Queue[str]()

    @flow(
        concurrency=limit(1, per=lambda event: event.data["account"]),
        rate=throttle("1/h", per=lambda event: event.data["customer"]),
    )
    async def work(event: Event) -> None:
        started.put_nowait(event.data["customer"])
        if event.data["customer"] == "first":
            await may_end.wait()

    reads = 0
    async with running(tmp_path, [work]) as service:
        journal: Any = service.process.journal
        read = journal.queued_for_key

        async def counted(*asked: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*asked)

        monkeypatch.setattr(journal, "queued_for_key", counted)
        await service.send({"account": "a", "customer": "first"})
        for _ in range(20):
            await service.send({"account": "a", "customer": "slow"})
        may_end.set()
        assert [await started.get() for _ in range(2)] == ["first", "slow"]
        for number in range(100):
            await service.send({"account": number, "customer": f"free {number}"})
            assert await started.get() == f"free {number}"
    assert reads <= 25, "each run that waits is asked once for each turn"


FLOWS = """
import asyncio
import time
from pathlib import Path

from turnout import Event, flow, limit, webhook

@flow(on=webhook("/work"), concurrency=limit(1, per=lambda event: event.data[0]))
async def work(event: Event) -> None:
    if event.data[0] == "busy":
        await asyncio.sleep(3600)
    Path(event.data[1]).write_text(str(time.monotonic()))
"""


def first_start(data: Path, folder: Path) -> float:
    """Return how long after the start of the program its first new run starts, in seconds."""
    flows, seen = folder / "flows.py", folder / "started"
    flows.write_text(FLOWS)
    seen.unlink(missing_ok=True)
    program = Program(
        flows=flows,
        data=data,
        log=folder / "log",
        env={"TURNOUT_GRACE": "1s", "TURNOUT_MAX_UNFINISHED_RUNS": "2000000"},
    )
    with program:
        began = time.monotonic()
        program.start().ready(60)
        body = json.dumps(["new", str(seen)]).encode()
        answer = program.ask("/hooks/work", method="POST", body=body, timeout=60)
        assert answer is not None and answer.status == 202, answer
        at = until(lambda: seen.read_text() if seen.exists() else "", 60, "the run has started")
    return float(at) - began
