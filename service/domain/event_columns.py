"""Events as columns: many of one trigger at once, each made into an `Event` only when asked for.

A trigger that reads hundreds of small records at a time, whose flows collect them in batches, would
spend most of its time on objects that nobody looks at. Not here: where columns come from
(`triggers/kafka/record`), and which events may be routed together (`Flow.collects`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from .event import Event, like
from .units import EPOCH, MICROSECOND


def keyed(event: Event, key: str) -> Event:
    """Return an event with a key: its subject, and the CloudEvents extension `partitionkey`."""
    return like(event, subject=key, extensions={**event.extensions, "partitionkey": key})


class EventColumns(Sequence[Event]):
    """Events of one trigger, type and tenant that can be read, in their order.

    turnout made their ids (`Event.minted`), their bodies are not empty, and they are no further
    than `MAX_HOPS` from their origin. An event is like its model but for the other columns.

    * `models`: what an event has in common with others, such as its source; mostly one object
    * `ids`: the ids of the events
    * `times`: when they happened, in microseconds since 1970 UTC
    * `keys`: what they get by `keyed`; None for no key, or one that the model has
    * `bodies`: the raw bodies
    * `data`: the bodies as decoded, until somebody has read them; a part of columns has none

    An event that is taken out decodes its body again.
    """

    __slots__ = ("bodies", "data", "ids", "keys", "models", "times")

    def __init__(self) -> None:
        """Make columns without an event."""
        self.models: list[Event] = []
        self.ids: list[str] = []
        self.times: list[int] = []
        self.keys: list[str | None] = []
        self.bodies: list[bytes] = []
        self.data: list[Any] = []

    def add(self, event: Event) -> None:
        """Add an event that has more than the columns hold."""
        self.models.append(event)
        self.ids.append(event.id)
        self.times.append((event.time - EPOCH) // MICROSECOND)
        self.keys.append(None)
        self.bodies.append(event.body)
        self.data.append(event.data)
        event.__dict__.pop("_data", None)  # it is a model now, and those made of it share nothing

    def decoded(self) -> Iterator[Event]:
        """Yield each event with its decoded data, which others do not get: ask once."""
        for index, data in enumerate(self.data):
            yield self._event(index, _data=data)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> Event: ...
    @overload
    def __getitem__(self, at: slice) -> EventColumns: ...
    def __getitem__(self, at: int | slice) -> Event | EventColumns:
        if isinstance(at, slice):
            return self._part(at)
        return self._event(at)

    def _event(self, at: int, **more: Any) -> Event:
        model, key = self.models[at], self.keys[at]
        return like(
            model if key is None else keyed(model, key),
            id=self.ids[at],
            time=EPOCH + self.times[at] * MICROSECOND,
            body=self.bodies[at],
            **more,
        ).own()

    def _part(self, at: slice) -> EventColumns:
        made = EventColumns()
        made.models, made.ids, made.times = self.models[at], self.ids[at], self.times[at]
        made.keys, made.bodies = self.keys[at], self.bodies[at]
        return made
