"""What is asked of the broker: topics and offsets, each call bounded, each error named.

The client's calls can wait forever when brokers are away, and end in a dozen kinds of errors. Here
each call has a timeout, and an error is a `TriggerError` that says what failed. Not here: what the
offsets mean (`positions`) and reading (`consumer`).
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
from .positions import Bounds, Leader, Position, Spans
from .topic_ids import FETCHING, Identity, ask_identities, by_leader

# The client logs each attempt of each retry as an error; the trigger reports the state instead.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

ANSWER_SECONDS = 15.0
"""How long the cluster may take to answer before the trigger reports itself down and retries."""

CLIENT_ERRORS = (KafkaError, OSError, TimeoutError, AssertionError, RuntimeError)
"""What the client raises when brokers go away (RuntimeError: its transport is closed)."""

_STOP_SECONDS = 0.6
_START_SECONDS = 0.2
_COPIES = 3
_TOPIC_ALREADY_EXISTS = 36
_READ_UNCOMMITTED = 0
_METADATA_FIELDS = {"topic", "epoch", "done"}
_SPANS = re.compile(r"\d+\+[1-9]\d*(,\d+\+[1-9]\d*)*")


@contextmanager
def as_trigger_error(doing: str) -> Iterator[None]:
    """Turn the client's errors into a `TriggerError` that begins with what was being done.

    `IllegalStateError` and `CommitFailedError` pass: they only say that the assignment changed.
    """
    try:
        yield
    except (CommitFailedError, IllegalStateError):
        raise
    except CLIENT_ERRORS as error:
        raise TriggerError(f"{doing}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return Kafka's own message for an error, on one line."""
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
class ClusterInfo:
    """A cluster, and the number of partitions of each topic: 0 for a missing one.

    `problem` names a topic that is missing.
    """

    cluster: str
    topics: Mapping[str, int]
    problem: str | None

    def check(self) -> ClusterInfo:
        """Return itself; raises `TriggerError` if a topic is missing."""
        if self.problem is not None:
            raise TriggerError(self.problem)
        return self


async def describe(
    connection: Mapping[str, Any], topics: Sequence[str], *, create: int | None
) -> ClusterInfo:
    """Return a cluster and these topics of it; all topics but Kafka's own when none are given.

    Creates missing topics with `create` partitions. Raises `TriggerError`.
    """
    servers = ", ".join(connection["bootstrap_servers"])
    with as_trigger_error(f"cannot reach Kafka at {servers}"):
        admin = AIOKafkaAdminClient(**connection)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
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
    return ClusterInfo(str(described["cluster_id"] or "unknown"), found, problem)


async def _say_why(connection: Mapping[str, Any]) -> None:
    """Raise the error that the client hides when no broker accepts it: a password, a host name."""
    options = {**connection, "request_timeout_ms": 5000}
    for server in options.pop("bootstrap_servers"):
        host, _, port = server.rpartition(":")
        (await create_conn(host.strip("[]"), int(port), **options)).close()


async def _describe(admin: Any, topics: Sequence[str]) -> dict[str, int]:
    """Return the partition count of each topic, 0 for a missing one; of all when none given."""
    found = dict.fromkeys(topics, 0)
    # Not the client's own request, which creates the topics that it asks for.
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
        await asyncio.sleep(0.05)  # not every broker knows it yet


async def started(client: Any) -> None:
    """Start a consumer or admin client.

    A cancel waits a moment: the client would leak the connection that it is opening.
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
async def open_consumer(
    connection: Mapping[str, Any], **options: Any
) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer without starting it; it is stopped within a second at exit.

    It creates no topics, even where brokers create each topic that a client asks for.
    """
    made = AIOKafkaConsumer(**connection, **options)
    made._client._metadata_update = partial(_metadata_update, made._client)
    try:
        yield made
    finally:
        await _stop(made)


# The client's own method with one option of its request changed, which has no setting: a consumer
# of a deleted topic would recreate it within a second, with the broker's defaults.
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
        await _leave(coordinator)  # some brokers count from 0; the client takes that for no member
    if await _ended(made.stop, _STOP_SECONDS):
        return
    # Its stop did not end (no broker, or a rebalance): close its tasks and connections here.
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
    """Run one step of closing down, with a timeout; returns whether it succeeded.

    The client raises CancelledError here when its broker is away: only a real cancel passes.
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
    consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, Bounds]:
    """Return topic id, first offset, end and committed offset of the group for each partition."""
    listed = list(partitions)
    with as_trigger_error("cannot read offsets"):
        async with asyncio.timeout(ANSWER_SECONDS):
            # First: if the topic is recreated right now, the offsets below are the new topic's with
            # the old id. The next check notices that; the reverse would stay unnoticed.
            its = await ask_identities(consumer, listed)
            first = await consumer.beginning_offsets(listed)
            stable = await consumer.end_offsets(listed)
            end = await _log_ends(consumer, listed)
            coordinator = consumer._coordinator  # `committed` asks for one partition at a time
            committed = await coordinator.fetch_committed_offsets(listed)
    return {
        one: _bounds(
            Bounds(first[one], end[one], None, its[one].topic, stable=stable[one]),
            committed.get(one),
        )
        for one in listed
    }


def _bounds(limits: Bounds, committed: Any) -> Bounds:
    """Add what the group has committed, unless it was committed for another topic of this name."""
    if committed is None or committed.offset < 0:
        return limits
    metadata = _read_metadata(str(committed.metadata))
    topic = metadata.get("topic", "")
    if topic and limits.topic and topic != limits.topic:
        return limits
    confirmed = bool(topic and limits.topic)
    epoch = int(metadata["epoch"]) if metadata.get("epoch", "").isdecimal() else 1
    done = read_spans(metadata.get("done", ""), committed.offset)
    return replace(
        limits, committed=committed.offset, topic_confirmed=confirmed, epoch=epoch, done=done
    )


def offset_and_metadata(position: Position) -> tuple[int, str]:
    """Return what is committed for a position: the offset, and its metadata.

    The metadata holds the topic id, the epoch if it is not the first, and the done offsets.
    """
    words = [f"topic:{position.topic}"] if position.topic else []
    if position.epoch > 1:
        words.append(f"epoch:{position.epoch}")
    if position.done:
        words.append(f"done:{spans_text(position.done, position.next)}")
    return position.next, " ".join(words)


def _read_metadata(text: str) -> dict[str, str]:
    """Read back the metadata of `offset_and_metadata`; anybody else's is ignored."""
    pairs = [word.partition(":") for word in text.split(" ")]
    found = {name: value for name, _, value in pairs}
    return found if found.keys() <= _METADATA_FIELDS else {}


