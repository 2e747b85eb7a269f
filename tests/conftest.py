"""What all tests share: `--core`, `--full`, printed numbers and a seed, a guard of the loop."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import secrets
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.kafka", "tests.support.workers", "turnout.testing.fixture"]

# How long an example takes says more about the machine than about the code.
settings.register_profile("turnout", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("turnout")

Say = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run fault and load tests at full size")
    parser.addoption("--core", action="store_true", help="run the quick tests only")


TESTS = Path(__file__).parent
NOT_CORE = (TESTS / "faults", TESTS / "bench")


BROKERS = {"kafka", "private_kafka", "proxied_kafka", "lone_kafka", "mock_cluster"}
BROKER_TEST_SECONDS = 60
"""A broker that is started, killed or rebalanced in a test takes seconds of its own."""


def uses_broker(item: pytest.Item) -> bool:
    return not BROKERS.isdisjoint(getattr(item, "fixturenames", ()))


def is_core(item: pytest.Item) -> bool:
    """Whether a contributor runs it after every change; `tests/README.md` states the rule."""
    elsewhere = any(item.path.is_relative_to(folder) for folder in NOT_CORE)
    return not (elsewhere or uses_broker(item) or item.get_closest_marker("slow"))


@pytest.hookimpl(tryfirst=True)  # before pytest applies `-m`, so that `-m core` works too
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if uses_broker(item) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(BROKER_TEST_SECONDS))
        if is_core(item):
            item.add_marker(pytest.mark.core)
    if config.getoption("--core"):
        config.hook.pytest_deselected(items=[item for item in items if not is_core(item)])
        items[:] = [item for item in items if is_core(item)]
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="full size only: --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to run at full size rather than smoke size."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Print a measured number into the test report, captured output or not."""
    plugins = request.config.pluginmanager
    capture = plugins.get_plugin("capturemanager")
    reporter = plugins.get_plugin("terminalreporter")
    is_worker = hasattr(request.config, "workerinput")  # it has a reporter too, that prints nowhere

    def write(text: str) -> None:
        line = f"\n  {request.node.name}: {text}"
        if is_worker or reporter is None or capture is None:  # a worker's controller prints
            request.node.user_properties.append(("said", line))
            return
        with capture.global_and_fixture_disabled():
            reporter.write_line(line)

    return write


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a test that timed out where each of its asyncio tasks waits."""
    report = yield
    if call.excinfo is not None and "pytest-timeout" in str(call.excinfo.value):
        waiting = io.StringIO()
        for task in gc.get_objects():
            if isinstance(task, asyncio.Task) and not task.done():
                task.print_stack(file=waiting)
        report.sections.append(("asyncio tasks", waiting.getvalue()))
    return report


class Said:
    """Prints what tests said in the workers."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self.reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            for name, line in report.user_properties:
                if name == "said":
                    self.reporter.write_line(str(line))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(Said(reporter))


@pytest.fixture
def seed(say: Say) -> int:
    """Return a fresh seed, printed; `TURNOUT_TEST_SEED` repeats an earlier one."""
    chosen = int(os.environ.get("TURNOUT_TEST_SEED") or secrets.randbits(32))
    say(f"TURNOUT_TEST_SEED={chosen}")
    return chosen


@pytest.fixture(autouse=True)
def loop_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an asyncio test in which turnout's own code blocks the loop."""
    if request.node.get_closest_marker("asyncio") is None:
        yield
        return
    with blockbuster_ctx("turnout") as guard:
        # A log line may wait for its reader: losing it would be worse.
        guard.functions["io.TextIOWrapper.write"].can_block_in("service/telemetry/logs.py", "emit")
        # An isolated run's registration waits for the disk: the next line may end the process.
        guard.functions["threading.Lock.acquire"].can_block_in(
            "service/journal/sqlite/journal.py", "flush"
        )
        yield
