"""The action `publish`: writes a record to a Kafka topic, as a recorded step.

One idempotent producer serves the whole process. It opens at its first use and closes when the
service stops. `publish` returns when every in-sync replica has the record, and the step is recorded
after that. So a process that dies in between publishes again; consumers that must not see a record
twice read its `turnout-key` header, which is the same each time. Not here: reading topics
(`triggers.kafka`) and transactions.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson

from turnout.service.domain.errors import TurnoutError
from turnout.service.domain.resource import resource
from turnout.service.domain.retry import retry
from turnout.service.domain.run import Fail
from turnout.service.settings import load
from turnout.service.steps.context import RunContext, current

from .task import task

HOPS = "turnout-hops"
"""The header with the number of events that led to a record; it ends cycles."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_CLOSE_SECONDS = 5.0
_FIND_SECONDS = 5.0

# The client logs each attempt of each retry as an error; the step's error says it once.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

Headers = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]


class NotPublished(TurnoutError):
    """Raised when Kafka does not take a record now; another try may succeed."""


@task(name="kafka.publish", retry=retry(3, delay="1s", max="30s"), timeout="2m")
async def publish(
    topic: str,
    value: Any,
    key: str | bytes | None = None,
    headers: Headers = (),
    partition: int | None = None,
) -> dict[str, int]:
    """Publish one record, a recorded step; returns its partition and offset.

    It returns when every in-sync replica has the record. At least once: a process that dies before
    the step is recorded publishes again, with the same `turnout-key` header.

    * `topic`: the topic's name, 1 to 249 characters
    * `value`: bytes as they are, text as UTF-8, None as a null, and anything else as JSON
    * `key`: the record's key, text or bytes
    * `headers`: more headers, as a mapping or pairs; those of turnout say where the record comes
      from
    * `partition`: the partition, if not the one of the key

    Raises `Fail`, with Kafka's message, for what it refuses for good (too large, no such topic, not
    allowed, a value that is no JSON); the rest is retried three times.

    ```python
    from turnout import event, flow, kafka


    @flow(on=event("order.paid"))
    async def announce(order: dict[str, str]) -> None:
        await kafka.publish("paid-orders", {"id": order["id"]}, key=order["id"])
    ```
    """
    context = current()
    async with _producer(context) as producer:
        return await producer.send(
            topic, _encoded(value), _text(key), _headers(context, headers), partition
        )


