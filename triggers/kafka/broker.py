"""The broker's side: meeting a cluster, its topics and offsets, each call bounded and named.

The client's calls can wait for ever when brokers are away, and end in errors of a dozen kinds.
Here every call has an end, and an error is a `TriggerError` that says what could not be done. Not
here: what the offsets mean (`ledger`) and reading (`reading`).
"""

from __future__ import annotations

import asyncio
import copy
import logging
import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from types import FunctionType
from typing import Any

from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    TopicPartition,
)
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]  # as above
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]  # as above
from aiokafka.conn import create_conn  # type: ignore[import-untyped]  # as above
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]  # as above
from aiokafka.protocol.group import LeaveGroupRequest  # type: ignore[import-untyped]  # as above
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]  # as above

from turnout.service.domain.errors import TriggerError

from .leader_epochs import epoch_ends
from .positions import Bounds, Leader, Place, Spans
from .topic_ids import FETCHING, Identity, by_leader, identities

# The client logs each attempt of each retry as an error; the trigger reports the state instead.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

MEET_SECONDS = 15.0
"""How long the cluster gets to answer before the trigger calls itself down and tries again."""

CLIENT_ERRORS = (KafkaError, OSError, TimeoutError, AssertionError, RuntimeError)
"""What calls of the client end in when brokers go away (RuntimeError: its transport is closed)."""

_STOP_SECONDS = 0.6
_START_SECONDS = 0.2
_COPIES = 3
_TOPIC_ALREADY_EXISTS = 36
_READ_UNCOMMITTED = 0
_MARKS = {"topic", "epoch", "done"}
_SPANS = re.compile(r"\d+\+[1-9]\d*(,\d+\+[1-9]\d*)*")


