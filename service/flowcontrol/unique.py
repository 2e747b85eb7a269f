"""Unique: has somebody asked for this work? `unique=unique(lambda event: …, until="7d")`.

The second to ask gets the id of the first run, and a decision; its own run is skipped. That is
another question than identity (is this the same delivery?) and mode (is such work under way?). It
is asked once, when the event arrives: a replay and a retry are not asked. They have the key again
that the run before has given up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from turnout.service.domain.conditions import UNIQUE_RULE, Until
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.units import parse_duration

MAX_UNTIL = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Unique:
    """One run for each key, until it has ended, or within a time of its acceptance."""

    per: Callable[[Event], Hashable]
    until: Until = "done"
    rule_id: ClassVar[str] = UNIQUE_RULE
    option: ClassVar[str] = "unique="


def unique(key: Callable[[Event], Hashable], *, until: str | timedelta = "done") -> Unique:
    """Declare that work is asked for once: `unique(lambda event: event.data["invoice"])`.

    The second event of a key starts no run: its sender gets the id of the first one. A run that has
    failed, was cancelled or was refused by another rule gives its key up at once; a retry or a
    replay has it again, if no other run has got it since.

    * `key`: a function of the event, asked once, when it arrives; None means that the event has no
      key and starts its own run
    * `until`: `"done"` keeps the key until the run has ended, however it ends; a duration such as
      `"7d"`, a year at most, for that long after its acceptance

    Raises `SetupError` for what cannot be a key or a duration.

    ```python
    from turnout import event, flow, unique


    @flow(on=event("invoice.wanted"), unique=unique(lambda event: event.data["id"], until="7d"))
    async def invoice(wanted: dict[str, str]) -> str:
        return f"invoice-{wanted['id']}"
    ```
    """
    if not callable(key):
        raise SetupError(f"unique({key!r}): write a function, unique(lambda event: …)")
    return Unique(key, "done" if until == "done" else _duration(until))


def _duration(until: str | timedelta) -> timedelta:
    try:
        length = parse_duration(until)
    except SetupError:
        raise SetupError(
            f'unique(until={until!r}): write until="done", or a duration such as "7d"'
        ) from None
    if not timedelta(0) < length <= MAX_UNTIL:
        raise SetupError(f"unique(until={until!r}): a duration is above 0 and a year at most")
    return length
