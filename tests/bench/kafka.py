"""(c) Kafka records accepted, and run to their recorded end, beside a bare loop and FastStream.

The topic is filled first, 12 partitions of JSON records of 300 bytes, on an Apache Kafka of its
own. The bare loop is aiokafka's `getmany` and orjson, and commits what it has decoded; FastStream
calls a handler for each record, or for each list of up to 500; neither keeps anything. A rate is
taken from the moment the partitions are assigned, so joining the group does not count; the
processor time is the consuming process's alone. `python -m tests.bench.kafka [--quick]` measures
this by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import orjson
import uvloop
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    AIOKafkaProducer,
)

from tests.support.brokers import Broker, make_broker, unique
from tests.support.program import Program, until

from .measure import Size, Spread, interleave, ratio
from .peers import measured
from .report import Table

PARTITIONS = 12
LOOK_SECONDS = 0.05  # each look at the metrics costs the program a millisecond
RECORD = {
    "id": "", "customer": "c-1029", "amount": 129.9, "currency": "EUR",
    "items": [{"sku": "A-1", "count": 2, "price": 50.0}, {"sku": "B-7", "count": 1, "price": 29.9}],
    "address": {"street": "Long Street 12", "city": "Harbour", "zip": "10115", "country": "DE"},
    "note": "leave it with the neighbour",
}  # fmt: skip

FLOW = """
import asyncio, os
from turnout import flow, limit
from turnout.triggers.kafka import kafka

ORDERS = kafka(os.environ["BENCH_TOPIC"], group=os.environ["BENCH_GROUP"], start="earliest")
"""
OCCUPIED = f"""{FLOW}
@flow(on=ORDERS, concurrency=limit(1))
async def bill(order: dict) -> None:
    await asyncio.sleep(36_000)
"""
FREE = f"""{FLOW}
@flow(on=ORDERS)
async def bill(order: dict) -> None:
    return None
"""

BATCH = 500
BATCHED = f"""{FLOW.replace("flow, limit", "batch, flow")}
@flow(on=batch(ORDERS, {BATCH}, "200ms"))
async def bill(orders: list[dict]) -> None:
    return None
