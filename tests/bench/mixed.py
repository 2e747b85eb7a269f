"""(j) All triggers at once for five minutes: what waits, what is lost, what grows.

Webhooks come in an open loop, files are moved into a folder, a timer ticks, events are handed to
the API, and records come from an Apache Kafka. Afterwards each of them must have had its run,
once: webhooks by the journal, the others by their flow's first line.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]  # it carries no types

from tests.support.brokers import Broker, make_broker
from tests.support.program import Program, until

from . import flows, stamps, stored
from .load import processor_seconds
from .measure import Size, percentile
from .openloop import Answered, ask
from .report import Table
from .servers import HOOK, Fleet

WEBHOOKS_PER_SECOND = 200.0
FILES_PER_SECOND = 10.0
EVENTS_PER_SECOND = 20.0
RECORDS_PER_SECOND = 100.0
TOKEN = "bench-token-of-thirty-two-letters"


@dataclass(slots=True)
class Sent:
    """When each was sent or due, by its key."""

    at: dict[str, float] = field(default_factory=dict)


def run(size: Size) -> list[Table]:
    """Load the one service with everything."""
    seconds = 10.0 if size.quick else 300.0
    table = Table(
        "j", f"all triggers at once for {seconds:g} s",
        ("trigger", "sent", "a second", "lost", "doubled", "p50 ms", "p99 ms", "until"),
    )  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        (folder / "inbox").mkdir()
        env = {
            "BENCH_INBOX": str(folder / "inbox"),
            "BENCH_STAMPS": str(folder / "stamps"),
            "TURNOUT_API_TOKEN": TOKEN,
        }
        broker = _broker(folder, stack, table.lost)
        if broker is not None:
            env |= {
                "TURNOUT_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
                "BENCH_TOPIC": asyncio.run(broker.create_topic(partitions=4)),
            }
        program = Fleet(folder, stack).turnout("mixed", flows.MIXED, env=env).program
        assert program is not None
        _measure(table, program, broker, env, seconds)
    return [table]


def _broker(folder: Path, stack: ExitStack, lost: dict[str, str]) -> Broker | None:
    broker = make_broker("apache", folder / "broker")
    try:
        broker.spawn()
        stack.callback(broker.kill)
        broker.wait_ready()
    except (OSError, pytest.fail.Exception) as error:
        lost["Kafka"] = str(error)
        return None
    return broker


def _measure(
    table: Table, program: Program, broker: Broker | None, env: Mapping[str, str], seconds: float
) -> None:
    sent = {"files": Sent(), "API events": Sent()}
    senders: list[Callable[[], None]] = [
        partial(_drop, Path(env["BENCH_INBOX"]), sent["files"].at, seconds),
        partial(_emit, program, sent["API events"].at, seconds),
    ]
    if broker is not None:
        sent["Kafka"] = Sent()
        topic = env["BENCH_TOPIC"]
        senders.append(lambda: asyncio.run(_produce(broker, topic, sent["Kafka"].at, seconds)))
    answered: list[Answered] = []
    senders.append(
        lambda: answered.append(
            ask(program.port, HOOK, per_second=WEBHOOKS_PER_SECOND, seconds=seconds)
        )
    )
    idle, used, began = program.rss_mib(), processor_seconds(program.pid), time.time_ns() / 1e9
    threads = [threading.Thread(target=sender) for sender in senders]
    for thread in threads:
        thread.start()
    grown = _watch(program, threads)
    ended = time.time_ns() / 1e9
    share = (processor_seconds(program.pid) - used) / (ended - began)
    written = Path(env["BENCH_STAMPS"])
    keys = {key for one in sent.values() for key in one.at}
    with suppress(AssertionError):  # what is not there by then is lost, and counted so
        until(lambda: keys <= stamps.read(written).keys(), 60, "a run for each that was sent")
    program.quiet(60)
    _webhooks(table, program, answered[0], seconds)
    lines = [line.rsplit(" ", 1)[0] for line in written.read_text().splitlines()]
    started = stamps.read(written)
    for name, one in sent.items():
        _stamped(table, name, one.at, started, lines, seconds)
    ticks = {f"tick {due:.6f}": due for due in map(float, range(int(began) + 1, int(ended)))}
    _stamped(table, "timer", ticks, started, lines, seconds)
    table.at_most("lost", sum(float(str(row[3])) for row in table.rows), 0)
    table.at_most("doubled", sum(float(str(row[4])) for row in table.rows), 0)
    table.at_most("most MiB above idle", max(grown) - idle, 100)
    half = len(grown) // 2
    table.notes += [
        f"memory: {idle:.0f} MiB idle, {grown[half]:.0f} at half time, {grown[-1]:.0f} at the end;"
        f" processor: {share:.0%} of a core; latency from when it was sent or due",
    ]


def _watch(program: Program, threads: list[threading.Thread]) -> list[float]:
    """Wait for the senders; returns the memory each second, in MiB."""
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(program.rss_mib())
        time.sleep(1)
    return memory


def _webhooks(table: Table, program: Program, answered: Answered, seconds: float) -> None:
    ends = stored.ends(program.data)
    lost = sum(run not in ends for run in answered.due_at)
    doubled = sum(ends[run][1] > 1 for run in answered.due_at if run in ends)
    waits = [(ends[run][0] - due) * 1000 for run, due in answered.due_at.items() if run in ends]
    _row(table, "webhook", len(answered.due_at), seconds, lost, doubled, waits, "its run's end")


def _stamped(
    table: Table,
    name: str,
    sent: Mapping[str, float],
    started: Mapping[str, float],
    lines: list[str],
    seconds: float,
) -> None:
    waits = [(started[key] - at) * 1000 for key, at in sent.items() if key in started]
    ours = [line for line in lines if line in sent]
    lost, doubled = len(sent) - len(waits), len(ours) - len(set(ours))
    until_what = "its run's start, 100 ms settle" if name == "files" else "its run's start"
    _row(table, name, len(sent), seconds, lost, doubled, waits, until_what)


def _row(
    table: Table,
    name: str,
    count: int,
    seconds: float,
    lost: int,
    doubled: int,
    waits: list[float],
    until_what: str,
) -> None:
    p50, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
    table.add(name, count, count / seconds, lost, doubled, p50, p99, until_what)


# ---------------------------------------------------------------- senders


def _paced(per_second: float, seconds: float) -> Iterator[int]:
    """Count at so many a second, whatever each takes."""
    started = time.monotonic()
    for number in range(int(per_second * seconds)):
        time.sleep(max(0.0, started + number / per_second - time.monotonic()))
        yield number


def _drop(inbox: Path, sent: dict[str, float], seconds: float) -> None:
    outside = inbox.with_name("outside")
    outside.mkdir()
    for number in _paced(FILES_PER_SECOND, seconds):
        name = f"file-{number:06}.json"
        (outside / name).write_bytes(b"{}")
        sent[name] = time.time_ns() / 1e9
        (outside / name).rename(inbox / name)


def _emit(program: Program, sent: dict[str, float], seconds: float) -> None:
    headers = {
        "content-type": "application/cloudevents+json",
        "authorization": f"Bearer {TOKEN}",
    }
    for number in _paced(EVENTS_PER_SECOND, seconds):
        key = f"event-{number:06}"
        event = {
            "specversion": "1.0", "id": key, "source": "/bench", "type": "order.placed",
            "datacontenttype": "application/json", "data": {"key": key},
        }  # fmt: skip
        sent[key] = time.time_ns() / 1e9
        answer = program.ask(
            "/api/events", method="POST", body=json.dumps(event).encode(), headers=headers
        )
        assert answer is not None and answer.status == 202, answer


async def _produce(broker: Broker, topic: str, sent: dict[str, float], seconds: float) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
    await producer.start()
    started = time.monotonic()
    try:
        for number in range(int(RECORDS_PER_SECOND * seconds)):
            await asyncio.sleep(started + number / RECORDS_PER_SECOND - time.monotonic())
            key = f"record-{number:06}"
            sent[key] = time.time_ns() / 1e9
            await producer.send(topic, json.dumps({"key": key}).encode())
    finally:
        await producer.stop()
