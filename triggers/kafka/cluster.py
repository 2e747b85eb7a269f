"""Describes a cluster and its topics, and creates the topics that are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaAdminClient,
    NewTopic,
)
from aiokafka.conn import create_conn  # type: ignore[import-untyped]  # as above
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    KafkaConnectionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]  # as above

from turnout.service.domain.errors import TriggerError

from .client import ANSWER_SECONDS, as_trigger_error, ended, started

_COPIES = 3
_TOPIC_ALREADY_EXISTS = 36


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
    with as_trigger_error(f"cannot reach Kafka at {servers} (TURNOUT_KAFKA_BOOTSTRAP_SERVERS)"):
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
            await ended(admin.close, ANSWER_SECONDS)
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