@contextmanager
def named(doing: str) -> Iterator[None]:
    """Turn the client's errors into a `TriggerError` that begins with what was being done.

    `IllegalStateError` and `CommitFailedError` pass: the assignment has changed meanwhile, and
    nothing is wrong.
    """
    try:
        yield
    except (CommitFailedError, IllegalStateError):
        raise
    except CLIENT_ERRORS as error:
        raise TriggerError(f"{doing}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return Kafka's own word for an error, on one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if not text:
        return "no answer in time" if isinstance(error, TimeoutError) else name
    return text if text.startswith(name) else f"{name}: {text}"


def key_of(partition: TopicPartition) -> str:
    """Return `topic/partition`, the name of a partition in positions and metrics."""
    return f"{partition.topic}/{partition.partition}"


def partition_named(key: str) -> TopicPartition:
    """Read back `key_of`."""
    topic, _, number = key.rpartition("/")
    return TopicPartition(topic, int(number))


@dataclass(frozen=True, slots=True)
class Met:
    """A cluster, and how many partitions each topic had when it was asked: 0 of one not there.

    `problem` says which one is still missing.
    """

    cluster: str
    topics: Mapping[str, int]
    problem: str | None

    def check(self) -> Met:
        """Return itself; raises `TriggerError` if a topic is missing."""
        if self.problem is not None:
            raise TriggerError(self.problem)
        return self


async def meet(connection: Mapping[str, Any], topics: Sequence[str], *, create: int | None) -> Met:
    """Look at a cluster and these topics of it; at all but Kafka's own when none are given.

    A topic that is missing is created with `create` partitions. Raises `TriggerError`.
    """
    servers = ", ".join(connection["bootstrap_servers"])
    with named(f"cannot reach Kafka at {servers}"):
        admin = AIOKafkaAdminClient(**connection)
        try:
            async with asyncio.timeout(MEET_SECONDS):
                try:
                    await started(admin)
                except KafkaConnectionError:
                    await _say_why(connection)
                    raise
                described = await admin.describe_cluster()
                found = await _describe(admin, topics)
                missing = [topic for topic, partitions in found.items() if not partitions]
                if create is not None and missing:
                    copies = min(len(described["brokers"]), _COPIES)
                    await _create(admin, missing, create, copies)
                    missing.clear()
        finally:
            with suppress(KafkaError, OSError):
                await admin.close()
    problem = None
    if missing:
        problem = (
            f"Kafka at {servers} has no topic {missing[0]!r}; make it, or let the trigger do so: "
            "kafka(…, create=PARTITIONS)"
        )
    return Met(str(described["cluster_id"] or "unknown"), found, problem)


async def _say_why(connection: Mapping[str, Any]) -> None:
    """Raise the error the client keeps to itself when no broker takes it: a password, a name."""
    options = {**connection, "request_timeout_ms": 5000}
    for server in options.pop("bootstrap_servers"):
        host, _, port = server.rpartition(":")
        (await create_conn(host.strip("[]"), int(port), **options)).close()


async def _describe(admin: Any, topics: Sequence[str]) -> dict[str, int]:
    """Return how many partitions each topic has, 0 where it is missing; all when none given."""
    found = dict.fromkeys(topics, 0)
    # Not the client's own question: that makes the topics it asks for, where brokers let it.
    asked = MetadataRequest(list(topics) or None, allow_auto_topic_creation=False)
    for topic in (await admin._send_request(asked)).to_object()["topics"]:
        name, code = topic["topic"], topic["error_code"]
        if code == 0:
            if topics or not topic["is_internal"]:
                found[name] = len(topic["partitions"])
        elif code not in (3, 5):  # unknown, or its leader is being chosen
            raise for_code(code)(name)
    return found


async def _create(admin: Any, topics: Sequence[str], partitions: int, copies: int) -> None:
    answer = await admin.create_topics([NewTopic(name, partitions, copies) for name in topics])
    for name, code, *_ in answer.topic_errors:
        if code not in (0, _TOPIC_ALREADY_EXISTS):
            raise for_code(code)(name)
    while 0 in (await _describe(admin, topics)).values():  # noqa: ASYNC110  the broker tells nobody
        await asyncio.sleep(0.05)  # made, and not known to every broker yet


async def started(client: Any) -> None:
    """Start a consumer or admin client.

    A cancel waits for a moment: the client leaves the connection it is just opening behind.
    """
    starting = asyncio.get_running_loop().create_task(client.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([starting], timeout=_START_SECONDS)
        finally:
            starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        raise


@asynccontextmanager
async def consumer(
    connection: Mapping[str, Any], **options: Any
) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer, not started; it is stopped within a second at exit, whatever happens.

    It only looks: what it asks for is not made by brokers that make the topics they are asked for.
    """
    made = AIOKafkaConsumer(**connection, **options)
    made._client._metadata_update = partial(_metadata_update, made._client)
    try:
        yield made
    finally:
        await _stop(made)


# The client's own, but for one option of its request, which it cannot be told: with a topic that
# is deleted, a consumer would have it made anew within a second, with the broker's defaults.
_metadata_update = FunctionType(
    AIOKafkaClient._metadata_update.__code__,
    {
        **AIOKafkaClient._metadata_update.__globals__,
        "MetadataRequest": partial(MetadataRequest, allow_auto_topic_creation=False),
    },
)


async def _stop(made: AIOKafkaConsumer) -> None:
    coordinator = made._coordinator
    if coordinator is not None and coordinator.generation == 0:
        await _leave(coordinator)  # some brokers count from 0, which the client takes for no member
    if await _ended(made.stop, _STOP_SECONDS):
        return
    # Its stop did not end (no broker, or a rebalance under way): leave nothing of it behind.
    if coordinator is not None:
        await _ended(coordinator._stop_heartbeat_task)
        await _ended(coordinator._stop_commit_offsets_refresh_task)
        await _leave(coordinator)
    if made._fetcher is not None:
        await _ended(made._fetcher.close)
    await _ended(made._client.close)


async def _leave(coordinator: Any) -> None:
    if coordinator.member_id:
        leave = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
        await _ended(partial(coordinator._send_req, leave))


async def _ended(step: Callable[[], Awaitable[Any]], seconds: float = 0.1) -> bool:
    """Take a step of closing down, for so long; returns whether it ended well.

    The client raises CancelledError out of these when its broker is away: only our own is passed.
    """
    task = asyncio.current_task()
    assert task is not None
    cancels = task.cancelling()
    try:
        async with asyncio.timeout(seconds):
            await step()
    except (*CLIENT_ERRORS, asyncio.CancelledError):
        if task.cancelling() > cancels:
            raise
        return False
    return True


async def bounds(
    reader: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, Bounds]:
    """Ask for topic, first offset, end and the group's committed offset of each partition."""
    listed = list(partitions)
    with named("cannot read offsets"):
        async with asyncio.timeout(MEET_SECONDS):
            # Before all else: what is then found out of a topic made anew right now is too much
            # for the old one, which shows soon, and never too little for the new one.
            its = await identities(reader, listed)
            first = await reader.beginning_offsets(listed)
            stable = await reader.end_offsets(listed)
            end = await _log_ends(reader, listed)
            coordinator = reader._coordinator  # `committed` asks for one partition at a time
            committed = await coordinator.fetch_committed_offsets(listed)
    return {
        one: _bounds(
            Bounds(first[one], end[one], None, its[one].topic, stable=stable[one]),
            committed.get(one),
        )
        for one in listed
    }


def _bounds(limits: Bounds, committed: Any) -> Bounds:
    """Return bounds with what the group has committed; what is of another topic does not count."""
    if committed is None or committed.offset < 0:
        return limits
    mark = _read_mark(str(committed.metadata))
    said = mark.get("topic", "")
    if said and limits.topic and said != limits.topic:
        return limits
    vouched = bool(said and limits.topic)
    epoch = int(mark["epoch"]) if mark.get("epoch", "").isdecimal() else 1
    done = read_spans(mark.get("done", ""), committed.offset)
    return replace(limits, committed=committed.offset, vouched=vouched, epoch=epoch, done=done)


def to_commit(place: Place) -> tuple[int, str]:
    """Return what is committed for a place: the offset, and what there is to say of it.

    That is the id of its topic, its epoch when it is not the first, and what behind it is done.
    """
    words = [f"topic:{place.topic}"] if place.topic else []
    if place.epoch > 1:
        words.append(f"epoch:{place.epoch}")
    if place.done:
        words.append(f"done:{spans_text(place.done, place.next)}")
    return place.next, " ".join(words)


def _read_mark(text: str) -> dict[str, str]:
    """Read back what `to_commit` says beside the offset; what others wrote there says nothing."""
    pairs = [word.partition(":") for word in text.split(" ")]
    found = {name: said for name, _, said in pairs}
    return found if found.keys() <= _MARKS else {}


def spans_text(spans: Spans, offset: int) -> str:
    """Write offsets behind another: for each span how many are not of it, and how many are."""
    parts = []
    for first, last in spans:
        parts.append(f"{first - offset}+{last - first + 1}")
        offset = last + 1
    return ",".join(parts)


def read_spans(text: str, offset: int) -> Spans:
    """Read back `spans_text`; () for what is none."""
    if not _SPANS.fullmatch(text):
        return ()
    spans = []
    for part in text.split(","):
        gap, count = map(int, part.split("+"))
        spans.append((offset + gap, offset + gap + count - 1))
        offset += gap + count
    return tuple(spans)


async def cuts(
    reader: AIOKafkaConsumer, leaders: Mapping[TopicPartition, Leader], over: Any = FETCHING
) -> dict[TopicPartition, int]:
    """Return where logs end that were cut and written on by other leaders than was read from."""
    with named("cannot read leader epochs"):
        async with asyncio.timeout(MEET_SECONDS):
            epochs = {one: epoch for one, (epoch, _) in leaders.items()}
            ends = await epoch_ends(reader, epochs, over)
    return {one: end for one, end in ends.items() if end < leaders[one][1]}


async def told(
    reader: AIOKafkaConsumer, partitions: Iterable[TopicPartition], over: Any = FETCHING
) -> dict[TopicPartition, Identity]:
    """Ask what each partition is."""
    with named("Kafka does not answer"):
        async with asyncio.timeout(MEET_SECONDS / 3):
            return await identities(reader, partitions, over)


async def ends(
    reader: AIOKafkaConsumer, read_to: Mapping[TopicPartition, int]
) -> dict[TopicPartition, tuple[int, int]]:
    """Ask for the end of what can be read of each partition, and for the end of its log.

    The latter is asked only where something else tells: where more was read than can be now.
    """
    with named("Kafka does not answer"):
        async with asyncio.timeout(MEET_SECONDS / 3):
            stable = await reader.end_offsets(list(read_to))
            beyond = [one for one, end in stable.items() if read_to[one] > end]
            log_ends = await _log_ends(reader, beyond) if beyond else {}
    found = {one: (end, log_ends.get(one, end)) for one, end in stable.items()}
    short = {one: read_to[one] for one, (_, end) in found.items() if read_to[one] > end}
    reached = await reaching(reader, short) if short else {}
    return {one: (end, reached.get(one, log_end)) for one, (end, log_end) in found.items()}


async def reaching(
    reader: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Return the ends of logs that reach these offsets after all.

    One that is said to end before is asked for what is there: some brokers take the beginning of
    the last batch for the end, and a cut that is believed runs records again.
    """
    client = reader._client  # its public face says nothing of an offset before it reads there
    found: dict[TopicPartition, int] = {}
    with named("Kafka does not answer"):
        async with asyncio.timeout(MEET_SECONDS / 3):
            for leader, partitions in by_leader(client, offsets).items():
                asked = [(one.topic, [(one.partition, offsets[one], 1)]) for one in partitions]
                answer = await client.send(leader, FetchRequest(1, 1, 1, _READ_UNCOMMITTED, asked))
                for topic, said in answer.topics:
                    for number, code, end, *_ in said:
                        one = TopicPartition(topic, number)
                        if code == 0 and end >= offsets[one]:
                            found[one] = end
    return found


async def _log_ends(
    reader: AIOKafkaConsumer, partitions: list[TopicPartition]
) -> dict[TopicPartition, int]:
    """Ask for the ends of logs, also for one whose newest records are of an open transaction."""
    # A reader of committed records is told where these end, and its client asks as it reads.
    asking = copy.copy(reader._fetcher)
    asking._isolation_level = _READ_UNCOMMITTED
    found: dict[TopicPartition, int] = await asking.end_offsets(
        partitions, reader._request_timeout_ms
    )
    return found


async def offsets_at(
    reader: AIOKafkaConsumer, instant: datetime, limits: Mapping[TopicPartition, Bounds]
) -> dict[TopicPartition, int]:
    """Ask for the first record of each partition at or after `instant`; the end where none is."""
    stamp = max(int(instant.timestamp() * 1000), 0)  # Kafka means something else by -1 and -2
    with named("cannot look offsets up by time"):
        async with asyncio.timeout(MEET_SECONDS):
            found = await reader.offsets_for_times(dict.fromkeys(limits, stamp))
    return {
        one: limit.readable if found.get(one) is None else found[one].offset
        for one, limit in limits.items()
    }
