"""The pytest fixture `flows`: a service under test for tests that are not async.

In `conftest.py`: `pytest_plugins = ["turnout.testing.fixture"]`. Then
`service = flows(bill, refund)` serves flows until the end of the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from turnout.service.domain.event import Event
from turnout.service.project import AnyFlow

from .clock import Clock
from .service import Result, Service, serve
from .told import Told
from .windows import Pending


class Bench:
    """`Service` without `await`; time goes on only inside its calls."""

    def __init__(self, runner: asyncio.Runner, service: Service) -> None:
        self._runner = runner
        self._service = service

    @property
    def clock(self) -> Clock:
        """The virtual clock."""
        return self._service.clock

    @property
    def alerts(self) -> list[Told]:
        """What people would have been told; see `Service.alerts`."""
        return self._service.alerts

    def run(self, flow: AnyFlow, json: Any = None, *, crash_at: int | None = None) -> Result:
        """Run a flow to its end; see `Service.run`."""
        return self._runner.run(self._service.run(flow, json, crash_at=crash_at))

    def emit(self, event: Event, *, crash_at: int | None = None) -> list[Result]:
        """Emit an event and run what it starts; see `Service.emit`."""
        return self._runner.run(self._service.emit(event, crash_at=crash_at))

    def answer(self, run_id: str, **said: Any) -> Result:
        """Answer an approval; see `Service.answer`."""
        return self._runner.run(self._service.answer(run_id, **said))

    def look(self, run_id: str) -> Result:
        """Return a run as it is now."""
        return self._runner.run(self._service.look(run_id))

    def ended(self, run_id: str) -> Result:
        """Go on until a run has ended; see `Service.ended`."""
        return self._runner.run(self._service.ended(run_id))

    def runs(self, flow: AnyFlow | str) -> list[Result]:
        """Return the runs of a flow; see `Service.runs`."""
        return self._runner.run(self._service.runs(flow))

    def pending(self, flow: AnyFlow | str | None = None) -> list[Pending]:
        """Return the open windows; see `Service.pending`."""
        return self._runner.run(self._service.pending(flow))

    def fire(self, window: Pending) -> None:
        """Fire an open window now; see `Service.fire`."""
        self._runner.run(self._service.fire(window))

    def drop(self, window: Pending) -> None:
        """Drop an open window; see `Service.drop`."""
        self._runner.run(self._service.drop(window))

    def state(self, flow: AnyFlow | str, *, key: str = "") -> Any:
        """Return what a flow keeps between runs; see `Service.state`."""
        return self._runner.run(self._service.state(flow, key=key))

    def assert_decided(
        self, event: Event | str, reason: str, *, flow: AnyFlow | str | None = None, **facts: Any
    ) -> Mapping[str, Any]:
        """Assert that an event was decided for this reason; see `Service.assert_decided`."""
        return self._runner.run(self._service.assert_decided(event, reason, flow=flow, **facts))

    def advance(self, duration: str | timedelta) -> None:
        """Let time pass; see `Service.advance`."""
        self._runner.run(self._service.advance(duration))

    def restart(self) -> None:
        """Kill the process and start another; see `Service.restart`."""
        self._runner.run(self._service.restart())


@pytest.fixture
def flows() -> Iterator[Callable[..., Bench]]:
    """Return what serves flows until the test ends."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        def start(*served: AnyFlow, **settings: Any) -> Bench:
            opening = stack.enter_async_context(serve(*served, **settings))
            return Bench(runner, runner.run(opening))

        try:
            yield start
        finally:
            runner.run(stack.aclose())