def spans_text(spans: Spans, offset: int) -> str:
    """Write spans behind an offset: for each, the gap before it and its length."""
    parts = []
    for first, last in spans:
        parts.append(f"{first - offset}+{last - first + 1}")
        offset = last + 1
    return ",".join(parts)


def read_spans(text: str, offset: int) -> Spans:
    """Read back `spans_text`; () for any other text."""
    if not _SPANS.fullmatch(text):
        return ()
    spans = []
    for part in text.split(","):
        gap, count = map(int, part.split("+"))
        spans.append((offset + gap, offset + gap + count - 1))
        offset += gap + count
    return tuple(spans)


async def cuts(
    consumer: AIOKafkaConsumer, leaders: Mapping[TopicPartition, Leader], over: Any = FETCHING
) -> dict[TopicPartition, int]:
    """Return where logs end that were cut and then extended by another leader."""
    with as_trigger_error("cannot read leader epochs"):
        async with asyncio.timeout(ANSWER_SECONDS):
            epochs = {one: epoch for one, (epoch, _) in leaders.items()}
            ends = await epoch_ends(consumer, epochs, over)
    return {one: end for one, end in ends.items() if end < leaders[one][1]}


async def identities(
    consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition], over: Any = FETCHING
) -> dict[TopicPartition, Identity]:
    """Return the identity of each partition: its topic id and leader epoch."""
    with as_trigger_error("Kafka does not answer"):
        async with asyncio.timeout(ANSWER_SECONDS / 3):
            return await ask_identities(consumer, partitions, over)


async def ends(
    consumer: AIOKafkaConsumer, read_to: Mapping[TopicPartition, int]
) -> dict[TopicPartition, tuple[int, int]]:
    """Return the end of what can be read of each partition, and the end of its log.

    The end of the log is asked for only where more was read than can be read now.
    """
    with as_trigger_error("Kafka does not answer"):
        async with asyncio.timeout(ANSWER_SECONDS / 3):
            stable = await consumer.end_offsets(list(read_to))
            beyond = [one for one, end in stable.items() if read_to[one] > end]
            log_ends = await _log_ends(consumer, beyond) if beyond else {}
    found = {one: (end, log_ends.get(one, end)) for one, end in stable.items()}
    short = {one: read_to[one] for one, (_, end) in found.items() if read_to[one] > end}
    reached = await reaching(consumer, short) if short else {}
    return {one: (end, reached.get(one, log_end)) for one, (end, log_end) in found.items()}


async def reaching(
    consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Return the real ends of logs that reach these offsets after all.

    Some brokers report the beginning of the last batch as the end of a log. So the offset itself is
    fetched: to take that for a cut would run records again.
    """
    client = consumer._client  # its public API cannot look at one offset
    found: dict[TopicPartition, int] = {}
    with as_trigger_error("Kafka does not answer"):
        async with asyncio.timeout(ANSWER_SECONDS / 3):
            for leader, partitions in by_leader(client, offsets).items():
                asked = [(one.topic, [(one.partition, offsets[one], 1)]) for one in partitions]
                answer = await client.send(leader, FetchRequest(1, 1, 1, _READ_UNCOMMITTED, asked))
                for topic, fetched in answer.topics:
                    for number, code, end, *_ in fetched:
                        one = TopicPartition(topic, number)
                        if code == 0 and end >= offsets[one]:
                            found[one] = end
    return found


async def _log_ends(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
) -> dict[TopicPartition, int]:
    """Return the ends of logs, also behind an open transaction."""
    # A consumer of committed records gets the end of those; ask as one that reads all.
    asking = copy.copy(consumer._fetcher)
    asking._isolation_level = _READ_UNCOMMITTED
    found: dict[TopicPartition, int] = await asking.end_offsets(
        partitions, consumer._request_timeout_ms
    )
    return found


async def offsets_at(
    consumer: AIOKafkaConsumer, instant: datetime, limits: Mapping[TopicPartition, Bounds]
) -> dict[TopicPartition, int]:
    """Return the first offset of each partition at or after `instant`; the end if there is none."""
    stamp = max(int(instant.timestamp() * 1000), 0)  # -1 and -2 have other meanings in Kafka
    with as_trigger_error("cannot look offsets up by time"):
        async with asyncio.timeout(ANSWER_SECONDS):
            found = await consumer.offsets_for_times(dict.fromkeys(limits, stamp))
    return {
        one: limit.readable if found.get(one) is None else found[one].offset
        for one, limit in limits.items()
    }
