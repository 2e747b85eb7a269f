"""The partitions that the group has given this member, and what is known of each.

The client rebalances in a task of its own and may change the assignment at any await. So everything
here belongs to one *generation* and is dropped in the next: whoever awaits compares generations.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import IllegalStateError  # type: ignore[import-untyped]  # as above

from .positions import Position, Positions, key_of
from .record import RecordDecoder


class Assignment:
    """The partitions of one member.

    Those in `without_start` are not read before their start is found. `decoders` has the others.
    `leaving` is true from the moment the client begins to take the partitions away.
    """

    def __init__(self, consumer: AIOKafkaConsumer, positions: Positions) -> None:
        self._consumer = consumer
        self._positions = positions
        self.generation = 0
        self.leaving = False
        self.without_start: set[TopicPartition] = set()
        self.decoders: dict[TopicPartition, RecordDecoder] = {}
        self.started_at: dict[TopicPartition, Position] = {}

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Begin a generation with these partitions."""
        self.generation += 1
        self.leaving = False
        self.without_start.clear()
        self.find_start(partitions)

    def revoke(self) -> None:
        """End the generation."""
        self.generation += 1
        self.decoders.clear()
        self.started_at.clear()
        self.without_start.clear()

    def start(self, partition: TopicPartition, decoder: RecordDecoder) -> None:
        """Read a partition from its stored position."""
        position = self.started_at[partition] = self.position(partition)
        self.decoders[partition] = decoder
        self._consumer.seek(partition, position.next)
        self._consumer.resume(partition)

    def find_start(self, partitions: Iterable[TopicPartition]) -> None:
        """Read nothing of these partitions before their start is chosen.

        Nothing is fetched meanwhile: a fetch that waits for records holds up what is asked of the
        same broker behind it, half a second each.
        """
        added = set(partitions)
        self.without_start |= added
        for partition in added:
            with suppress(IllegalStateError):
                self._consumer.pause(partition)

    def find_starts_again(self) -> None:
        """Read nothing more before the start of every partition is chosen again."""
        self.find_start(self.decoders)

    def position(self, partition: TopicPartition) -> Position:
        """Return the stored position of a partition whose start is known."""
        return self._positions.partitions[key_of(partition)]

    def fetched_to(self, partition: TopicPartition) -> int:
        """Return the offset that the client reads next, -1 if it has none."""
        subscription: Any = self._consumer._subscription.subscription  # `position()` would wait
        assignment = None if subscription is None else subscription.assignment
        state = None if assignment is None else assignment.state_value(partition)
        return state.position if state is not None and state.has_valid_position else -1

    def read_to(self) -> dict[TopicPartition, int]:
        """Return how far each partition is read whose start is known."""
        return {
            one: self.position(one).next for one in self.decoders if one not in self.without_start
        }

    def rewind(self) -> None:
        """Go back to the stored positions everywhere, also over what was fetched already."""
        for partition in self.decoders:
            with suppress(IllegalStateError):
                self._consumer.seek(partition, self.position(partition).next)

    def keys(self) -> set[str]:
        """Return the names of the partitions that are read."""
        return {key_of(partition) for partition in self.decoders}
