"""Reads of windows: `WindowReads` in the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import apsw

from turnout.service.domain.event import Event
from turnout.service.domain.units import MICROSECOND
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.records import StoredWindow, WindowMember

from .events import event_from
from .statements import load
from .values import instant, instant_or_none, micros
from .whole_events import rows_of
from .windows import opened_mark

_PORTION = 100
_SQL = load("windows")
_Value = TypeVar("_Value")


class _Reads(Protocol):
    async def read(self, query: Callable[[apsw.Connection], _Value]) -> _Value: ...


class WindowReading:
    """Lists windows and their members."""

    async def windows(
        self: _Reads, flow: str | None = None, *, limit: int = 100
    ) -> list[StoredWindow]:
        """Return open windows, of one flow or all, the first due first."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["pending"], (flow, limit)).fetchall()
        )
        return [_window_from(row) for row in rows]

    async def window(self: _Reads, window_id: str) -> StoredWindow | None:
        """Return a window by its id."""
        row: Any = await self.read(
            lambda connection: connection.execute(_SQL["window_by_id"], (window_id,)).fetchone()
        )
        return None if row is None else _window_from(row)

    async def window_of_run(self: _Reads, run_seq: int) -> StoredWindow | None:
        """Return the window of a run, None for a run of one event."""
        row: Any = await self.read(
            lambda connection: connection.execute(_SQL["of_run"], (run_seq,)).fetchone()
        )
        return None if row is None else _window_from(row)

    async def windows_of_event(self: _Reads, event_seq: int) -> list[StoredWindow]:
        """Return the windows that an event has joined and not left."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["windows_of_event"], (event_seq,)).fetchall()
        )
        return [_window_from(row) for row in rows]

    async def window_members(
        self: _Reads, window_seq: int, *, first: int = 0, limit: int = 100
    ) -> list[WindowMember]:
        """Return members of a window in the order in which they joined, from a position on."""
        values = (window_seq, first, limit)
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["listed_members"], values).fetchall()
        )
        return [
            WindowMember(
                position=position,
                event_id=event_id,
                event_source=source,
                trigger=trigger,
                part=part,
                at=instant(at),
            )
            for position, event_id, source, trigger, part, at in rows
        ]

    async def was_opened(self: _Reads, flow: str) -> bool:
        """Whether a window of a flow was ever opened by itself."""
        values = (opened_mark(flow),)
        found: int | None = await self.read(
            lambda connection: connection.execute(_SQL["was_opened"], values).get
        )
        return found is not None

    async def member_events(self: _Reads, seqs: Sequence[int]) -> list[Event]:
        """Return the events of members of a window, by their seqs and in that order.

        They come in small portions, and become events on the loop: a thread that works on all of
        them would keep the loop and the writer waiting for the interpreter at each of their steps.
        """
        found: list[Event] = []
        for start in range(0, len(seqs), _PORTION):
            portion = seqs[start : start + _PORTION]
            rows = await self.read(partial(rows_of, seqs=portion))
            found += [event_from(row) for row in rows]
        return found

    async def open_windows(self: _Reads) -> dict[str, int]:
        """Count open windows by flow."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["count_open"]).fetchall()
        )
        return dict(rows)

    async def due_windows(self: _Reads, until: datetime) -> dict[str, int]:
        """Count the open windows that are due by an instant, by flow."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["count_due"], (micros(until),)).fetchall()
        )
        return dict(rows)


def _window_from(row: Sequence[Any]) -> StoredWindow:
    (
        seq, window_id, flow, key, settings, state, opened_at, due_at, remaining, closed_at,
        members, size, run,
    ) = row  # fmt: skip
    return StoredWindow(
        seq=seq,
        id=window_id,
        flow=flow,
        key=key,
        settings=WindowSettings.from_json(settings),
        state=state,
        opened_at=instant(opened_at),
        due_at=instant_or_none(due_at),
        remaining_seconds=None if remaining is None else (remaining * MICROSECOND).total_seconds(),
        closed_at=instant_or_none(closed_at),
        members=members,
        bytes=size,
        run=run,
    )