"""


def run(size: Size) -> list[Table]:
    """Measure the way in from Kafka, and the way to the end of the run."""
    count = 20_000 if size.quick else 200_000
    with tempfile.TemporaryDirectory(prefix="turnout-bench-kafka-") as place:
        folder = Path(place)
        broker = make_broker("apache", folder / "broker")
        broker.spawn()
        try:
            broker.wait_ready()
            topic = asyncio.run(_fill(broker, count))
            measures: dict[str, Callable[[], Mapping[str, float]]] = {
                "bare": partial(_bare, broker, topic, count),
                "accept": partial(_accept, broker, topic, count, folder),
                "first": partial(_faststream, broker, topic, count, "default"),
                "run": partial(_run, broker, topic, count, folder),
                "batches": partial(_batches, broker, topic, count, folder),
                "lists": partial(_faststream, broker, topic, count, "batch"),
                "acked lists": partial(_faststream, broker, topic, count, "batch-ack"),
                "ack": partial(_faststream, broker, topic, count // 20, "ack"),
            }
            lost: dict[str, str] = {}
            found = interleave(1 if size.quick else 3, measures, lost)
        finally:
            broker.kill()
    table = _table(found, count)
    table.lost = {f"FastStream, {name}": why for name, why in lost.items()}
    return [table]


ROWS = (
    ("bare", "aiokafka getmany + orjson, committed", "nothing"),
    ("accept", "turnout: accepted, run queued", "event, run, offset"),
    ("first", "FastStream, as it comes", "nothing"),
    ("ack", "FastStream, AckPolicy.ACK", "offset"),
    ("lists", f"FastStream, lists of up to {BATCH}", "nothing"),
    ("acked lists", f"FastStream, lists of up to {BATCH}, AckPolicy.ACK", "offset"),
    ("run", "turnout: run to its recorded end", "event, run, offset, outcome"),
    ("batches", f"turnout: batches of {BATCH}, run to their recorded end",
     "each event, its batch, run, offset, outcome"),
)  # fmt: skip


def _table(found: Mapping[str, Mapping[str, list[float]]], count: int) -> Table:
    table = Table(
        "c",
        f"Kafka: {count:,} records of 300 bytes, {PARTITIONS} partitions",
        ("what", "durable when counted", "records/s", "× bare", "CPU µs/record"),
    )
    bare = found["bare"]["rate"]
    for name, text, durable in ROWS:
        if name in found:
            rates, micros = found[name]["rate"], Spread.of(found[name]["micros"])
            table.add(text, durable, Spread.of(rates), ratio(rates, bare), micros)
    table.at_least("accepted × bare", ratio(found["accept"]["rate"], bare).median, 0.15)
    for name, text, bound in (("first", "as it comes", 1.5), ("ack", "AckPolicy.ACK", 10)):
        if name in found:
            times = ratio(found["run"]["rate"], found[name]["rate"]).median
            table.at_least(f"run recorded × FastStream {text}", times, bound)
    if "first" in found:
        times = ratio(found["batches"]["rate"], found["first"]["rate"]).median
        table.at_least("batches recorded × FastStream one by one", times, 3)
    if "lists" in found:
        times = ratio(found["batches"]["rate"], found["lists"]["rate"]).median
        table.notes.append(f"Batches recorded × FastStream by lists: {times:.2f}.")
    table.notes.append(
        f"FastStream one by one with AckPolicy.ACK reads the first {count // 20:,} records."
    )
    return table


async def _fill(broker: Broker, count: int) -> str:
    topic = await broker.create_topic(partitions=PARTITIONS)
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=5)
    await producer.start()
    try:
        for number in range(count):
            value = orjson.dumps(RECORD | {"id": f"order-{number:08d}"})
            await producer.send(topic, value, partition=number % PARTITIONS)
    finally:
        await producer.stop()
    return topic


def _bare(broker: Broker, topic: str, count: int) -> Mapping[str, float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_read(broker, topic, count))


async def _read(broker: Broker, topic: str, count: int) -> Mapping[str, float]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap,
        group_id=unique("bare"),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        while not consumer.assignment():  # noqa: ASYNC110  the client sets no event
            await asyncio.sleep(0.001)
        seen, started, worked = 0, time.perf_counter(), time.process_time()
        while seen < count:
            for records in (await consumer.getmany(timeout_ms=250)).values():
                for record in records:
                    orjson.loads(record.value)
                seen += len(records)
            await consumer.commit()
        rate = count / (time.perf_counter() - started)
        return {"rate": rate, "micros": (time.process_time() - worked) / count * 1e6}
    finally:
        await consumer.stop()


def _faststream(broker: Broker, topic: str, count: int, policy: str) -> Mapping[str, float]:
    arguments = (broker.bootstrap, topic, unique("peer"), str(count), policy)
    return measured("faststream", "faststream_kafka", *arguments, timeout=300)


def _accept(broker: Broker, topic: str, count: int, folder: Path) -> Mapping[str, float]:
    return _rate(broker, topic, folder, OCCUPIED, count, _accepted)


def _run(broker: Broker, topic: str, count: int, folder: Path) -> Mapping[str, float]:
    return _rate(broker, topic, folder, FREE, count, _ended)


def _batches(broker: Broker, topic: str, count: int, folder: Path) -> Mapping[str, float]:
    return _rate(broker, topic, folder, BATCHED, count, partial(_ended_in_batches, count))


def _accepted(program: Program) -> float:
    found = program.metrics("turnout_events_total")
    return sum(value for labels, value in found.items() if 'result="accepted"' in labels)


def _ended(program: Program) -> float:
    """Return how many runs have ended; what is accepted later is not counted as unfinished yet."""
    unfinished = program.unfinished()
    return max(0.0, _accepted(program) - unfinished)


def _ended_in_batches(count: int, program: Program) -> float:
    """Return how many records are accepted, once no window is open and no run unfinished.

    As long as some are not accepted it does not ask for more than that.
    """
    accepted = _accepted(program)
    if accepted < count or program.unfinished() or program.api("/pending?limit=1")["items"]:
        return 0
    return accepted


def _rate(
    broker: Broker,
    topic: str,
    folder: Path,
    flows: str,
    count: int,
    done: Callable[[Program], float],
) -> Mapping[str, float]:
    place = folder / unique("turnout")
    place.mkdir()
    (place / "flows.py").write_text(flows)
    env = {
        "TURNOUT_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
        "BENCH_TOPIC": topic,
        "BENCH_GROUP": unique("group"),
    }
    with Program(
        flows=place / "flows.py", data=place / "data", log=place / "log", env=env
    ) as program:
        program.start()
        until(lambda: program.ask("/metrics"), 30, "metrics")
        until(lambda: sum(program.metrics("turnout_trigger_up").values()), 60, "partitions")
        started, worked = time.perf_counter(), _worked(program)
        until(lambda: _looked(program, done) >= count, 900, f"{count} records")
        rate = count / (time.perf_counter() - started)
        return {"rate": rate, "micros": (_worked(program) - worked) / count * 1e6}


def _looked(program: Program, done: Callable[[Program], float]) -> float:
    time.sleep(LOOK_SECONDS)
    return done(program)


def _worked(program: Program) -> float:
    times = program.process().cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure this alone; nothing is kept."""
    from .report import text_of

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5,000 records, one round")
    for table in run(Size(quick=parser.parse_args().quick)):
        sys.stdout.write(text_of(table.kept()) + "\n")


if __name__ == "__main__":
    main()
