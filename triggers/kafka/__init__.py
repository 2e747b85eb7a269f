"""The Kafka trigger: each record of some topics is one event, in the order of its partition.

`kafka("orders", group="billing")` joins a consumer group. One journal transaction stores the
records together with the next offset. That stored position alone says what has been read, so a
record that Kafka delivers again never starts a second run. Kafka's committed offset follows it, for
Kafka's own tools. Members that have a journal each share the work; a kill between journal and
commit can run twice at most the records that were journaled and not yet committed.

A record's identity is `cluster/topic/epoch/partition/offset`, or with `id=` what its sender calls
it: then records at different offsets may be one event, which the journal tells. The epoch rises
when a topic was recreated, when it lost records that were read (then only for offsets behind the
cut), or when an operator seeks back to run records again. A topic's id tells a recreated one, and
the leader epochs of records a log that was cut: both are compared at each assignment, where the
leader has changed, after each failed fetch and every two seconds. With `ordered_by`, records of a
partition that are journaled and not begun go back to Kafka for the next member. A record that
cannot be read (a null, broken JSON, too large, an unknown codec) is a dead letter with its offset
and the reason, and its partition goes on. Not here: publishing (`handlers.kafka`) and the
connection (settings).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from turnout.service.domain.errors import JournalFull, Overloaded, SetupError, TriggerError
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import AfterRun, Emitter, Seek, SeekPlan
from turnout.service.domain.units import parse_duration, parse_size
from turnout.triggers.identity import EventId, check_function, check_window, window

from .record import Data, Null, RecordDecoder

if TYPE_CHECKING:
    from .consumer import ConsumerSession

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_RETRY_SECONDS = (0.5, 5.0)
_FETCH_BYTES = 1 << 20
_FETCH_TOTAL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaTrigger:
    """A read trigger that is a member of a consumer group."""

    name: str
    topics: tuple[str, ...]
    group: str
    pattern: str | None = None
    start: str | datetime = "latest"
    data: Data = "json"
    null: Null = "dead"
    max_record: int = 1 << 20
    dead_letter_topic: str | None = None
    create: int | None = None
    session_seconds: float = 6.0
    max_poll_seconds: float = 300.0
    id: EventId | str | None = None
    dedupe: timedelta | None = None
    kind: str = "kafka"

    tells_progress = True

    unmatched_sample = 1000
    """Of the records that no flow matches one in a thousand is stored; the others are counted."""

    def check(self) -> None:
        """Raise `SetupError` for names and settings that cannot work."""
        if bool(self.topics) == (self.pattern is not None):
            raise SetupError('kafka(…): name topics, or give pattern="…", one of the two')
        for topic in (*self.topics, *filter(None, [self.dead_letter_topic])):
            if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
                raise SetupError(
                    f"kafka({topic!r}): a topic's name has 1 to 249 letters, digits, '.', '_', '-'"
                )
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise SetupError(f"kafka(pattern={self.pattern!r}): {error}") from None
        if not self.group:
            raise SetupError('kafka(…): group="" joins no group; name it after what reads')
        self._check_choices()
        self._check_id()

    def _check_id(self) -> None:
        if self.id == "key":
            raise SetupError(
                'kafka(id="key"): a text is the name of a header, and a key is no id: every later '
                "record of a key would be dropped; write id=lambda event: …"
            )
        if self.id == "" or (isinstance(self.id, str) and not self.id.isprintable()):
            raise SetupError(f"kafka(id={self.id!r}) is not a header's name")
        if self.id is not None and not isinstance(self.id, str):
            check_function("kafka(…)", self.id)
        if self.dedupe is not None and self.id is None:
            raise SetupError(
                "kafka(dedupe=…): needs id=; without it each offset is read once, whatever it holds"
            )
        check_window("kafka(…)", self.dedupe)

    def _check_choices(self) -> None:
        if isinstance(self.start, datetime):
            if self.start.tzinfo is None:
                raise SetupError("kafka(start=…): an instant needs its zone: 2026-01-31T09:00:00Z")
        elif self.start not in ("latest", "earliest"):
            raise SetupError(
                f'kafka(start={self.start!r}): write "latest", "earliest" or an instant'
            )
        if self.data not in ("json", "text", "bytes"):
            raise SetupError(f'kafka(data={self.data!r}): write "json", "text" or "bytes"')
        if self.null not in ("dead", "skip", "run"):
            raise SetupError(f'kafka(null={self.null!r}): write "dead", "skip" or "run"')
        if self.create is not None and not 1 <= self.create <= 10_000:
            raise SetupError(f"kafka(create={self.create}): partitions are from 1 to 10,000")
        if self.max_record < 1:
            raise SetupError("kafka(max_record=…): at least one byte")
        if self.session_seconds < 1 or self.max_poll_seconds < 1:
            raise SetupError("kafka(session=…, max_poll=…): at least a second each")
        if self.dead_letter_topic is not None and self.reads(self.dead_letter_topic):
            raise SetupError("kafka(dead_letter_topic=…): a topic of its own, or it never ends")

    # ------------------------------------------------------------ reading

    def reads(self, topic: str) -> bool:
        """Whether a topic of this name is read."""
        if self.pattern is None:
            return topic in self.topics
        return re.fullmatch(self.pattern, topic) is not None

    async def run(self, emit: Emitter) -> None:
        """Read until cancelled; waits for brokers and topics that are not there."""
        # The client costs start-up time; `turnout check` does without.
        from .client import open_consumer
        from .cluster import describe
        from .consumer import ConsumerSession
        from .start_offsets import store_initial_topics

        connection = emit.connection("kafka")
        delay, longest = _RETRY_SECONDS
        while True:
            try:
                info = await describe(connection, self.topics, create=self.create)
                await store_initial_topics(self, emit, info)
                info.check()
            except (TriggerError, Overloaded, JournalFull) as error:
                emit.down(str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)
            else:
                break
        async with open_consumer(connection, **self.consumer_options()) as consumer:
            await ConsumerSession(self, emit, info.cluster, consumer).run()

    def consumer_options(self) -> dict[str, Any]:
        """Return how the client is to read for this trigger."""
        return {
            "group_id": self.group,
            "client_id": "turnout",
            "enable_auto_commit": False,  # it would commit what is not journaled
            "auto_offset_reset": "none",  # the stored position says where to read
            "isolation_level": "read_committed",
            "fetch_max_bytes": _FETCH_TOTAL_BYTES,
            "max_partition_fetch_bytes": _FETCH_BYTES,
            "session_timeout_ms": int(self.session_seconds * 1000),
            "heartbeat_interval_ms": int(self.session_seconds * 1000 / 4),
            "max_poll_interval_ms": int(self.max_poll_seconds * 1000),
            "metadata_max_age_ms": 30_000,  # how soon a new partition or topic is noticed
        }

    def subscribe(self, consumer: Any, listener: ConsumerSession) -> None:
        """Subscribe a consumer to the topics or the pattern."""
        if self.pattern is None:
            consumer.subscribe(list(self.topics), listener=listener)
        else:
            consumer.subscribe(pattern=f"^(?:{self.pattern})$", listener=listener)

    def decoder(self, cluster: str, topic: str, partition: int, epoch: int) -> RecordDecoder:
        """Return what turns the records of one partition into events."""
        return RecordDecoder(
            trigger=self.name,
            cluster=cluster,
            topic=topic,
            partition=partition,
            epoch=epoch,
            data=self.data,
            null=self.null,
            max_record=self.max_record,
            keeps_headers=self.dead_letter_topic is not None,
            id=_in_header(self.id) if isinstance(self.id, str) else self.id,
        )

    # ------------------------------------------------------------ an operator's seek

    async def plan(
        self, seek: Seek, positions: Mapping[str, str], connection: Mapping[str, Any]
    ) -> SeekPlan:
        """Say what a seek would do, without changing anything."""
        from .seek import plan

        return await plan(self, seek, positions, connection)

    # ------------------------------------------------------------ the dead letter topic

    @property
    def after_run(self) -> AfterRun | None:
        """Return this trigger if failed records go to a dead letter topic."""
        return None if self.dead_letter_topic is None else self

    async def ended(self, event: Event, failure: str | None, emit: Emitter) -> Event | None:
        """Publish a record that a flow failed on to the dead letter topic, at least once."""
        is_record = "partition" in event.extensions  # an event fired by an operator is none
        if is_record and failure is not None and self.dead_letter_topic is not None:
            from .dead_letter_topic import post

            await post(self.dead_letter_topic, event, failure, emit)
        return None


def kafka(
    *topics: str,
    group: str,
    pattern: str | None = None,
    start: str | datetime = "latest",
    data: Data = "json",
    null: Null = "dead",
    max_record: str | int = "1MiB",
    dead_letter_topic: str | None = None,
    create: int | None = None,
    session: str | timedelta = "6s",
    max_poll: str | timedelta = "5m",
    id: EventId | str | None = None,
    dedupe: str | timedelta | None = None,
    name: str | None = None,
) -> KafkaTrigger:
    """Start a flow for each record of topics: `kafka("orders", group="billing")`.

    In the order of a partition; a record that was read never starts a second run. Offsets are
    committed after the journal. The setting `kafka_bootstrap_servers` says where the brokers are. A
    record that cannot be read is a dead letter of every flow, and its partition goes on.

    * `topics`: the topics' names
    * `group`: the consumer group to join; members share the partitions
    * `pattern`: `"orders-.*"`: all topics whose names match, instead of topics by name
    * `start`: where a partition begins for which the group has committed nothing: `"latest"` (now),
      `"earliest"` or an instant; a partition created later is read from its first record
    * `data`: how values are decoded: `"json"`, `"text"` or `"bytes"`
    * `null`: what a null value is: `"dead"` (a dead letter), `"skip"`, or `"run"` without a body
    * `max_record`: the largest record; a larger one is a dead letter
    * `dead_letter_topic`: the topic that also gets each record a flow failed on
    * `create`: makes a missing topic, with so many partitions; without it the trigger waits for one
    * `session`: how long the group may not have heard from a member before it loses its partitions
    * `max_poll`: how long a member may not ask for records before it loses its partitions
    * `id`: what the sender calls the event: a function of it, or the name of a header; the same id
      is the same event, whatever its offset
    * `dedupe`: for how long an `id` is remembered; needs `id`
    * `name`: the trigger's name, the key of its position and metrics

    Raises `SetupError`, by `turnout check`, for names and options that cannot work.

    ```python
    from turnout import flow, kafka


    @flow(on=kafka("orders", group="billing", start="earliest"), ordered_by="key")
    async def bill(order: dict[str, str]) -> str:
        return order["id"]
    ```
    """
    named = ",".join(sorted(set(topics))) if pattern is None else f"~{pattern}"
    return KafkaTrigger(
        name=name if name is not None else f"kafka:{named}/{group}",
        topics=tuple(sorted(set(topics))),
        group=group,
        pattern=pattern,
        start=_start(start),
        data=data,
        null=null,
        max_record=parse_size(max_record),
        dead_letter_topic=dead_letter_topic,
        create=create,
        session_seconds=parse_duration(session).total_seconds(),
        max_poll_seconds=parse_duration(max_poll).total_seconds(),
        id=id,
        dedupe=window(dedupe),
    )


def _in_header(name: str) -> EventId:
    return lambda event: event.headers.get(name.lower()) or None


def _start(start: str | datetime) -> str | datetime:
    if isinstance(start, str) and start not in ("latest", "earliest"):
        try:
            return datetime.fromisoformat(start)
        except ValueError:
            return start  # `check` refuses it by name
    return start


__all__: Sequence[str] = ["KafkaTrigger", "kafka"]
