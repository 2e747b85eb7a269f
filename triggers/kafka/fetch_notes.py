"""Notes of each fetch what the client keeps to itself: who wrote the records, and failures.

Each batch of a log names the epoch of the leader that wrote it, and epochs only rise (KIP-101). A
fetch that fails says that the leader, or the whole topic, may be another one afterwards. The client
reads over the one and retries after the other. Not here: what follows from either (`batches`).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from aiokafka import TopicPartition  # type: ignore[import-untyped]  # it carries no types
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]  # as above
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]  # as above

_HEAD = struct.Struct(">qiib")  # base offset, length, leader epoch, format
_LENGTH_END = 12


class FetchNotes:
    """What one client has fetched; `interrupted` are the partitions of which a fetch has failed."""

    def __init__(self, client: Any) -> None:
        self._send = client.send
        self._starts: dict[TopicPartition, list[tuple[int, int]]] = {}
        self.interrupted: set[TopicPartition] = set()
        client.send = self._send_and_note

    async def _send_and_note(self, node: int, request: Any, **options: Any) -> Any:
        if not isinstance(request, FetchRequest):
            return await self._send(node, request, **options)
        try:
            answer = await self._send(node, request, **options)
        except KafkaError:
            for topic, asked in request.topics:
                self.interrupted |= {TopicPartition(topic, number) for number, *_ in asked}
            raise
        for topic, partitions in answer.topics:
            for number, code, _end, *rest in partitions:
                partition = TopicPartition(topic, number)
                if code:
                    self.interrupted.add(partition)
                elif rest[-1]:
                    self._note(partition, rest[-1])
        return answer

    def _note(self, partition: TopicPartition, batches: bytes) -> None:
        starts = self._starts.setdefault(partition, [])
        for base, epoch in batch_epochs(batches):
            if _epoch_at(starts, base) != epoch:
                while starts and starts[-1][0] >= base:  # of a log that was cut
                    starts.pop()
                starts.append((base, epoch))

    def epoch_at(self, partition: TopicPartition, offset: int) -> int:
        """Return the epoch of the leader that wrote the record at `offset`; -1 if unknown."""
        return _epoch_at(self._starts.get(partition, []), offset)


def _epoch_at(starts: list[tuple[int, int]], offset: int) -> int:
    at = bisect_right(starts, offset, key=itemgetter(0))
    return starts[at - 1][1] if at else -1


def batch_epochs(batches: bytes) -> Iterator[tuple[int, int]]:
    """Return the first offset and the leader epoch of each batch; none in formats before 2."""
    at = 0
    while at + _HEAD.size <= len(batches):
        base, length, epoch, magic = _HEAD.unpack_from(batches, at)
        if magic < 2 or length < 0:
            return
        yield base, epoch
        at += _LENGTH_END + length
