"""Batch: events that run together, so many or after a time: `batch(kafka("t"), 500, "200ms")`.

The first member sets the deadline, the n-th closes the window early. A member that would make it
larger than `max_bytes` closes it and opens the next; one that is larger by itself runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import ClassVar

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Trigger
from turnout.service.domain.units import parse_size

from .checks import duration, key_question, members, one_trigger
from .window import (
    MOST_BYTES,
    AskAgain,
    Fire,
    Join,
    Kind,
    Member,
    OpenWindow,
    Step,
    WhenFull,
    WindowSettings,
)


@dataclass(frozen=True, slots=True)
class Batch:
    """A window that closes with its n-th event, or at a time after its first."""

    triggers: tuple[Trigger, ...]
    settings: WindowSettings
    per: Callable[[Event], Hashable] | None = None
    kind: ClassVar[Kind] = "batch"
    on_timeout: ClassVar[None] = None


def batch(
    trigger: Trigger,
    n: int,
    timeout: str | timedelta,
    /,
    *,
    max_bytes: str | int = MOST_BYTES,
    per: Callable[[Event], Hashable] | None = None,
) -> Batch:
    """Start one run for several events: for `n` of them, or for those of a stretch of time.

    The first event opens a batch and fixes its deadline, the n-th starts its run at once. The flow
    gets a list, in the order of arrival; an event whose data does not fit is a dead letter of its
    own. An open batch outlives restarts, and stopping the service never cuts it short.

    * `trigger`: whose events are collected
    * `n`: how many events make a batch, up to 10,000
    * `timeout`: how long after its first event a batch starts at the latest, such as `"200ms"`
    * `max_bytes`: how large the bodies are together, 4 MiB at most; an event that would be too much
      opens the next batch, and one that is larger by itself runs alone
    * `per`: a function of the event that returns a key; each key has a batch of its own, and an
      event whose key is `None` runs alone at once

    Raises `SetupError` for what cannot be meant.

    ```python
    from turnout import batch, flow, webhook


    @flow(on=batch(webhook("/reading"), 500, "2s"))
    async def store(readings: list[dict[str, float]]) -> int:
        return len(readings)
    ```
    """
    settings = WindowSettings(
        kind="batch",
        count=members("batch", "n", n),
        period=duration("batch", "timeout", timeout),
        max_bytes=_size(max_bytes),
    )
    return Batch((one_trigger("batch", trigger),), settings, key_question("batch", per))


def _size(max_bytes: str | int) -> int:
    try:
        size = parse_size(max_bytes)
    except SetupError as error:
        raise SetupError(f"batch(max_bytes={max_bytes!r}): {error.message}") from None
    if not 0 < size <= MOST_BYTES:
        raise SetupError(f"batch(max_bytes={max_bytes!r}): a size is above 0 and 4 MiB at most")
    return size


class BatchRule:
    """Closes a window that is full, by count or by size."""

    when_full: ClassVar[WhenFull] = "fire"
    due_first = True

    def arrive(
        self, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        """Let the event join, and fire when it makes the batch full."""
        if window is not None and window.bytes + member.bytes > settings.max_bytes:
            return (Fire(), AskAgain())
        count, size, due_at = 1, member.bytes, member.at + settings.period
        if window is not None:
            count, size = window.count + 1, window.bytes + member.bytes
            due_at = due_at if window.due_at is None else window.due_at
        joined = Join(due_at)
        is_full = count >= settings.count or size >= settings.max_bytes
        return (joined, Fire()) if is_full else (joined,)

    @staticmethod
    def only_join(settings: WindowSettings, count: int, size: int, sizes: Sequence[int]) -> int:
        """Return how many of the next events, of these bytes, only join an open window.

        It has so many events and bytes. `arrive` says the same of each, and is asked of the one
        behind them.
        """
        joining, room = 0, settings.max_bytes - size
        for more in islice(sizes, max(settings.count - count - 1, 0)):
            room -= more
            if room <= 0:
                break
            joining += 1
        return joining

    def due(self, settings: WindowSettings, window: OpenWindow, at: int) -> Sequence[Step]:
        """Fire with what there is."""
        return (Fire(),)
