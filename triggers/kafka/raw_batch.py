"""Parses the record batches that the client cannot, so that one bad record stops no partition.

The client gives up on a whole batch when a record in it has a header that is not UTF-8, when it
lacks the codec, or when the checksum is wrong. Here the same bytes are parsed record by record.
Good records are like any other; a bad one keeps its bytes and a reason; a batch that cannot be
unpacked is one bad record that stands for all its offsets. Format: Kafka's record batch v2
(KIP-98). Not here: older formats, which brokers since 4.0 no longer store.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka import codec as codecs
from aiokafka.errors import KafkaError, for_code  # type: ignore[import-untyped]  # as above
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]  # as above
from aiokafka.record.util import calc_crc32c  # type: ignore[import-untyped]  # as above

from .record import Record

_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH_END = 12
_CHECKED_FROM = 21  # the checksum covers the attributes and all behind them
_CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
_MAX_BYTES = 16 * 2**20


class RawRecords(NamedTuple):
    """What could be parsed: records, good and bad, and the offset behind the last of them."""

    records: list[Record]
    next: int


async def fetch_raw(
    consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int
) -> RawRecords:
    """Fetch the bytes at `offset` again and parse what can be parsed; raises `KafkaError`."""
    client = consumer._client  # its public API returns no bytes
    leader = client.cluster.leader_for_partition(partition)
    if leader is None or leader < 0:
        raise KafkaError(f"{partition} has no leader now")
    asked = [(partition.topic, [(partition.partition, offset, _MAX_BYTES)])]
    answer = await client.send(leader, FetchRequest(200, 1, _MAX_BYTES, 1, asked))
    for _topic, partitions in answer.topics:
        for _number, code, _end, *rest in partitions:
            if code:
                raise for_code(code)(str(partition))
            return parse(bytes(rest[-1] or b""), offset, aborted=_aborted(answer, rest))
    return RawRecords([], offset)


def _aborted(answer: Any, rest: list[Any]) -> list[tuple[int, int]]:
    field = 2 if answer.API_VERSION >= 11 else -2
    return sorted((first, producer) for producer, first in rest[field] or ())


def parse(data: bytes, offset: int, *, aborted: list[tuple[int, int]] | None = None) -> RawRecords:
    """Parse the batches in `data` from `offset` on; `aborted` are (first offset, producer)."""
    records: list[Record] = []
    waiting = list(aborted or ())
    gone: set[int] = set()
    at, following = 0, offset
    while at + _HEADER.size <= len(data):
        head = _HEADER.unpack_from(data, at)
        end = at + _LENGTH_END + head[1]
        if head[1] < _HEADER.size - _LENGTH_END or end > len(data):
            break  # cut off by the fetch limit
        base, attributes, last, producer = head[0], head[5], base_end(head), head[9]
        while waiting and waiting[0][0] <= base:
            gone.add(waiting.pop(0)[1])
        if attributes & 0x20:  # a control batch: the end of a transaction
            gone.discard(producer)
        elif not (attributes & 0x10 and producer in gone):
            batch = data[at:end]
            records += [one for one in _batch(batch, head) if one.offset >= offset]
        following = max(following, last + 1)
        at = end
    return RawRecords(records, following)


def base_end(head: tuple[int, ...]) -> int:
    """Return the last offset that a batch covers."""
    return head[0] + head[6]


def _batch(batch: bytes, head: tuple[int, ...]) -> Iterator[Record]:
    stamp = head[7]
    try:
        if head[3] != 2:
            raise ValueError(f"unsupported batch format {head[3]}")
        if calc_crc32c(batch[_CHECKED_FROM:]) != head[4]:
            raise ValueError("the checksum of its batch is wrong")
        body = _opened(batch[_HEADER.size :], head[5] & 0x07)
    except Exception as error:  # noqa: BLE001  codecs raise what they like at broken bytes
        count = f" (and {head[6]} more of its batch)" if head[6] else ""
        yield Record(base_end(head), stamp, None, batch, (), f"{error}{count}")
        return
    log_append = head[8] if head[5] & 0x08 else None
    at = 0
    for _ in range(head[12]):
        record, at = _record(body, at, head, log_append)
        yield record
        if at < 0:
            return


def _opened(packed: bytes, codec: int) -> bytes:
    if codec == 0:
        return packed
    name = _CODECS.get(codec)
    if name is None:
        raise ValueError(f"unknown codec {codec}")
    if not getattr(codecs, f"has_{name}")():
        raise ValueError(
            f"its batch is packed with {name}, which is not installed: "
            "pip install 'turnout[kafka-codecs]'"
        )
    return bytes(getattr(codecs, f"{name}_decode")(packed))


def _record(
    body: bytes, start: int, head: tuple[int, ...], log_append: int | None
) -> tuple[Record, int]:
    """Parse one record; returns it and where the next one begins, -1 if that is unknown."""
    try:
        length, at = _varint(body, start)
        end = at + length
        if length <= 0 or end > len(body):
            raise ValueError("its length is wrong")
        stamp_delta, at = _varint(body, at + 1)
        offset_delta, at = _varint(body, at)
    except (ValueError, IndexError) as error:
        # Its offset is unknown too: it stands for the rest of the batch.
        return Record(base_end(head), head[7], None, body[start:], (), str(error)), -1
    offset = head[0] + offset_delta
    stamp = head[7] + stamp_delta if log_append is None else log_append
    try:
        key, at = _bytes(body, at)
        value, at = _bytes(body, at)
        count, at = _varint(body, at)
    except (ValueError, IndexError) as error:
        return Record(offset, stamp, None, body[start:end], (), str(error)), end
    try:
        headers = tuple(_headers(body, at, count))
    except (ValueError, IndexError) as error:
        return Record(offset, stamp, key, value, (), f"a header cannot be read: {error}"), end
    return Record(offset, stamp, key, value, headers), end


def _headers(body: bytes, at: int, count: int) -> Iterator[tuple[str, bytes | None]]:
    for _ in range(count):
        name, at = _bytes(body, at)
        value, at = _bytes(body, at)
        if name is None:
            raise ValueError("it has no name")
        yield name.decode("utf-8"), value


def _bytes(body: bytes, at: int) -> tuple[bytes | None, int]:
    length, at = _varint(body, at)
    if length < 0:
        return None, at
    if at + length > len(body):
        raise ValueError("a length in it is wrong")
    return body[at : at + length], at + length


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("a number in it is too long")