class Producer:
    """The one producer of a process; replaced when Kafka has fenced it."""

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self._connection = connection
        self._open: Any = None
        self._turn = asyncio.Lock()
        self._finding = asyncio.Lock()

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        headers: list[tuple[str, bytes]],
        partition: int | None,
    ) -> dict[str, int]:
        """Publish one record; raises `Fail` or `NotPublished` with Kafka's reason."""
        from aiokafka import errors  # type: ignore[import-untyped]  # it carries no types

        producer = None
        try:
            if not _TOPIC.fullmatch(topic):
                raise errors.InvalidTopicError(f"{topic!r} can be no topic's name")
            producer = await self.opened()
            await self._find(producer, topic)
            sent = await producer.send_and_wait(
                topic, value, key=key, headers=headers, partition=partition
            )
        except (errors.OutOfOrderSequenceNumber, errors.ProducerFenced) as error:
            if producer is self._open:  # and not one opened since
                await self.close()  # the client never recovers from these
            raise NotPublished(_reason(topic, error)) from error
        except _final(errors) as error:
            raise Fail(_reason(topic, error)) from error
        except (errors.KafkaError, OSError) as error:
            raise NotPublished(_reason(topic, error)) from error
        return {"partition": sent.partition, "offset": sent.offset}

    async def _find(self, producer: Any, topic: str) -> None:
        """Make sure that a topic exists; gives brokers that create missing topics some time.

        The client itself would ask for a missing topic without a pause for half a minute, and
        records of other topics would wait for it.
        """
        client = producer.client
        if client.cluster.partitions_for_topic(topic) is not None:
            return
        if topic in (await client.fetch_all_metadata()).topics():
            async with asyncio.timeout(_FIND_SECONDS):  # a closed producer never answers
                await producer.partitions_for(topic)
            return
        async with self._finding:
            try:
                async with asyncio.timeout(_FIND_SECONDS):
                    await producer.partitions_for(topic)
            except TimeoutError:
                if producer is not self._open:
                    raise  # closed meanwhile: the topic may exist
                from aiokafka.errors import UnknownTopicOrPartitionError  # type: ignore[import-untyped]  # no types

                raise UnknownTopicOrPartitionError(topic) from None
            finally:
                if client.cluster.partitions_for_topic(topic) is None:
                    client._topics.discard(topic)  # or the client asks for it forever

    async def opened(self) -> Any:
        """Return the started producer; the first call starts it."""
        async with self._turn:
            if self._open is None:
                from aiokafka import AIOKafkaProducer

                made = AIOKafkaProducer(
                    **self._connection,
                    client_id="turnout",
                    enable_idempotence=True,  # implies acks="all"
                    max_request_size=64 << 20,  # the broker reports its own limit
                    request_timeout_ms=30_000,
                )
                try:
                    await made.start()
                except BaseException:
                    await _stop(made)
                    raise
                self._open = made
            return self._open

    async def close(self) -> None:
        """Send what is buffered and close, within a bound; the next `send` opens a new one."""
        made, self._open = self._open, None
        if made is not None:
            await _stop(made)


@resource
async def _shared() -> AsyncIterator[Producer]:
    """Open the producer of the process that runs the calling flow."""
    services = current().services
    assert services is not None
    producer = Producer(services.settings.connection("kafka"))
    try:
        yield producer
    finally:
        await producer.close()


@asynccontextmanager
async def _producer(context: RunContext) -> AsyncIterator[Producer]:
    """Lend the process's producer; outside any run, a separate one with the settings found here."""
    services = context.services
    if services is not None and services.resources is not None:
        yield await services.resources.use(_shared)
        return
    producer = Producer(load().connection("kafka"))
    try:
        yield producer
    finally:
        await producer.close()


async def _stop(made: Any) -> None:
    from aiokafka.errors import KafkaError

    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await made.stop()


def _final(errors: Any) -> tuple[type[Exception], ...]:
    """Return the errors that another try would not change."""
    return (
        errors.MessageSizeTooLargeError,
        errors.RecordListTooLargeError,
        errors.InvalidTopicError,
        errors.UnknownTopicOrPartitionError,
        errors.TopicAuthorizationFailedError,
        errors.ClusterAuthorizationFailedError,
        errors.PolicyViolationError,
        errors.UnsupportedCodecError,
        ValueError,  # the client refuses a partition or a name
        AssertionError,
        TypeError,
    )


def _reason(topic: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    name = type(error).__name__
    message = text if text.startswith(name) or name in text else f"{name}: {text}"
    return f"Kafka did not take a record for topic {topic!r}: {message.rstrip(': ')}"


def _encoded(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8")
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise Fail(f"the value cannot be written as JSON: {error}; publish bytes") from None


def _text(key: str | bytes | None) -> bytes | None:
    return key.encode("utf-8") if isinstance(key, str) else key


def _headers(context: RunContext, given: Headers) -> list[tuple[str, bytes]]:
    """Return the author's headers, after those that say where the record comes from."""
    event = context.event
    sent = context.trace
    sent[HOPS] = str(event.hops + 1)
    sent["turnout-key"] = context.key("kafka.publish")
    listed = list(given.items() if isinstance(given, Mapping) else given)
    named = {name for name, _ in listed}
    return [(name, text.encode("utf-8")) for name, text in sent.items() if name not in named] + [
        (name, value.encode("utf-8") if isinstance(value, str) else value) for name, value in listed
    ]
