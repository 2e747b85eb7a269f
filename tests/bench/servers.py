"""Servers under measurement, each a process of its own: turnout and its references."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port
from tests.support.program import Program, until

from .load import BODY, Load, post, processor_seconds

HOOK = "/hooks/orders"


@dataclass(slots=True)
class Served:
    """A server that answers, and where."""

    name: str
    pid: int
    port: int
    program: Program | None = None
    start_seconds: float = 0.0

    @property
    def url(self) -> str:
        """Where the webhook is."""
        return f"http://127.0.0.1:{self.port}{HOOK}"

    def load(
        self,
        *,
        seconds: float,
        connections: int = 64,
        query: str = "",
    ) -> tuple[Load, dict[str, float]]:
        """Load it; returns what came of it with the figures a table shows.

        A server that records runs is loaded until the last is recorded: its rate is of those.
        """
        cpu = processor_seconds(self.pid)
        load = post(self.url + query, seconds=seconds, connections=connections)
        if load.refused or load.broken:
            raise AssertionError(f"{self.name}: {load.refused} refused, {load.broken} broken")
        used = processor_seconds(self.pid) - cpu
        return load, {
            "rate": load.rate,
            "requests": load.requests,
            "cpu": used / load.requests * 1e6,
            "p50": load.latency_ms[50],
            "p99": load.latency_ms[99],
        }

    def load_until_recorded(self, *, seconds: float, connections: int = 64) -> dict[str, float]:
        """Load it and wait for the last run's outcome: the rate and the cost are of both."""
        assert self.program is not None
        cpu, started = processor_seconds(self.pid), time.perf_counter()
        load = post(self.url, seconds=seconds, connections=connections)
        elapsed = load.seconds
        if self.program.unfinished():
            self.program.quiet(120)
            elapsed = max(elapsed, time.perf_counter() - started)
        if load.refused or load.broken:
            raise AssertionError(f"{self.name}: {load.refused} refused, {load.broken} broken")
        return {
            "rate": load.requests / elapsed,
            "requests": load.requests,
            "cpu": (processor_seconds(self.pid) - cpu) / load.requests * 1e6,
            "p50": load.latency_ms[50],
            "p99": load.latency_ms[99],
        }


class Fleet:
    """Starts servers in a folder, and ends them all."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def turnout(
        self,
        name: str,
        flows: str,
        *,
        env: Mapping[str, str] | None = None,
        prepare: Callable[[Path], None] | None = None,
    ) -> Served:
        """Serve a flow file with turnout's defaults; `prepare` fills its data folder first."""
        place = self._folder / name
        place.mkdir()
        if prepare is not None:
            (place / "data").mkdir(mode=0o700)
            prepare(place / "data")
        (place / "flows.py").write_text(flows)
        program = Program(
            flows=place / "flows.py", data=place / "data", log=place / "log", env=env or {}
        )
        self._stack.enter_context(program)
        seconds = program.start().ready(120)
        return Served(name, program.pid, program.port, program, seconds)

    def reference(self, kind: str) -> Served:
        """Serve one of `references`."""
        place = self._folder / f"reference-{kind}"
        place.mkdir()
        port = free_port()
        command = [sys.executable, "-m", "tests.bench.references", kind, str(port), str(place)]
        return self.command(f"reference-{kind}", command, port)

    def command(
        self, name: str, command: Sequence[str], port: int, ready: Callable[[], bool] | None = None
    ) -> Served:
        """Serve with any command that answers the webhook's path on `port`."""
        log = (self._folder / f"{name}.log").open("ab")
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._stack.callback(child.wait, 30)
        self._stack.callback(child.kill)
        self._stack.callback(log.close)
        probe = Program(flows=Path(), data=Path(), log=Path(), port=port)

        def answers() -> bool:
            answer = probe.ask(
                HOOK, method="POST", body=BODY, headers={"content-type": "application/json"}
            )
            return answer is not None and answer.status == 202

        until(ready or answers, 30, f"an answer of {name}")
        return Served(name, child.pid, port)
