"""What all tests share: the `--full` size, a printed seed, and a guard against blocked loops."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest
from blockbuster import blockbuster_ctx

pytest_plugins = ["tests.support.brokers", "turnout.testing.fixture"]

Say = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run fault and load tests at full size")


BROKERS = {"kafka", "private_kafka", "lone_kafka"}
BROKER_TEST_SECONDS = 60
"""A broker that is started, killed or rebalanced in a test takes seconds of its own."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        bounded = item.get_closest_marker("timeout") is not None
        if not bounded and BROKERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(BROKER_TEST_SECONDS))
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="full size only: --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to run at full size rather than smoke size (decision 33)."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Print a measured number into the test report, captured output or not."""
    plugins = request.config.pluginmanager
    capture = plugins.get_plugin("capturemanager")
    reporter = plugins.get_plugin("terminalreporter")

    def write(text: str) -> None:
        if reporter is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                reporter.write_line(f"\n  {request.node.name}: {text}")

    return write


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
